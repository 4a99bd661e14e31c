"""Where a command's results go: looked at before the work, and named where they cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evo_core.errors import UserError
from evo_core.storage.files import try_writing, write_hint
from evo_core.storage.location import Location, is_remote


@contextmanager
def writing(path: Location, key: str | None = None) -> Iterator[None]:
    """What the system refuses in the block (a full disk, a folder that is gone) is an error that names the path.

    Args:
        key: the setting that the path comes from.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        hint = write_hint(path, error)
        raise UserError(f"cannot be written: {error.strerror or error}", file=path, key=key, hint=hint) from error


def check_folder(folder: Location, key: str) -> None:
    """See that files can be written into a folder, there or not yet; it is left as it was.

    Raises:
        UserError: they cannot.
    """
    with writing(folder, key):
        if is_remote(folder):
            try_writing(folder)
            return
        folder = Path(folder)
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try_writing(folder)
        finally:
            with suppress(OSError):
                for made in missing:
                    made.rmdir()
