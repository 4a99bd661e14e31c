"""A JSON list read record by record, so that its size does not matter.

What is no list is one record, or several behind each other, as in a file of lines that is named ``.json``.

Records are parsed by Python's own JSON reader (which InternEvo's tool uses too) from a window of the text that grows
only where a record does not fit.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from evo_core.data.raw.unreadable import UnreadableRecord

_SPACE = re.compile(r"[ \t\n\r]*")
_WINDOW = 1 << 20

# A word or an escape that the window cuts (`-Infinity`, `\uD83D\uDE00`) is not called wrong before it is whole.
_LONGEST_WORD = 16

# A string, one that the window cuts, or a bracket.
_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)

_DECODER, _DECODER_OF_LONG_NUMBERS = json.JSONDecoder(), json.JSONDecoder(parse_int=float)


class JsonListError(Exception):
    """The text is no list of records.

    Attributes:
        line: where, from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def read_json_list(chunks: Iterable[bytes], *, most_bytes: int) -> Iterator[tuple[int, Any]]:
    """(line at which it starts from 1, record) for each record of a list, or of the records that stand there alone.

    One that is nested too deeply to be read is an `UnreadableRecord`.

    Args:
        chunks: the bytes of the text, UTF-8.
        most_bytes: a record may not be longer than about this.

    Raises:
        JsonListError: there is no record, the text is cut off, it is not UTF-8, or a record is too long.
    """
    text = _Window(chunks)
    first = text.after_space()
    if not first:
        raise text.error("expected a list of records: [...]")
    if first != "[":
        while text.after_space():
            line = text.line()
            yield line, _record(text, most_bytes)
        return
    text.position += 1
    if text.after_space() == "]":
        text.position += 1
    else:
        while True:
            text.after_space()
            line = text.line()
            yield line, _record(text, most_bytes)
            follows = text.after_space()
            if follows not in {",", "]"}:
                what = "cut off: the list has no end" if not follows else "expected , or ] after a record"
                raise text.error(what)
            text.position += 1
            if follows == "]":
                break
    if text.after_space():
        raise text.error("there is text after the list")


def _record(text: _Window, most_bytes: int) -> Any:
    decoder = _DECODER
    while True:
        try:
            record, end = decoder.raw_decode(text.window, text.position)
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.window) - _LONGEST_WORD
            if cut and text.more(text.ahead()):
                _check_size(text, most_bytes)
                continue
            line = text.line() + text.window.count("\n", text.position, error.pos)
            ended = error.msg.startswith("Unterminated string") or error.pos >= len(text.window.rstrip())
            what = "cut off" if ended else f"not JSON ({error.msg})"
            raise JsonListError(what, line) from None
        except RecursionError:
            text.position = _end(text, most_bytes)
            return UnreadableRecord("it is nested too deeply")
        except ValueError:  # Python refuses to read integers of thousands of digits
            decoder = _DECODER_OF_LONG_NUMBERS
            continue
        # A number that ends with the window, or has its point there, may go on after it.
        length = end - text.position
        if end < len(text.window) - _LONGEST_WORD or not text.more(_WINDOW):
            _check_size(text, most_bytes, length)
            text.position += length
            return record


def _end(text: _Window, most_bytes: int) -> int:
    """Where the list or object at the position ends, told by its brackets alone."""
    while True:
        depth = 0
        for found in _STRUCTURE.finditer(text.window, text.position):
            if (mark := found[0]) == '"':
                break
            depth += (mark in "[{") - (mark in "]}")
            if depth == 0:
                _check_size(text, most_bytes, found.end() - text.position)
                return found.end()
        if not text.more(text.ahead()):
            raise text.error("cut off")
        _check_size(text, most_bytes)


def _check_size(text: _Window, most_bytes: int, length: int | None = None) -> None:
    if (len(text.window) - text.position if length is None else length) > most_bytes:
        raise text.error(f"a record has more than {most_bytes:,} bytes")


class _Window:
    """The part of the text at hand, and how far it has been read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.window = ""
        self.position = 0
        self._lines, self._counted = 0, 0  # newlines before this point of the window

    def more(self, characters: int) -> bool:
        """Read on by at least as many characters, giving up what is before the position; False at the end."""
        self.line()
        parts, size, last = [self.window[self.position :]], 0, False
        while size < characters and not last:
            chunk = next(self._chunks, b"")
            last = not chunk
            try:
                parts.append(self._decoder.decode(chunk, final=last))
            except UnicodeDecodeError:
                line = 1 + self._lines + sum(part.count("\n") for part in parts)
                raise JsonListError("not UTF-8, somewhere from this line on", line) from None
            size += len(parts[-1])
        self.window, self.position, self._counted = "".join(parts), 0, 0
        return size > 0

    def ahead(self) -> int:
        """How much to read next: twice as much each time a record does not fit, so that its time stays linear."""
        return max(_WINDOW, len(self.window) - self.position)

    def after_space(self) -> str:
        """Skip white space; the next character, or nothing at the end."""
        while True:
            match = _SPACE.match(self.window, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.window):
                return self.window[self.position]
            if not self.more(_WINDOW):
                return ""

    def line(self) -> int:
        """The line of the position, from 1."""
        self._lines += self.window.count("\n", self._counted, self.position)
        self._counted = self.position
        return 1 + self._lines

    def error(self, message: str) -> JsonListError:
        return JsonListError(message, self.line())
