"""Steps that failed, and why, in words."""

from __future__ import annotations

from tasks.store.trouble import storage_trouble


class StepFailed(Exception):
    """A step of the plan did not make its artifact. `cause` is the error as the step raised it."""

    def __init__(self, step: str, cause: BaseException) -> None:
        super().__init__(f"step {step}: {reason(cause)}")
        self.step, self.cause = step, cause


def reason(error: BaseException) -> str:
    """Why a step failed, in words: an exception's own, where it has any that mean something by themselves."""
    if isinstance(error, SystemExit):
        return f"its code called sys.exit({'' if error.code is None else repr(error.code)})"
    if isinstance(error, KeyError | StopIteration | KeyboardInterrupt) or not str(error):
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return storage_trouble(error) or str(error)
