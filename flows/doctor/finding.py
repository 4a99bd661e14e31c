"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["ok", "not here", "warning", "problem"]
"""`not here` is said of what nobody needs to have; a warning may be meant; a problem breaks runs."""


@dataclass(frozen=True)
class Finding:
    """One line about a subject. `hint` is what to do about it."""

    subject: str
    verdict: Verdict
    message: str
    hint: str | None = None

    def record(self) -> dict[str, str | None]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """What the doctor is asked to look at.

    Attributes:
        root: the store, a folder; or a location in S3. None: the one that a run would take.
        clusters: names or files of clusters that have to be usable from here.
    """

    root: str | None = None
    clusters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """A subject, how to look at it, and the seconds that may take."""

    subject: str
    look: Callable[[Asked], Iterable[Finding]]
    seconds: float = 15.0
