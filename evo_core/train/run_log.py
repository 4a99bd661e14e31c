"""Log lines in InternEvo's form, from one rank, to the console and to the run's folder."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from evo_core.errors import ConfigError
from evo_core.train.terminal import ProgressLine, on_terminal

FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)d in %(funcName)s -- %(message)s"
FILE = "train.log"


class _Lossy(logging.Handler):
    """Where lines cannot be written (a full disk, a reader that went away) this is said once, and the run goes on."""

    lost = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.lost:
            self.lost = True
            with suppress(OSError):
                print(f"{self.name}: log lines are lost: {error.strerror}", file=sys.stderr, flush=True)

    def close(self) -> None:
        with suppress(OSError):  # what is still in its buffer
            super().close()


class _Console(_Lossy, logging.StreamHandler):
    """Lines on stdout, above what is drawn at the bottom of it."""

    above: Callable[[str], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.above is None:
            super().emit(record)
            return
        try:
            self.above(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        super().handleError(record)
        if self.lost and self.stream is sys.stdout:
            # What is in the buffer would fail again when the interpreter ends, and change the exit status.
            with suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _File(_Lossy, logging.FileHandler):
    """Lines in a file."""


class RunLog:
    """Where the lines of a run go.

    Args:
        speaks: whether this rank prints; the others show warnings only.
    """

    def __init__(self, *, speaks: bool) -> None:
        self._speaks = speaks
        self._console = _Console(sys.stdout)
        self._console.name = "stdout"
        # The first lines come before the run's folder is known: they wait for it.
        self._waiting = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
        self.handlers: list[logging.Handler] = [self._console, self._waiting]
        for handler in self.handlers:
            handler.setFormatter(logging.Formatter(FORMAT))
            handler.setLevel(logging.INFO if speaks else logging.WARNING)

    @contextmanager
    def progress_line(self, done: int, total: int) -> Iterator[ProgressLine | None]:
        """A line at the bottom of the terminal while the block lasts; None where nothing is to be seen there."""
        if not self._speaks or not on_terminal():
            yield None
            return
        line = ProgressLine(done, total)
        self._console.above = line.above
        try:
            yield line
        finally:
            self._console.above = None
            line.close()

    def keep_in(self, folder: Path) -> None:
        """Append all lines, past and future, to ``train.log`` in the run's folder, if this rank prints.

        Raises:
            ConfigError: it cannot be written.
        """
        logger = logging.getLogger("evo_core")
        logger.removeHandler(self._waiting)
        self.handlers.remove(self._waiting)
        if self._speaks:
            try:
                file = _File(folder / FILE)
            except OSError as error:
                raise ConfigError(f"cannot be written: {error.strerror}", file=folder / FILE) from error
            file.name = str(folder / FILE)
            file.setFormatter(logging.Formatter(FORMAT))
            self._waiting.setTarget(file)
            self._waiting.flush()
            logger.addHandler(file)
            self.handlers.append(file)
        self._waiting.close()


@contextmanager
def logging_of_run(*, speaks: bool) -> Iterator[RunLog]:
    """Show what `evo_core` logs while a run lasts; afterwards logging is as it was."""
    logger = logging.getLogger("evo_core")
    level, propagate = logger.level, logger.propagate
    log = RunLog(speaks=speaks)
    for handler in log.handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # someone else's root handler would print every line a second time
    try:
        yield log
    finally:
        for handler in log.handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate
