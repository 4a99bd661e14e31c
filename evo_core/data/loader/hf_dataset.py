"""Opening a Hugging Face data set: a local folder or file, or a hub's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.errors import DataError
from evo_core.storage.location import is_hub_id, local_path

if TYPE_CHECKING:
    from datasets import IterableDataset

_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def open_stream(name: str, subset: str | None = None) -> IterableDataset:
    """The training part of a data set, to be read from its beginning.

    Args:
        name: a folder of files or one file (JSON lines, Parquet, CSV, text; also compressed), or a hub's owner/name.
        subset: a folder inside it.

    Raises:
        DataError: it cannot be opened.
    """
    import datasets

    path = local_path(name)
    options: dict[str, str] = {}
    if is_hub_id(name):
        source = name
    elif path.is_dir():
        source = str(path)
    elif path.is_file():
        source, options = _format(path), {"data_files": str(path)}
    else:
        raise DataError("there is no such data set", file=path, hint="name a folder of files, a file or a hub's id")
    if subset is not None:
        options["data_dir"] = subset
    try:
        # Versions that know loading scripts run those of a folder and of a hub unless told not to.
        return datasets.load_dataset(source, split="train", streaming=True, trust_remote_code=False, **options)
    except Exception as error:  # the library's errors are of many kinds
        if is_hub_id(name):
            raise DataError(
                f"the hub's data set {name} cannot be opened ({_first_line(error)})",
                key="data.train_folder",
                hint=f"without a way to the hub name a local folder: copy the data set with `hf download --repo-type "
                f"dataset {name} --local-dir FOLDER` where there is one",
            ) from error
        raise unreadable(name, error) from error


def _format(path: Path) -> str:
    """The name that `datasets` has for a file's format."""
    known = [_FORMATS[suffix] for suffix in map(str.lower, path.suffixes) if suffix in _FORMATS]
    if not known:
        raise DataError("is of an unknown format", file=path, hint=f"known are {', '.join(_FORMATS)}")
    return known[-1]


def unreadable(name: str, error: Exception) -> DataError:
    """The error for a data set that the library fails to read."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return DataError(f"the data set cannot be read ({_first_line(cause)})", file=name)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
