"""Standard output that outlives what it is written to: a full disk or a closed pipe ends no run.

What follows a failed write is dropped, and the failure is told once, when the command ends.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from evo_core.job import escape_what_cannot_be_encoded

CLOSED_PIPE = 141
"""Exit status where nobody reads the output any more: 128 + SIGPIPE, as of any other program."""


class LastingOutput:
    """A text stream whose writes do not fail."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text, or drop it where an earlier write has failed."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered."""
        self._try(self.stream.flush)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, call: Any) -> None:
        if self.failure is not None:
            return
        try:
            call()
        except OSError as error:
            self.failure = error


@contextmanager
def lasting_output() -> Iterator[None]:
    """Standard output for the block; characters that its encoding lacks are written as escapes.

    Raises:
        SystemExit: at the end, when the block went well and its output could not be written.
    """
    escape_what_cannot_be_encoded()
    if sys.stdout is None:
        yield
        return
    before = sys.stdout
    output = LastingOutput(before)
    sys.stdout = output
    status: Any = 0
    try:
        yield
    except SystemExit as end:
        status = end.code
        raise
    except BaseException:
        status = 1
        raise
    finally:
        output.flush()
        sys.stdout = before
        if output.failure is not None:
            _drop_what_is_buffered()
            if status in (0, None):
                _end(output.failure)


def _end(failure: OSError) -> None:
    if failure.errno == errno.EPIPE:
        raise SystemExit(CLOSED_PIPE)
    print(f"evo: nothing can be printed: {failure.strerror}", file=sys.stderr)
    raise SystemExit(1)


def _drop_what_is_buffered() -> None:
    """Python flushes once more when it ends, and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
