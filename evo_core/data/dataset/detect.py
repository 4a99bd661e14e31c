"""What a document is written in, seen from its text: a natural language, code, or nothing we know.

Languages come from py3langid (140 of them), code from magika. Both are offline models that give the same answer for
the same text. They look at the beginning of a document, decoded from its tokens, since raw files are not at hand when
tokens are sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evo_core.data.shards.format import BinReader
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError

HEAD_TOKENS = 256
"""Tokens of a document that are looked at."""

CODE, OTHER = "code", "other"

# Chinese and its relatives are one type, under the name that InternEvo's folders have.
_NAMES = {"zh": "cn", "yue": "cn", "wuu": "cn", "lzh": "cn", "zxx": OTHER}

# Below this probability py3langid is guessing: numbers, tables and single words end up there.
_UNSURE = 0.2

# magika takes 10 ms a document, and prose needs no second look: code has brackets, operators and indented lines.
_SYMBOLS = frozenset("{}()[]<>=;_#$/\\|&*@~`^+\"'")
_LEAST_SYMBOLS = 0.03


class Detector:
    """Names the type of documents: ``code``, ``cn`` for Chinese, another language's ISO 639 code, or ``other``.

    Args:
        tokenizer: what the documents were tokenized with.

    Raises:
        DataError: the libraries are not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._languages, self._magika = _models()

    def types(self, reader: BinReader) -> list[str]:
        """The type of each document of a token file."""
        return [self.type_of(text) for text in self._heads(reader)]

    def type_of(self, text: str) -> str:
        """The type of a text."""
        text = text.strip()
        if not text:
            return OTHER
        if _may_be_code(text) and self._magika.identify_bytes(text.encode()).output.group == "code":
            return CODE
        language, probability = self._languages.classify(text)
        return _NAMES.get(language, language) if probability >= _UNSURE else OTHER

    def _heads(self, reader: BinReader) -> Iterator[str]:
        for document in range(len(reader)):
            ids = np.abs(reader.tokens(document)[:HEAD_TOKENS])
            # A character can be cut in two where the head ends.
            yield self._tokenizer.decode(ids.tolist()).rstrip("\N{REPLACEMENT CHARACTER}")


def detector(tokenizer: Path) -> Detector:
    """The detector for a tokenizer, loaded once in a process."""
    return _detector(tokenizer, tokenizer.stat().st_mtime_ns if tokenizer.exists() else 0)


@lru_cache(maxsize=1)
def _detector(tokenizer: Path, modified: int) -> Detector:
    return Detector(load_tokenizer(tokenizer))


@lru_cache(maxsize=1)
def _models() -> tuple[Any, Any]:
    try:
        from magika import Magika
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError(
            f"types cannot be detected: {error.name} is not installed", hint="pip install 'evo-lm[data]'"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True), Magika()


def _may_be_code(text: str) -> bool:
    symbols = sum(map(_SYMBOLS.__contains__, text))
    return symbols >= _LEAST_SYMBOLS * len(text)
