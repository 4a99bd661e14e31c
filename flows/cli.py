"""The command `evo`.

Exit status: 0 all is well; 1 a step failed or something crashed; 2 the user's input is wrong; 129 stopped by SIGHUP
(a closed terminal), 130 by Ctrl-C, 143 by SIGTERM. The table of every command's is in docs/pipelines.md.
"""

from __future__ import annotations

import sys
import traceback

from evo_core.command_line.program import invoke, plain_app
from evo_core.data.commands import app as data_app
from evo_core.errors import UserError
from evo_core.job import INTERRUPTED, USER_ERROR
from flows.commands import jobs, pipelines, records
from flows.commands.deployments import automate
from flows.commands.doctor import doctor
from flows.show.output import lasting_output

app = plain_app(
    "evo",
    "Raw text to a trained language model to generated text, as one pipeline.",
    "Exit status: 0 all is well, 1 failed, 2 wrong input, 130 Ctrl-C, 143 SIGTERM; docs/pipelines.md has those of each "
    "command.",
)
_OF_PIPELINES = (pipelines.run, pipelines.plan, pipelines.why, pipelines.dag)
for command in (*_OF_PIPELINES, records.status, records.logs, records.trace, records.ui, doctor, automate):
    app.command()(command)
jobs.add_jobs(app)
app.add_typer(data_app)


def main() -> None:
    """Entry point of the command: a user's mistake is one line and status 2; a step that failed, whatever its cause,
    and anything else is status 1, with a traceback where the code is to blame."""
    with lasting_output():
        if status := _status(sys.argv[1:]):
            raise SystemExit(status)


def _status(words: list[str]) -> int:
    try:
        return invoke(app, words, "evo")
    except UserError as error:
        return _ended(str(error), USER_ERROR)
    except KeyboardInterrupt:
        return _ended("stopped", INTERRUPTED)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    from tasks.launch.launcher import JobFailed
    from tasks.store.trouble import storage_trouble

    cause, trouble = getattr(error, "cause", error), storage_trouble(error)
    if not isinstance(cause, UserError | JobFailed) and storage_trouble(cause) is None:
        traceback.print_exception(cause)
    return _ended(trouble or str(error), 1)


def _ended(message: str, status: int) -> int:
    print(f"evo: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
