"""Values that came from the environment: they may be secrets, and are shown as the references they were written as."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

E = TypeVar("E", bound=BaseException)

SHORTEST = 4
"""Characters from which on a value is looked for in running text. A shorter one (``1``, ``en``) is in every second
sentence; it is concealed only where it stands by its key."""
LONGER_THAN_WORDS = 8
"""Characters from which on a value is looked for inside words too; `data` is not concealed in `database`."""


class Secrets:
    """The values of one document that came from the environment.

    Attributes:
        references: dotted key to the reference written there, such as ``${oc.env:NAME}``.
        texts: each value to the reference it stands for.
    """

    def __init__(self, references: Mapping[str, str] | None = None, texts: Mapping[str, str] | None = None) -> None:
        self.references = dict(references or {})
        self.texts = {text: reference for text, reference in (texts or {}).items() if text}

    def hold(self, key: str) -> bool:
        """Whether the value at a dotted key, or one below it, came from the environment."""
        return any(known == key or known.startswith(f"{key}.") for known in self.references)

    def conceal(self, text: str, key: str | None = None) -> str:
        """The text with references in place of values.

        Args:
            text: words for people, or a path.
            key: what the text is about; the value of that key is found however short it is.
        """
        own = self.references.get(key) if key is not None else None
        written = {
            form: reference
            for value, reference in self.texts.items()
            if len(value) >= SHORTEST or reference == own
            for form in _forms(value)
        }
        if not written:
            return text
        # References first: what is concealed already may hold the word that another value is.
        patterns = [re.escape(one) for one in _longest_first(written.values())]
        patterns += map(_pattern, _longest_first(written))
        return re.sub("|".join(patterns), lambda match: written.get(match[0], match[0]), text)

    def shown(self, data: Any, at: str) -> Any:
        """Plain data from below the dotted key ``at`` as it may be stored and shown."""
        if at in self.references:
            return self.references[at]
        if isinstance(data, dict):
            return {name: self.shown(value, f"{at}.{name}") for name, value in data.items()}
        if isinstance(data, list | tuple):
            return [self.shown(value, f"{at}.{index}") for index, value in enumerate(data)]
        return self.conceal(data) if isinstance(data, str) else data

    def concealed(self, error: E) -> E | RuntimeError:
        """The error without values, in its own words and in those of the errors behind it.

        One whose words cannot be changed gives way to a RuntimeError with the same words.
        """
        if not self.texts or not self._told_by(error):
            return error
        chain = list(_chain(error))
        for one in chain:
            key = getattr(one, "key", None)
            one.args = tuple(self._in(value, key) for value in one.args)
            for name, value in vars(one).items():
                setattr(one, name, self._in(value, key))
            if isinstance(one, SystemExit):  # its words are kept beside its arguments
                one.code = self._in(one.code, key)
        if self._told_by(error):
            error.__cause__, error.__suppress_context__ = None, True
        if self._told_by(error):
            told = f"{type(error).__name__}: {self.conceal(str(error))}"
            return RuntimeError(told).with_traceback(error.__traceback__)
        return error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """No error that leaves the block tells a value."""
        try:
            yield
        except Exception as error:
            concealed = self.concealed(error)
            if concealed is error:
                raise
            raise concealed from None

    def _told_by(self, error: BaseException) -> bool:
        text = "".join(traceback.format_exception(error))
        key = getattr(error, "key", None)
        return self.conceal(text) != text or self.conceal(str(error), key) != str(error)

    def _in(self, value: Any, key: str | None) -> Any:
        if isinstance(value, Path):
            return Path(self.conceal(str(value)))
        return self.conceal(value, key) if isinstance(value, str) else value


def _forms(value: str) -> Iterator[str]:
    """A value as programs write it: as it is or line by line, in a Python literal, in JSON and in a URL."""
    lines = [line.strip() for line in value.splitlines()]
    for text in (value, *(line for line in lines if len(line) >= LONGER_THAN_WORDS)):
        yield from (text, repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        yield from (quote(text, safe=safe, errors="replace") for safe in ("", "/"))
        yield quote_plus(text, errors="replace")


def _longest_first(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=len, reverse=True)


def _pattern(value: str) -> str:
    if len(value) >= LONGER_THAN_WORDS:
        return re.escape(value)
    before = r"(?<!\w)" if re.match(r"\w", value) else ""
    after = r"(?!\w)" if re.search(r"\w$", value) else ""
    return f"{before}{re.escape(value)}{after}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came from, or came up while one was handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
