"""Alerts: an event is told once, by one rank, to every address; one that repeats itself is told now and then."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.config.addresses import secrets_of
from evo_core.monitor.alert_file import FILE, AlertFile
from evo_core.monitor.delivery import Delivery, taken_by_feishu
from evo_core.monitor.events import REPEATED, Event, Kind
from evo_core.monitor.messages import written_for
from evo_core.storage.location import local_path

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

PERIOD = 600.0
"""Seconds between two alerts of a kind that repeats itself."""


class Alerts:
    """Tells people of events.

    Args:
        cfg: the job.
        rank: this one.
        attempt: what tells this try of the run from those before it, alike on every rank.
    """

    def __init__(self, cfg: TrainConfig, *, rank: int, attempt: str) -> None:
        self._alert, self._rank, self._attempt = cfg.monitor.alert, rank, attempt
        self._secrets = secrets_of(cfg)
        self._title = f"{os.environ.get('SLURM_JOB_ID') or 'none'}_{cfg.shown.job_name}"
        self._deliveries = [_delivery(key, address) for key, address in self._alert.addresses.items()]
        self._file: AlertFile | None = None
        self._told: dict[Kind, float] = {}
        self._held: Counter[Kind] = Counter()

    @property
    def on(self) -> bool:
        """Whether anybody is told anything."""
        return bool(self._deliveries)

    def keep_in(self, folder: Path) -> None:
        """Keep the alert file where the job says, else in the run's folder. Until then the first rank alone tells.

        Raises:
            ConfigError: it cannot be written.
        """
        if self.on:
            named = self._alert.alert_file_path
            self._file = AlertFile(local_path(named) if named else folder / FILE, self._attempt)

    def tell(self, kind: Kind, text: str, *, step: int | None = None, ident: str | None = None) -> None:
        """Tell of an event, without the secrets of the job; returns at once.

        Args:
            step: where the run is.
            ident: what tells the event from others of its kind, alike on every rank that may tell of it; default the
                step.
        """
        if self.on and not self._is_held(kind):
            self._tell(kind, self._secrets.conceal(text) + self._held_back(kind), step, ident)

    def close(self) -> None:
        """Tell how many alerts were held back, and wait some seconds for what was to be told."""
        for kind in list(self._held):
            self._tell(kind, f"{kind}: at the end of the run{self._held_back(kind)}", None, "held back")
        until = time.monotonic() + 10.0
        for delivery, _ in self._deliveries:
            delivery.close(max(0.1, until - time.monotonic()))

    def _tell(self, kind: Kind, words: str, step: int | None, ident: str | None) -> None:
        event = Event(kind, words, step, time.time(), self._rank)
        ident = f"{kind} {step if ident is None else ident}"
        if self._file.first(event, ident) if self._file is not None else self._rank == 0:
            for delivery, write in self._deliveries:
                delivery.send(write(event, self._title))

    def _is_held(self, kind: Kind) -> bool:
        if kind not in REPEATED:
            return False
        now = time.monotonic()
        if now - self._told.get(kind, -PERIOD) < PERIOD:
            self._held[kind] += 1
            return True
        self._told[kind] = now
        return False

    def _held_back(self, kind: Kind) -> str:
        count = self._held.pop(kind, 0)
        return f" ({count} more since the last alert of this kind)" if count else ""


def _delivery(key: str, address: str) -> tuple[Delivery, Callable[[Event, str], bytes]]:
    """What sends to an address, and what writes for it."""
    write = partial(written_for, key, address)
    if key.endswith("feishu_alert_address"):
        return Delivery(key, address, taken=taken_by_feishu), write
    return Delivery(key, address), write
