"""Ways to save and load one rank's training state: this repository's, torch.distributed.checkpoint's, plain torch's.

All save the same tensors: weights, and the moments of AdamW by ZeRO's shares. A peer's are of its own, each alone in
its memory, as its writer likes them best.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from benchmarks.peer_models import Shape, evo
from evo_core.checkpoint import TrainState, load, save, verify
from evo_core.checkpoint.background import BackgroundSaves
from evo_core.checkpoint.saving import tensors_of, write
from evo_core.checkpoint.staging import Staged, stage
from evo_core.config import TrainConfig
from evo_core.model.decoder import Decoder
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.placement import Placed
from evo_core.storage.files import below
from evo_core.storage.location import Location, is_remote
from tests.parallel.meshes import mesh_of

HIDDEN, VOCABULARY, TOKENS = 512, 4096, 64
_LAYER = 12 * HIDDEN * HIDDEN
_STATE = 12
"""Bytes of a parameter: in float32 itself and two moments."""

JOB = {
    "model_type": "LLAMA2",
    "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 32},
}
"""Goes with a checkpoint as its configuration."""


def layers_of(megabytes: float, ranks: int) -> int:
    """Layers of the model of whose states each of the ranks writes about so many megabytes."""
    parameters = 1e6 * megabytes * ranks / _STATE
    return max(1, round((parameters - 2 * VOCABULARY * HIDDEN) / _LAYER))


class Training:
    """A decoder in float32 on this rank, its optimizer, and a step; the learning rate is 0, so that values stay.

    Args:
        layers: of the decoder.
        zero: ranks that share one copy of the moments.
    """

    def __init__(self, layers: int, zero: int) -> None:
        self.model: Decoder = evo(Shape(layers, HIDDEN, HIDDEN // 64, VOCABULARY))
        mesh = mesh_of(zero)
        self.optimizer = Zero1AdamW(groups_of(self.model, mesh), mesh.world, clip_grad_norm=1.0)
        ids = torch.randint(VOCABULARY, (TOKENS + 1,), generator=torch.Generator().manual_seed(dist.get_rank()))
        self._batch = ids[:-1], torch.arange(TOKENS), torch.tensor([0, TOKENS], dtype=torch.int32)
        self._labels = ids[1:]
        self.step()  # moments of other values than 0

    def step(self) -> None:
        """A whole one: forward, backward, clipping, AdamW."""
        self.optimizer.begin()
        loss = self.model(*self._batch, labels=self._labels, max_seqlen=TOKENS).loss
        self.optimizer.backward(loss, last=True)
        self.optimizer.reduce(loss.detach().double().view(1))
        self.optimizer.step(0.0, 0.95)

    def held(self) -> dict[str, Placed]:
        """All that is saved, by name."""
        parts = tensors_of(self.model, self.optimizer.state())
        return {f"{part}.{name}": each for part, named in parts.items() for name, each in named.items()}


class Begun(NamedTuple):
    """A save in the background: whether it is done, and to wait for it."""

    done: Callable[[], bool]
    wait: Callable[[], object]


class Saver(Protocol):
    """Each rank makes one; all call it alike, with a place that is new for every save."""

    def save(self, place: Location) -> None: ...

    def load(self, place: Location) -> None: ...

    def close(self) -> None: ...

    def values(self) -> dict[str, Tensor]:
        """What is saved from and loaded into."""


class BackgroundSaver(Saver, Protocol):
    """One that also saves behind the steps."""

    def begin(self, place: Location) -> Begun: ...


class Evo:
    """This repository's, with digests, manifest and everything else that a checkpoint has."""

    def __init__(self, training: Training) -> None:
        self._training, self._background = training, BackgroundSaves()
        self._cfg, self._state = TrainConfig.model_validate(JOB), TrainState(step=1)

    def save(self, place: Location) -> None:
        save(place, self._cfg, self._training.model, self._training.optimizer.state(), self._state)

    def load(self, place: Location) -> None:
        """As a run that resumes."""
        folder = below(place, "1")
        verify(folder, loads=True)
        load(folder, self._training.model, self._training.optimizer)

    def begin(self, place: Location) -> Begun:
        done = threading.Event()

        def written(staged: Staged, group: dist.ProcessGroup) -> Location:
            try:
                return write(place, self._cfg, staged, self._state, group=group)
            finally:
                done.set()

        self._background.start(tensors_of(self._training.model, self._training.optimizer.state()), written)
        return Begun(done.is_set, self._background.wait)

    def close(self) -> None:
        pass

    def values(self) -> dict[str, Tensor]:
        return {name: each.local for name, each in self._training.held().items()}


class Dcp:
    """torch.distributed.checkpoint with all its defaults; in S3 by its fsspec files and s3fs.

    Args:
        processes: write in another process in the background, not in a thread.
    """

    def __init__(self, training: Training, *, processes: bool = False) -> None:
        self._mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        self._tensors = {name: self._own(each) for name, each in training.held().items()}
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=300))
        kinds = dcp.state_dict_saver.AsyncCheckpointerType
        self._kind = kinds.PROCESS if processes else kinds.THREAD
        if processes:
            # Ranks here are daemons, which may have no children; and torch's own meet where a launcher says.
            multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")

    def save(self, place: Location) -> None:
        dcp.save(self._tensors, storage_writer=_writer(place))

    def load(self, place: Location) -> None:
        dcp.load(self._tensors, storage_reader=_reader(place))

    def begin(self, place: Location) -> Begun:
        future = dcp.async_save(
            self._tensors,
            storage_writer=_writer(place),
            process_group=self._group,
            async_checkpointer_type=self._kind,
        )
        assert isinstance(future, Future)
        return Begun(future.done, future.result)

    def close(self) -> None:
        executor = torch.distributed.checkpoint._async_process_executor
        executor._CHECKPOINT_PROCESS = None  # which ends it

    def values(self) -> dict[str, Tensor]:
        return {n: each.to_local() if hasattr(each, "to_local") else each for n, each in self._tensors.items()}

    def _own(self, placed: Placed) -> Any:
        from torch.distributed.tensor import DTensor, Shard

        whole, local = torch.empty(placed.placement.shape, device="meta"), placed.local.detach().clone()
        if local.shape == whole.shape:
            return local  # on every rank, and these share the work of writing it, as with a state of DDP
        return DTensor.from_local(local, self._mesh, [Shard(0)], shape=whole.shape, stride=whole.stride())


class Plain:
    """torch.save and torch.load: each rank a file of what it would write of a checkpoint, which no other layout reads.

    On a disk nothing waits until the bytes are there. To S3 the file goes as people do it: from a temporary folder, by
    boto3.
    """

    def __init__(self, training: Training) -> None:
        parts = stage(tensors_of(training.model, training.optimizer.state())).parts
        named = {f"{part}.{name}": each for part, there in parts.items() for name, each in there.items()}
        self._tensors = {
            f"{name}.{where}": values.detach().clone()
            for name, each in named.items()
            for where, values in each.rectangles()
        }

    def save(self, place: Location) -> None:
        if not is_remote(place):
            Path(place).mkdir(exist_ok=True)
            torch.save(self._tensors, Path(place) / self._file)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(self._tensors, Path(folder) / self._file)
            _boto3().upload_file(f"{folder}/{self._file}", *self._key(place))

    def load(self, place: Location) -> None:
        if not is_remote(place):
            self._fill(Path(place))
            return
        with tempfile.TemporaryDirectory() as folder:
            _boto3().download_file(*self._key(place), f"{folder}/{self._file}")
            self._fill(Path(folder))

    def values(self) -> dict[str, Tensor]:
        return self._tensors

    def close(self) -> None:
        pass

    @property
    def _file(self) -> str:
        return f"{dist.get_rank()}.pt"

    def _key(self, place: Location) -> tuple[str, str]:
        bucket, _, prefix = str(place).removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/{self._file}"

    def _fill(self, folder: Path) -> None:
        for name, values in torch.load(folder / self._file).items():
            self._tensors[name].copy_(values)


def _writer(place: Location) -> dcp.StorageWriter:
    if is_remote(place):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(str(place))
    return dcp.FileSystemWriter(place)


def _reader(place: Location) -> dcp.StorageReader:
    if is_remote(place):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        return FsspecReader(str(place))
    return dcp.FileSystemReader(place)


def _boto3() -> Any:
    import boto3

    return boto3.client("s3")
