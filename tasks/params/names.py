"""One rule for the names that people give: pipelines, steps, refs and vars.

A name becomes the name of a file, a part of a dotted key and a word on a page. So it is made of letters and digits of
any script, ``-``, ``_`` and ``.``, and nothing in it can lead out of a folder or be read as markup.
"""

from __future__ import annotations

import unicodedata

MOST_BYTES = 180
"""Of a name in UTF-8: a file name may have 255, and a run's adds its date and an ending."""

RULE = "letters and digits of any script, -, _ and ., a letter or digit first and no . last"
WORD_RULE = "letters and digits of any script, - and _, a letter first, no capitals"
VARIABLE_RULE = "letters and digits of any script, - and _, a letter or _ first"


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC): the one name of what looks the same."""
    return unicodedata.normalize("NFC", name)


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a pipeline or a ref, or None."""
    good = _kinds(name, inside="-_.")[:1] in ("L", "N") and not name.endswith(".")
    return _too_long(name) or (None if good else f"use {RULE}")


def word_problem(name: str) -> str | None:
    """What is wrong with the name of a step, which is a part of dotted keys too, or None."""
    good = _kinds(name, inside="-_").startswith("L") and name == name.lower()
    return _too_long(name) or (None if good else f"use {WORD_RULE}")


def variable_problem(name: str) -> str | None:
    """What is wrong with the name of a var, which ``${vars.NAME}`` refers to, or None."""
    good = _kinds(name, inside="-_")[:1] in ("L", "_")
    return _too_long(name) or (None if good else f"use {VARIABLE_RULE}")


def _kinds(name: str, inside: str) -> str:
    """A letter for each character: L(etter), M(ark), N(umber) or one of ``inside``; empty if there is any other."""
    kinds = [character if character in inside else unicodedata.category(character)[0] for character in name]
    return "".join(kinds) if all(kind in "LMN" or kind in inside for kind in kinds) else ""


def _too_long(name: str) -> str | None:
    long = len(name.encode("utf-8", "replace")) > MOST_BYTES
    return f"it is longer than {MOST_BYTES} bytes" if long else None
