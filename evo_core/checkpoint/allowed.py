"""Which tensors of a model a checkpoint may lack, and which it may have beside them; anything else is an error.

Names are those of the model, in the checkpoint of another system too; a tensor there that the model does not have goes
by the name it would have in it, or else by its own.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from evo_core.config import suggest
from evo_core.errors import CheckpointError
from evo_core.storage.location import Location

_WRITTEN = 20
"""Patterns that a message writes out; whoever needs more of them has another model there."""

Sizes = tuple[int, ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Allow:
    """Names, or shell patterns (`fnmatch.fnmatchcase`) of them.

    Attributes:
        missing: tensors of the model that keep their first weights where the checkpoint lacks them.
        unexpected: tensors of the checkpoint that are left there where the model does not have them.
        as_options: whether they are given to ``evo train --init``, and not in ``ckpt.load_ckpt_info``.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    as_options: bool = False

    def key(self, kind: str) -> str:
        """Where one of the two is said."""
        return f"--init-allow-{kind}" if self.as_options else f"ckpt.load_ckpt_info.allow.{kind}"


NOTHING = Allow()


def content_to_state(names: Sequence[str], allow: Allow | None) -> tuple[str, str]:
    """Key and hint of an error about what is to be taken of a checkpoint: what to state, where the start is stated."""
    if allow is not None and allow.as_options:
        return "--init-content", f"give --init-content {' '.join(names)}"
    return "ckpt.load_ckpt_info.content", f"write content: {json.dumps(names)}"


@dataclass(frozen=True)
class Difference:
    """What is allowed of the difference between a checkpoint and a model, by name.

    Attributes:
        missing: tensors that are not read.
        unexpected: tensors that are left.
        idle: patterns for tensors of which there is no such difference.
        common: tensors of both.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    common: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def tell(self, folder: Location) -> None:
        """Say in the log what was not read of a checkpoint."""
        for what, names in (("lacks, first weights were drawn", self.missing), ("has, left unread", self.unexpected)):
            if names:
                log.info("%s %s: %s (tensors: %d)", folder, what, ", ".join(shortened(names, self.common)), len(names))
        if self.idle:
            log.warning("%s: nothing differs there of %s, which is allowed to", folder, ", ".join(self.idle))


def differing(
    wanted: Mapping[str, Sizes], stored: Mapping[str, Sizes], allow: Allow | None, folder: Location
) -> Difference:
    """Compare names and shapes of a model's tensors with those of a checkpoint.

    Args:
        wanted: of the model; of a tensor without elements there is nothing to store.
        stored: of the checkpoint.
        allow: what may differ; None where nobody could say, and so a message does not tell how.

    Raises:
        CheckpointError: names differ that may not, or all do; a shape differs; a pattern means no tensor.
    """
    missing = sorted(name for name in set(wanted) - set(stored) if 0 not in wanted[name])
    unexpected = sorted(set(stored) - set(wanted))
    given = allow or NOTHING
    _check_patterns(given.missing, wanted, "this model", given.key("missing"), folder)
    _check_patterns(given.unexpected, stored, "this checkpoint", given.key("unexpected"), folder)
    refused = [name for name in missing if not matches(name, given.missing)]
    left = [name for name in unexpected if not matches(name, given.unexpected)]
    common = set(wanted) & set(stored)
    misshapen = [name for name in wanted if name in common and wanted[name] != stored[name]]
    problems = []
    if refused or (missing and not common):
        problems.append(f"lacks {listed(refused or missing)}")
    if left or (unexpected and not common):
        problems.append(f"has {listed(left or unexpected)}, which this model does not have")
    if misshapen:
        shapes = [f"{name} has shape {list(stored[name])} there and {list(wanted[name])} here" for name in misshapen]
        problems.append(listed(shapes))
    if problems:
        hint = None if allow is None or misshapen else _hint(given, refused, left, wanted, stored)
        raise CheckpointError("; ".join(problems), file=folder, hint=hint)
    idle = [p for p in given.missing if not any(matches(name, [p]) for name in missing)]
    idle += [p for p in given.unexpected if not any(matches(name, [p]) for name in unexpected)]
    return Difference(tuple(missing), tuple(unexpected), tuple(idle), frozenset(common))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of some, or fits one of some patterns."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def listed(names: Collection[str]) -> str:
    """The first names of some, and how many there are beside them."""
    names = list(names)
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def shortened(names: Iterable[str], others: Collection[str]) -> list[str]:
    """Names, with ``*`` in place of numbers where it stands for more of them and for none of some others."""
    patterns: list[str] = []
    for name in names:
        if matches(name, patterns):
            continue
        every_layer = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        this_layer = re.sub(r"(?<=\.)(\d+)\..*", r"\1.*", name, count=1)
        fitting = (p for p in (every_layer, this_layer) if not any(matches(other, [p]) for other in others))
        patterns.append(next(fitting, name))
    return patterns


def _check_patterns(patterns: Iterable[str], names: Collection[str], where: str, key: str, folder: Location) -> None:
    """A pattern with a slip in it would allow nothing, or the wrong thing later."""
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            message = f"{pattern} is no tensor of {where}{suggest(pattern, names)}"
            raise CheckpointError(
                message, file=folder, key=key, hint=f"its names are like {', '.join(list(names)[:3])}"
            )


def _hint(
    given: Allow, refused: list[str], left: list[str], wanted: Mapping[str, Sizes], stored: Mapping[str, Sizes]
) -> str | None:
    """What to write to start all the same."""
    common = set(wanted) & set(stored)
    lists = {
        "missing": [*given.missing, *shortened(refused, common)],
        "unexpected": [*given.unexpected, *shortened(left, common)],
    }
    if not common:
        return "no tensor there has a name of this model's: it is of another family (model_type), or all have a prefix"
    if sum(map(len, lists.values())) > _WRITTEN:
        return "that is another model: name the model block that it was trained with"
    if given.as_options:
        words = [f"{given.key(kind)} '{pattern}'" for kind, found in lists.items() for pattern in found]
        written = f"give {' '.join(words)}"
    else:
        found = ", ".join(f"{kind}: {json.dumps(patterns)}" for kind, patterns in lists.items() if patterns)
        written = f"write allow: {{{found}}} in ckpt.load_ckpt_info"
    what = " and ".join(
        text
        for text, names in (("draw first weights for what it lacks", refused), ("leave what is left over", left))
        if names
    )
    return f"to {what}, {written}"
