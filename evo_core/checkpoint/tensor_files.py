"""Where `torch.distributed.checkpoint` writes a folder of tensors: on disk or in a store, with digests as it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.utils.serialization import config as archives

from evo_core.checkpoint.records import Digests, FileRecord
from evo_core.pulse import beat
from evo_core.storage.files import below
from evo_core.storage.location import Location, file_name
from evo_core.storage.streams import Sink, new_file

_DRAFT = ".tmp"


class Writer(FileSystemWriter):
    """Writes a new folder of tensors, of which other ranks write other files.

    Args:
        size: bytes of the tensors that this rank writes.

    Attributes:
        records: of the files that this rank has written, by name.
    """

    def __init__(self, folder: Location, size: int) -> None:
        super().__init__("", sync_files=False)  # a file is durable when it is closed, and no other of this machine is
        files = _Files(size)
        self.fs: Any = files
        self.path = folder
        self.records = files.records

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        """Write this rank's file, without checksums of the archives in it: they take longer than its digest."""
        with archives.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            return super().write_data(*args, **kwargs)


class _Files(FileSystemBase):
    """Files by the storage verbs. None is there before, and the manifest vouches for all: so no draft is needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        path = _without_draft(path)
        with new_file(path, self._size) as sink:
            stream = _Stream(sink)
            try:
                yield stream
            except Exception:
                if stream.failure is not None:  # an archive that cannot be written has words of its own for it
                    raise stream.failure from None
                raise
        self.records[file_name(path)] = stream.digests.record()

    def concat_path(self, path: Any, suffix: str) -> Any:
        return below(path, suffix)

    def init_path(self, path: Any) -> Any:
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        assert _without_draft(path) == new_path

    def mkdir(self, path: Any) -> None:
        if isinstance(path, Path):
            path.mkdir(exist_ok=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def exists(self, path: Any) -> bool:
        return False

    def rm_file(self, path: Any) -> None:
        raise AssertionError(path)


class _Stream:
    """What an archive is written into: it passes everything on, and its digest too."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._size = sink, 0
        self.digests = Digests()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self._sink.write(view)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self.digests.update(view)
        self._size += len(view)
        beat()
        return len(view)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _without_draft(path: Location) -> Location:
    name = file_name(path).removesuffix(_DRAFT)
    return path.with_name(name) if isinstance(path, Path) else path.removesuffix(_DRAFT)
