"""The errors that are the user's to mend: one clear sentence that names the file, the key or line, and what to do."""

from __future__ import annotations

import traceback
from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave. Commands print it without a traceback and exit with status 2.

    Args:
        message: what is wrong, with the offending value in it.
        file: the file the mistake is in.
        line: its line, counted from 1.
        key: the dotted key, for example ``steps.model.params.adam.lr``.
        hint: what to do, as a short imperative.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.key, self.hint = message, file, line, key, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            file = printable(self.file)
            where = f"{file}:{self.line}: " if self.line else f"{file}: "
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{key}{self.message}{hint}"

    def __reduce__(self) -> tuple:
        return (_rebuild, (type(self), self.message, self.file, self.line, self.key, self.hint))


def printable(name: str | Path) -> str:
    r"""A file's name in one line that can be printed: ``\xe9`` for a byte that is not UTF-8, ``\n`` for a newline."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(name))


def _escaped(letter: str) -> str:
    is_byte = "\udc80" <= letter <= "\udcff"  # as Python reads a name that is not UTF-8
    return f"\\x{ord(letter) - 0xDC00:02x}" if is_byte else letter.encode("unicode_escape").decode()


def _rebuild(
    kind: type[UserError], message: str, file: str | Path | None, line: int | None, key: str | None, hint: str | None
) -> UserError:
    """Pickle support: a worker process hands its error to the one that asked."""
    return kind(message, file=file, line=line, key=key, hint=hint)


class ConfigError(UserError):
    """A configuration file or an override is wrong."""


class DataError(UserError):
    """Raw text, token shards or a tokenizer are wrong."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or does not fit the model."""


class DamagedError(CheckpointError):
    """A checkpoint is not as it was written; the one before it may be."""


def code_error(error: BaseException) -> str:
    """What a user's own code raised, with the file and line it came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name} line {error.lineno})"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name} line {frame.lineno})"
