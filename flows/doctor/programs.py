"""Programs that are asked something, with a time limit that holds for their children too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence


class NoAnswer(Exception):
    """A program is not here, hangs, or says no; the text says which."""


def answer(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints.

    Raises:
        NoAnswer: it is not here, has not ended in time, or has ended with another status than 0.
    """
    name = os.path.basename(command[0])  # noqa: PTH119 (a name, no file)
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=None if environment is None else {**os.environ, **environment},
            start_new_session=True,  # a child of it may hold the pipe when it is gone
        )
    except OSError as error:
        raise NoAnswer(f"{name} cannot be run: {error.strerror}") from None
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        raise NoAnswer(f"{name} gave no answer in {seconds:g} s") from None
    if process.returncode:
        lines = (said.strip() or out.strip() or f"status {process.returncode}").splitlines()
        raise NoAnswer(f"{name}: {lines[-1]}")
    return out
