"""What configuration files hold: texts, numbers, true, false, null, lists and maps of them, within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError

DEEPEST = 100
"""Levels of lists and maps inside each other."""
MOST_VALUES = 100_000
"""Values of one file, each counted as often as it is referred to."""
LARGEST_FILE = 10_000_000
"""Bytes."""
MOST_DIGITS = 400
"""Of a number. A float holds up to 309 before the point."""

Refuse = Callable[[str, str], ConfigError]
"""An error from a dotted key and what is wrong there."""


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it is missing, no regular file, too large, cannot be read, or is not UTF-8.
    """
    try:
        if path.is_dir():
            raise ConfigError("is a folder, not a file", file=path)
        if path.exists() and not path.is_file():
            raise ConfigError("is no regular file", file=path, hint="write the configuration to a file")
        if path.exists() and path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"has more than {LARGEST_FILE // 1_000_000} MB, which no configuration has", file=path)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("there is no such file", file=path) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError("holds a NUL character", file=path, line=line, hint="save it as UTF-8 text")
    return text


def check_plain(data: Any, refuse: Refuse, *, also: str = "") -> Any:
    """Plain data as a copy, with pairs of surrogates as the characters they spell.

    Args:
        also: a further type that a value may have, such as ``torch.dtype``.

    Raises:
        ConfigError: by ``refuse``: a value of another type, a key that is no text, half a surrogate pair, a
            number of too many digits, more levels or values than a configuration has.
    """
    return _Check(refuse, also).value(data, "", 0)


class _Check:
    def __init__(self, refuse: Refuse, also: str) -> None:
        self.refuse, self.also, self.count = refuse, also, 0

    def value(self, value: Any, key: str, depth: int) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise self.refuse(key, f"holds more than {MOST_VALUES} values")
        if depth > DEEPEST:
            raise self.refuse(key, f"is more than {DEEPEST} levels deep")
        if isinstance(value, dict):
            prefix = f"{key}." if key else ""
            return {
                self._name(name, key): self.value(item, f"{prefix}{name}", depth + 1) for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            items = [
                self.value(item, f"{key}.{index}" if key else str(index), depth + 1) for index, item in enumerate(value)
            ]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, str):
            return self._text(value, key)
        if isinstance(value, int) and value.bit_length() > MOST_DIGITS * math.log2(10):
            raise self.refuse(key, f"is a number of more than {MOST_DIGITS} digits")
        if value is None or isinstance(value, bool | int | float):
            return value
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind == self.also:
            return value
        raise self.refuse(key, f"is a {kind}, which is no value of a setting")

    def _name(self, name: Any, key: str) -> str:
        if not isinstance(name, str):
            raise self.refuse(key, f"the key {name!r} is no text; write it in quotes")
        return self._text(name, key)

    def _text(self, text: str, key: str) -> str:
        if text.isascii():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self.refuse(key, "holds half a surrogate pair, which is no character") from None
