"""``${each.NAME}``: a step's own value of a variable of its foreach.

It is not put in as text. The rows become a block of the document and ``${each.lr}`` becomes ``${each.3.lr}``, which is
resolved with every other reference and by the same rules; so a number stays a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evo_core.config import references
from evo_core.config.resolve import Document
from evo_core.config.suggest import suggest
from flows.pipeline.foreach.tables import Row

VALUES = "each"
"""The block of the expanded document that holds the rows."""

_EACH = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*each\s*(?:[.\[]\s*([^\s.\[\]{}:]+)|\})")


def without_values(document: Document) -> dict[str, Any]:
    """The document's data with references resolved, and nothing where ``${each.…}`` stands.

    Raises:
        ConfigError: a value of a foreach comes from the environment, or a reference leads nowhere.
    """
    masked = references.replace_texts(document.data, lambda _, text: "" if _EACH.search(text) else text)
    plain = references.resolve_values(masked, document.place)
    for key, reference in references.environment_references(plain).items():
        block, _, rest = key.partition(".")
        if block == "steps" and rest.split(".")[1:2] == ["foreach"]:
            hint = "write it in the file, or give it by --set"
            raise document.error(f"{reference} may be a secret, and steps are named by this", key, hint)
    return plain


def with_values(
    document: Document, name: str, step: Mapping[str, Any], row: Row, number: int, steps: Mapping[str, str]
) -> dict[str, Any]:
    """One step of a sweep: the written one with references to its own values, and to its own steps.

    Args:
        number: of the row in the document's block.
        steps: what the names of sweeps mean for this step: itself, and what it needs.
    """

    def text_at(key: str, text: str) -> str:
        def own(match: re.Match[str]) -> str:
            if match[1] not in row:
                known, where = [f"${{each.{variable}}}" for variable in row], f"steps.{name}.{key}"
                meant = suggest(match[1], row) if match[1] else ""
                what = f"there is no variable {match[1]!r}{meant}" if match[1] else "${each} is no value"
                raise document.error(what, where, f"its values: {', '.join(known)}")
            return match[0].replace(VALUES, f"{VALUES}.{number}", 1)

        text = _EACH.sub(own, text)
        for sweep, instance in steps.items():
            text = re.sub(rf"(\$\{{\s*steps\.){re.escape(sweep)}(?=[.\[}}\s])", rf"\g<1>{instance}", text)
        return text

    return references.replace_texts({key: value for key, value in step.items() if key != "foreach"}, text_at)


def refuse_values(document: Document, data: Mapping[str, Any], why: str) -> None:
    """Raise `ConfigError` where ``${each.…}`` stands in data that has no such values."""
    for key, text in references.strings(data):
        if match := _EACH.search(text):
            named = match[0][match[0].index("${") :].rstrip("}")
            raise document.error(f"{named}}} is a value of a foreach, and {why}", key)
