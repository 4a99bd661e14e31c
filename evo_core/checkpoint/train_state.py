"""The part of a run's state that is not tensors: where it is, kept as ``train_state.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evo_core.errors import CheckpointError, DataError
from evo_core.storage.files import below, read_if_there, write_file
from evo_core.storage.location import Location

FILE = "train_state.json"

_DATA_CURSORS_ONCE = "places"
"""The key of `TrainState.data_cursors` in files of older versions."""


@dataclass
class TrainState:
    """Where a run is. There is no random state: what is random is drawn from (seed, name) or (seed, step).

    Attributes:
        step: batches drawn so far, trained on or not; the next one is number `step`.
        tokens: tokens of all drawn batches, over all ranks.
        updates: successful updates: how far the learning-rate and beta2 schedules are.
        moments: updates that Adam's moments have seen; fewer than `updates` where a run began without them.
        skipped_updates: updates left out because gradients were inf or nan.
        loss: of the last step.
        scaler: state of the loss scaler.
        data_digest: of the order of the training data.
        batch_tokens: tokens of a full step over all ranks; with another number the same step means other data.
        batch_growth: packs of a step over all ranks while it grows (``rampup_batch_size``): of the first, how many more
            each time, and every how many steps; the same step means other data with others. Nothing where it does not
            grow; None in files of older versions, which do not say it.
        seed: of the run.
        folder: the run's folder, where its curve is.
        data_cursors: of data that are read one after the other, where each data-parallel rank goes on; else nothing.
    """

    step: int = 0
    tokens: int = 0
    updates: int = 0
    moments: int = 0
    skipped_updates: int = 0
    loss: float | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    data_digest: str = ""
    batch_tokens: int = 0
    batch_growth: list[int] | None = None
    seed: int = 0
    folder: str = ""
    data_cursors: list[Any] = field(default_factory=list)

    def write(self, checkpoint: Path) -> None:
        """Write it into a checkpoint folder."""
        write_file(checkpoint / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, checkpoint: Location) -> TrainState:
        """Read it from a checkpoint folder.

        Raises:
            CheckpointError: it is missing or of another version, or the store does not answer.
        """
        file = below(checkpoint, FILE)
        try:
            content = read_if_there(file)
            if content is None:
                raise ValueError("there is no such file")
            fields = json.loads(content)
            if _DATA_CURSORS_ONCE in fields:
                fields["data_cursors"] = fields.pop(_DATA_CURSORS_ONCE)
            return cls(**fields)
        except DataError as error:
            raise CheckpointError(error.message, file=file, hint=error.hint) from error
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"cannot read the training state: {error}", file=file) from error
