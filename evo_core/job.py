"""The job folder: what a launched command leaves for whoever launched it.

The launcher names a folder in ``EVO_JOB_FOLDER``. There the command keeps ``progress.json`` (how far it is) and, when
it fails, ``error.json`` (why, from the first rank that failed). Without the variable nothing is written.
"""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evo_core.cause import COMMUNICATION, cause_of
from evo_core.errors import UserError
from evo_core.parallel.environment import restarts
from evo_core.process import die_with_launcher
from evo_core.storage.files import create_file, write_file

USER_ERROR = 2
"""Exit status of a mistake of the user's; a crash is 1."""

STUCK = 124
"""Exit status of a run that hung and was ended by its own watchdog, which is that of ``timeout``: a crash."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, where a command does not end in its own way: 128 + SIGINT."""

_PROGRESS_SECONDS = 0.5
_last_report = -math.inf


def job_folder() -> Path | None:
    """The folder named by ``EVO_JOB_FOLDER``, or None where nobody waits for news."""
    folder = os.environ.get("EVO_JOB_FOLDER")
    return Path(folder) if folder else None


def report_progress(done: int, total: int, unit: str, **facts: float | None) -> None:
    """Write ``progress.json``, from rank 0 and at most twice a second (the last report is never left out).

    Args:
        done: units done so far.
        total: units in all.
        unit: what is counted: "steps", "documents", "prompts".
        facts: "loss", "tokens", "tokens_per_second", "eta_seconds", ...; numbers that are not finite become null.
    """
    global _last_report
    folder, now = job_folder(), time.monotonic()
    if folder is None or _rank() != 0 or (done < total and now - _last_report < _PROGRESS_SECONDS):
        return
    _last_report = now
    finite = {k: v if v is None or math.isfinite(v) else None for k, v in facts.items()}
    _replace(folder / "progress.json", {"done": done, "total": total, "unit": unit, **finite, "updated": time.time()})


@contextmanager
def command(name: str) -> Iterator[None]:
    """The frame of a launched command: errors become ``error.json``, a message and an exit status.

    A `UserError` is printed without its traceback and exits with status 2; anything else prints its traceback and
    exits with status 1. A process that torchrun starts again after a user's mistake ends at once: trying again cannot
    help.
    """
    die_with_launcher()
    folder = job_folder()
    if folder is not None and _left_by_user(folder):
        sys.exit(USER_ERROR)
    escape_what_cannot_be_encoded()
    try:
        _check_working_folder()
        yield
        sys.stdout.flush()
    except UserError as error:
        leave_error(error)
        if _rank() != 0:
            time.sleep(1)  # every rank finds most mistakes; rank 0 says it, and the launcher then ends the others
        print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
    except Exception as error:
        leave_error(error)
        if isinstance(error, OSError) and error.filename is None and not output_is_taken():
            print(f"{name}: error: nothing can be printed: {error.strerror}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            sys.stderr.flush()
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    if folder is not None and _rank() == 0:
        _forget_error(folder)


def escape_what_cannot_be_encoded() -> None:
    """A terminal or file of another encoding gets escapes for the characters that it lacks."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def output_is_taken() -> bool:
    """Whether standard output can be written to (its reader is there, its disk not full).

    Where it cannot, what is left of it is dropped, so that Python does not try again when it ends.
    """
    try:
        print(flush=True)  # a write that failed may have left nothing to flush
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _check_working_folder() -> None:
    """Libraries end the process without a word where the working folder was removed."""
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(f"the working folder is gone ({error.strerror})", hint="cd to one that is there") from error


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def leave_error(error: BaseException) -> None:
    """Write ``error.json`` unless another rank of this attempt was faster.

    An error that is more than lost communication replaces one that is only that: where a rank fails, its peers often
    hear of it before it has said why.
    """
    folder = job_folder()
    if folder is None:
        return
    content = {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "rank": _rank(),
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "cause": cause_of(error),
        "user_error": isinstance(error, UserError),
        "attempt": restarts(os.environ),
    }
    path = folder / "error.json"
    if (earlier := _read(path)) is not None and (_is_older(earlier) or _is_echo(earlier, content)):
        _replace(path, content)
        return
    with suppress(OSError):  # the folder is gone: the message on stderr remains
        if folder.is_dir():
            create_file(path, json.dumps(content), durable=False)


def _forget_error(folder: Path) -> None:
    """Remove the error of an earlier attempt: this one succeeded."""
    earlier = _read(folder / "error.json")
    if earlier is not None and _is_older(earlier):
        (folder / "error.json").unlink(missing_ok=True)


def _left_by_user(folder: Path) -> bool:
    earlier = _read(folder / "error.json")
    return bool(earlier and earlier.get("user_error") and _is_older(earlier))


def _is_older(error: dict[str, Any]) -> bool:
    """Whether it is of ranks before torchrun restarted them."""
    return bool(error.get("attempt", 0) < restarts(os.environ))


def _is_echo(earlier: dict[str, Any], error: dict[str, Any]) -> bool:
    return bool(earlier.get("cause") == COMMUNICATION != error["cause"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old content or the new, never half of it."""
    with suppress(OSError):  # news are not worth ending a job for
        if path.parent.is_dir():  # whoever waited has cleared it away otherwise
            write_file(path, json.dumps(content), durable=False)
