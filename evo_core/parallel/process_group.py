"""From torchrun's or Slurm's environment, or from nothing, to a process group that survives restarts.

This and `evo_core.parallel.environment` are the only pages that know how ranks find each other. One process gets a
process group of its own, so that nothing above asks whether there are several.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from evo_core.errors import ConfigError
from evo_core.parallel.environment import Launcher, RankInfo, read_rank_info
from evo_core.process import die_with_launcher, stop_signals

CONNECT_TIMEOUT = timedelta(minutes=5)
"""For ranks to find each other: nodes of a large job do not start at the same moment."""

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For one collective: the others wait this long while one rank reads data or writes a checkpoint."""

_RECORDED = 2000
"""Collectives that torch's flight recorder keeps, for the watchdog to say which are open."""

_ECHO_SECONDS = 5.0


@dataclass
class Stop:
    """Whether this process was told to stop, by SIGTERM, SIGINT or SIGHUP.

    A terminal and torchrun both pass on Ctrl-C, so a signal repeated within five seconds is the same request; one
    that comes later ends the process at once.
    """

    signal: int | None = None
    _since: float = 0.0

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _ECHO_SECONDS:
            os._exit(128 + number)


@dataclass(frozen=True)
class Ranks:
    """This process among all, with its default process group made.

    Attributes:
        device: where its tensors live: its own GPU, else the CPU.
        stop: set by SIGTERM, SIGINT and SIGHUP, where they are caught.
        timeout: for which one collective of theirs may take.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    launcher: Launcher
    stop: Stop = field(default_factory=Stop)
    timeout: timedelta = COLLECTIVE_TIMEOUT

    def store(self) -> dist.Store | None:
        """A connection of its own to the store over which the ranks found each other; None where there is one rank."""
        store: Any = distributed_c10d._get_default_store()
        return store.clone() if self.world_size > 1 else None


@contextmanager
def ranks(
    launcher: str | None = None,
    backend: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
    catch_stop: bool = False,
) -> Iterator[Ranks]:
    """Join the process group, and leave it in the end.

    Inside a process that has a default process group already, that one is used and left as it is.

    Args:
        launcher: "torch" or "slurm"; None lets the environment decide.
        backend: "gloo", "nccl" or any that torch knows; default gloo, and NCCL beside it where there are GPUs.
        host: address of rank 0 instead of the launcher's.
        port: its port.
        timeout: how long one collective may take.
        catch_stop: SIGTERM, SIGINT and SIGHUP set `Ranks.stop`, which the caller then watches; else they end the
            process, as they do.

    Raises:
        ConfigError: the launcher that was asked for left no variables.
    """
    die_with_launcher()
    adopted = dist.is_initialized()
    info = _adopted_info() if adopted else read_rank_info(os.environ, launcher, host, port)
    device = _device(info, backend)
    if not adopted:
        _connect(info, backend or _backend(device), timeout)
    stop = Stop()
    previous = _install(stop) if catch_stop else {}
    failed = True
    try:
        place = (info.rank, info.world_size, info.local_rank, info.local_world_size)
        yield Ranks(*place, device, info.launcher, stop, timeout)
        failed = False
    finally:
        _restore(previous)
        # After a failure the group is left to the end of the process: taking it down would break the collectives of
        # the other ranks, and their errors would hide this one.
        if not adopted and (not failed or info.world_size == 1):
            if info.world_size > 1:
                dist.barrier()  # rank 0 may serve the store: it goes last
            dist.destroy_process_group()


def _adopted_info() -> RankInfo:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return RankInfo("single", rank, world_size, local_rank=rank, local_world_size=world_size)


def _device(info: RankInfo, backend: str | None) -> torch.device:
    """The rank's own GPU; a task that sees only its own (``--gpus-per-task=1``) counts it as number 0."""
    if backend == "gloo" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", info.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _connect(info: RankInfo, backend: str, timeout: timedelta) -> None:
    """Make the default process group, with a short patience for finding each other and a long one for collectives."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(_RECORDED))
    dist.init_process_group(
        backend,
        store=_store(info),
        rank=info.rank,
        world_size=info.world_size,
        timeout=min(CONNECT_TIMEOUT, timeout),
    )
    distributed_c10d._set_pg_timeout(timeout)


def _store(info: RankInfo) -> dist.Store:
    """The key-value store over which ranks exchange addresses.

    On one node torchrun's agent serves one store to all attempts of a job. A restarted rank would read there the
    addresses that the dead attempt left, so every attempt gets its own prefix. On several nodes the agents do not
    count restarts alike; there the launcher sets ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``, which gives every attempt
    a new port, served by rank 0.
    """
    if info.master is None:
        return dist.HashStore()
    address, port = info.master
    if info.agent_store:
        _check_agent(address, port)
        store = dist.TCPStore(address, port, is_master=False, timeout=CONNECT_TIMEOUT)
        generation = info.attempt if info.nodes == 1 else 0
        return dist.PrefixStore(f"evo/{info.run_id}/{generation}", store)
    return dist.TCPStore(
        address, port, info.world_size, is_master=info.rank == 0, timeout=CONNECT_TIMEOUT, multi_tenant=True
    )


def _check_agent(address: str, port: int) -> None:
    """Find out that the agent is gone: killed while this rank was starting, it left nothing to wait for.

    Its store was there before any rank, so a refused connection is no matter of time.
    """
    try:
        socket.create_connection((address, port), CONNECT_TIMEOUT.total_seconds()).close()
    except ConnectionRefusedError:
        message = f"nobody answers at {address}:{port}: the torchrun that started this rank has ended"
        raise ConfigError(message, key="MASTER_ADDR, MASTER_PORT") from None
    except OSError:
        pass  # a name that does not resolve yet, a network that is slow: the store is patient


def _install(stop: Stop) -> dict[int, object]:
    """Catch the signals that stop; a no-op outside the main thread, which alone can."""
    previous: dict[int, object] = {}
    for number in stop_signals():
        try:
            previous[number] = signal.signal(number, stop.handle)
        except ValueError:
            break
    return previous


def _restore(previous: dict[int, object]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
