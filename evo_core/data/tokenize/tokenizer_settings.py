"""What the files beside a tokenizer say: which tokens begin and end a text, and which its vocabulary has besides.

``tokenizer_config.json``, and where that has no ``added_tokens_decoder``, the older ``special_tokens_map.json`` and
``added_tokens.json``: read as transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_core.errors import DataError

CONFIG, NAMES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SIDE_FILES = (CONFIG, NAMES, ADDED)

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_REQUIRED = _NAMED[:4]
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_DECODER = "added_tokens_decoder"


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary, or one of its unused ids that was given a name.

    Attributes:
        id: in the vocabulary, or beyond it.
        content: how it is spelled.
        special: whether it is only ever written by a chat template; else it is found in every text.
        lstrip, rstrip: whether the white space before and after it belongs to it.
        single_word: whether it is found only where no letters stand beside it.
    """

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of one folder.

    Attributes:
        files: those that were read.
        added: in the order of their ids.
        add_bos: whether a text begins with the begin token; None where nothing says it.
        legacy: whether what stands behind a token begins as a text of its own, with a space put before it, as in early
            versions of transformers.
    """

    files: tuple[Path, ...] = ()
    added: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    legacy: bool = False
    _names: tuple[tuple[str, str, Path], ...] = ()
    _others: tuple[str, ...] = ()
    _without: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """``bos_token`` and the like: what they name."""
        return {key: content for key, content, _ in self._names}

    @property
    def special(self) -> tuple[str, ...]:
        """Every spelling that is said to be special, in the vocabulary or not."""
        return (*self.names.values(), *self._others, *(token.content for token in self.added if token.special))

    def denies(self, key: str) -> bool:
        """Whether it is stated that there is no such token (``"bos_token": null``)."""
        return key in self._without

    def ids(self, token_id: Callable[[str], int | None]) -> dict[str, int]:
        """``bos_token`` and the like: their ids.

        Args:
            token_id: spelling to id.

        Raises:
            DataError: the vocabulary lacks one that begins, ends or fills a text or stands for what is unknown.
        """
        found = {}
        for key, content, file in self._names:
            token = token_id(content)
            if token is not None:
                found[key] = token
            elif key in _REQUIRED:
                raise DataError(
                    f"names {content!r}, which the vocabulary does not have",
                    file=file,
                    key=key,
                    hint=f"name a token that it has, or give this one an id in {_DECODER} of {CONFIG}",
                )
        return found


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings in a folder; without any of the files, those that say nothing.

    Raises:
        DataError: a file is not JSON, or its tokens are not as they should be.
    """
    files = tuple(path for name in SIDE_FILES if (path := folder / name).is_file())
    config = read_json_object(folder / CONFIG)
    stated = dict.fromkeys(config, folder / CONFIG)
    merged = dict(config)
    if _DECODER not in config:
        names = read_json_object(folder / NAMES)
        merged |= names
        stated |= dict.fromkeys(names, folder / NAMES)
    named = {key: content for key in _NAMED if (content := _content(merged.get(key), key, stated.get(key))) is not None}
    others = tuple(_other_tokens(merged, stated))
    special = {*named.values(), *others}
    added = _decoder(config, folder / CONFIG) if _DECODER in config else _older(folder / ADDED, special)
    add_bos = config.get("add_bos_token")
    return TokenizerSettings(
        files,
        tuple(sorted(added, key=lambda token: token.id)),
        add_bos if isinstance(add_bos, bool) else None,
        config.get("legacy") is True,
        tuple((key, content, stated[key]) for key, content in named.items()),
        others,
        tuple(key for key in _NAMED if key in merged and merged[key] is None),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file.

    Raises:
        DataError: it is not JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})", file=path) from None
    if not isinstance(settings, dict):
        raise DataError(f"expected a JSON object, not {type(settings).__name__}", file=path)
    return settings


def _content(value: Any, key: str, file: Path | None) -> str | None:
    """A token's spelling: a string, or an object that has it."""
    value = value.get("content") if isinstance(value, dict) else value
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(f"{value!r} is no token: expected its spelling", file=file, key=key)
    return value


def _other_tokens(merged: Mapping[str, Any], stated: Mapping[str, Path]) -> Iterator[str]:
    for key in _LISTS:
        values = merged.get(key) or ()
        if isinstance(values, dict):  # name to token, as newer files have it
            values = values.values()
        elif not isinstance(values, list | tuple):
            raise DataError("expected a list of tokens", file=stated[key], key=key)
        for value in values:
            if (content := _content(value, key, stated[key])) is not None:
                yield content


def _decoder(config: Mapping[str, Any], file: Path) -> Iterator[AddedToken]:
    entries = config[_DECODER]
    if not isinstance(entries, dict):
        raise DataError("expected an object of ids and tokens", file=file, key=_DECODER)
    for text, entry in entries.items():
        key = f"{_DECODER}.{text}"
        content = _content(entry, key, file) if isinstance(entry, dict) else None
        if content is None:
            raise DataError("expected an object with the token's `content`", file=file, key=key)
        flags = ("special", "lstrip", "rstrip", "single_word")
        yield AddedToken(_id(text, file, key), content, **{flag: entry.get(flag) is True for flag in flags})


def _older(file: Path, special: set[str]) -> Iterator[AddedToken]:
    """``added_tokens.json``: spelling to id."""
    for content, token in read_json_object(file).items():
        yield AddedToken(_id(token, file, content), content, special=content in special)


def _id(value: Any, file: Path, key: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or value < 0:
        raise DataError(f"{value!r} is no token id", file=file, key=key)
    return value
