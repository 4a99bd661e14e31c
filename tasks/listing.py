"""What lies in a raw folder, local or in an object store: one look, without opening a file.

Patterns mean what they mean to `pathlib`: ``*`` and ``?`` stay within a name, ``**`` is any number of folders. Links to
folders are followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evo_core.data.files import filesystem, is_uri, local_path, read_error
from evo_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Listed:
    """One file of a raw folder.

    Attributes:
        path: relative to the folder, with forward slashes.
        uri: an absolute path, or a URI.
        size: bytes.
        modified: seconds since 1970.
        mtime_ns: the same of a local file, as the file system says it; else 0.
        tag: what an object store says of the content (its ETag); empty for a local file.
    """

    path: str
    uri: str
    size: int
    modified: float
    mtime_ns: int = 0
    tag: str = ""


def list_files(root: str, include: Sequence[str], exclude: Sequence[str] = ()) -> list[Listed]:
    """The files below `root` that match one of `include` and none of `exclude`, by path.

    Raises:
        ConfigError: there is no such folder or bucket, or it cannot be read from here.
    """
    found = _in_store(root) if is_uri(root) else _in_folder(root)
    wanted, unwanted = _any_of(tuple(include)), _any_of(tuple(exclude))
    return sorted(
        (file for file in found if wanted.fullmatch(file.path) and not unwanted.fullmatch(file.path)),
        key=lambda file: file.path,
    )


def etag(uri: str) -> str | None:
    """The ETag that an object has now; None if it is gone.

    Raises:
        DataError: the store does not answer.
    """
    fs, path = filesystem(uri)
    try:
        fs.invalidate_cache(path.rpartition("/")[0])
        return _tag(fs.info(path))
    except FileNotFoundError:
        return None
    except Exception as error:  # every library of a store has its own
        raise read_error(uri, error) from error


def _in_folder(root: str) -> Iterator[Listed]:
    top = local_path(root).absolute()
    if not top.is_dir():
        raise ConfigError(f"the raw folder {root} does not exist", key="root", hint="make it, or change the path")
    seen: set[tuple[int, int]] = set()
    folders = [(str(top), "")]
    while folders:
        folder, prefix = folders.pop()
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue  # a link back up
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    status = entry.stat()
                    yield Listed(
                        f"{prefix}{entry.name}", entry.path, status.st_size, status.st_mtime, status.st_mtime_ns
                    )


def _in_store(root: str) -> Iterator[Listed]:
    for path, details in _find(root).items():
        if details.get("type", "file") != "file" or path.endswith("/"):
            continue
        tag = _tag(details)
        if not tag:
            raise ConfigError(f"{root} does not say what its objects hold (no ETag)", key="root", hint="use s3://")
        modified = details.get("LastModified") or details.get("mtime") or 0
        seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
        yield Listed(details["below"], details["uri"], int(details["size"]), seconds, tag=tag)


def _find(root: str) -> dict[str, dict[str, Any]]:
    """Every object below a URI: its path in the store to what the listing says, with its ``uri`` and ``below``."""
    try:
        fs, top = filesystem(root)
        fs.invalidate_cache()  # listings are remembered by the process otherwise
        found = fs.find(top, detail=True)
        if not found and not fs.exists(top):
            raise FileNotFoundError
    except FileNotFoundError:
        raise ConfigError(f"there is nothing at {root}", key="root", hint="check bucket and prefix") from None
    except DataError as error:
        raise ConfigError(f"{root}: {error.message}", key="root", hint=error.hint) from None
    except Exception as error:  # every library of a store has its own
        hint = read_error(root, error).hint
        raise ConfigError(f"{root} cannot be listed: {error}", key="root", hint=hint) from error
    prefix = top.rstrip("/") + "/"
    return {
        path: {**details, "uri": fs.unstrip_protocol(path), "below": path.removeprefix(prefix)}
        for path, details in found.items()
        if path.startswith(prefix)
    }


def _tag(details: dict[str, Any]) -> str:
    return str(details.get("ETag") or details.get("etag") or "").strip('"')


@lru_cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{_expression(pattern)})" for pattern in patterns) or r"(?!)", re.DOTALL)


def _expression(pattern: str) -> str:
    """A pattern as a regular expression."""
    *folders, name = pattern.split("/")
    parts = ["(?:[^/]+/)*" if folder == "**" else f"{_of_name(folder)}/" for folder in folders]
    return "".join(parts) + (".*" if name == "**" else _of_name(name))


def _of_name(pattern: str) -> str:
    parts = re.split(r"(\*+|\?|\[!?\]?[^\]]*\])", pattern)
    return "".join(_of_part(part) for part in parts)


def _of_part(part: str) -> str:
    if part.startswith("*"):
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if len(part) > 2 and part.startswith("[") and part.endswith("]"):
        body = part[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        return f"(?![/])[^{body[1:]}]" if body.startswith("!") else f"(?![/])[{body}]"
    return re.escape(part)
