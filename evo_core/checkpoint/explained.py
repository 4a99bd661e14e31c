"""What goes wrong in reading a file of a checkpoint: damage, for which the one before may be taken, or no answer."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from evo_core.errors import CheckpointError, DamagedError, DataError
from evo_core.storage.location import Location, is_remote
from evo_core.storage.s3.trouble import hint_for


@contextmanager
def explained(file: Location, what: str = "cannot be read") -> Iterator[None]:
    """A block that reads a file of a checkpoint: what goes wrong is damage, but for a store that does not answer.

    Raises:
        DamagedError: the file is.
        CheckpointError: the store does not answer.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, DataError) as error:
        cause = error.__cause__ if isinstance(error, DataError) else error
        reason = error.message if isinstance(error, DataError) else error.strerror or str(error)
        gone = isinstance(cause, FileNotFoundError) or (isinstance(cause, OSError) and cause.errno == errno.ESTALE)
        if is_remote(file) and not gone:
            raise CheckpointError(f"{what}: {reason}", file=file, hint=hint_for(cause) if cause else None) from error
        raise DamagedError(f"{what}: {reason}", file=file) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive or pickle fails in any way it likes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedError(f"{what}: {first}", file=file) from error
