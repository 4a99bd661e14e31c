"""Collectives: what ranks send each other, each function over the group that it is given, and small ones over objects.

torch 2.13 renames ``reduce_scatter_tensor`` and ``all_gather_into_tensor`` to ``*_single`` and deprecates the old
names; torch 2.11 has only the old ones.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from evo_core.errors import UserError

T = TypeVar("T")


class RankFailed(RuntimeError):
    """What one rank did for all, or all at the same time, ended on a rank with an error that is no `UserError`.

    It is raised on every rank, so that none waits for one that gave up.
    """


_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Pending(Protocol):
    """A message under way; its output is valid after `wait`."""

    def wait(self) -> Any: ...


@dataclass
class Traffic:
    """What this rank sent in tensors, and how long it waited for them.

    Attributes:
        bytes: by collective, as rings send them: of n ranks an all-reduce sends ``2 (n - 1) / n`` of the tensor, and
            each of the others ``(n - 1) / n`` of the whole one; a message to one rank is its size, and parts of unlike
            sizes are those that are for other ranks.
        by_group: the same by collective and name of the process group.
        calls: by collective.
        waits: seconds spent in `Pending.wait`, by collective.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    by_group: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    waits: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def note(self, name: str, whole: int, group: dist.ProcessGroup) -> None:
        """Note a collective of so many bytes, all ranks' parts together; of an all-reduce twice as many."""
        self.add(name, whole * (group.size() - 1) // group.size(), group)

    def add(self, name: str, size: int, group: dist.ProcessGroup) -> None:
        """Note a message of so many bytes that this rank sends."""
        self.calls[name] += 1
        self.bytes[name] += size
        self.by_group[name, group.group_name] += size

    @property
    def waited(self) -> float:
        """Seconds spent in `Pending.wait`."""
        return sum(self.waits.values())


_traffic: Traffic | None = None


@contextmanager
def counting() -> Iterator[Traffic]:
    """Count this rank's traffic in the block, as a benchmark does; one block at a time."""
    global _traffic
    _traffic = traffic = Traffic()
    try:
        yield traffic
    finally:
        _traffic = None


_waited = 0.0


def seconds_waited() -> float:
    """Seconds that this rank has spent waiting for tensors on the CPU, since the process began: in `Pending.wait` and
    in `OwnWaiting`.

    On a GPU waiting is in line like all work, and takes no time here.
    """
    return _waited


@contextmanager
def _waiting() -> Iterator[None]:
    global _waited
    began = time.perf_counter()
    yield
    _waited += time.perf_counter() - began


class OwnWaiting:
    """What torch's FSDP is to send with on a CPU: as it would by itself, and the waiting is noted.

    Args:
        sums: reduces and scatters, else gathers.
    """

    def __init__(self, *, sums: bool) -> None:
        self._send = _reduce_scatter if sums else _all_gather

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for a message."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, **how: Any) -> Any:
        """Send it, to a `group`."""
        with _waiting():
            return self._send(output_tensor, input_tensor, **how)


class _Timed:
    """A collective of which it is noted how long it is waited for."""

    def __init__(self, work: Pending, name: str, traffic: Traffic | None) -> None:
        self._work, self._name, self._traffic = work, name, traffic

    def wait(self) -> None:
        before = _waited
        with _waiting():
            self._work.wait()
        if self._traffic is not None:
            self._traffic.waits[self._name] += _waited - before


def _timed(work: Pending, name: str, tensor: torch.Tensor) -> Pending:
    return work if _traffic is None and tensor.device.type != "cpu" else _Timed(work, name, _traffic)


def _noted(work: Pending, name: str, whole: torch.Tensor, group: dist.ProcessGroup, times: int = 1) -> Pending:
    if _traffic is not None:
        _traffic.note(name, times * whole.nbytes, group)
    return _timed(work, name, whole)


class _Exchanged:
    """A reduce-scatter as an exchange of shares, summed by whoever waits for it."""

    def __init__(self, output: torch.Tensor, source: torch.Tensor, group: dist.ProcessGroup) -> None:
        self._output, self._received = output, torch.empty_like(source).view(group.size(), *output.shape)
        self._work = dist.all_to_all_single(self._received.view_as(source), source, group=group, async_op=True)

    def wait(self) -> None:
        self._work.wait()
        torch.sum(self._received, dim=0, out=self._output)


def all_reduce(tensor: torch.Tensor, group: dist.ProcessGroup) -> Pending:
    """Start summing a contiguous tensor of any shape over the ranks of the group, in place: all get the same bits."""
    return _noted(dist.all_reduce(tensor, group=group, async_op=True), "all_reduce", tensor, group, 2)


def reduce_scatter(output: torch.Tensor, source: torch.Tensor, group: dist.ProcessGroup) -> Pending:
    """Start summing `source` over the ranks of the group, leaving the rank's share in `output`.

    On the CPU shares are exchanged and summed in rank order: gloo's own reduce-scatter takes 1.6 times as long on 2
    ranks and 2.5 times on 4 (5 M floats).

    Args:
        output: [n, ...] the share of this rank.
        source: [world_size * n, ...], shares in rank order.
    """
    if source.device.type == "cpu":
        return _noted(_Exchanged(output, source, group), "reduce_scatter", source, group)
    return _noted(_reduce_scatter(output, source, group=group, async_op=True), "reduce_scatter", source, group)


def reduce(tensor: torch.Tensor, target: int, group: dist.ProcessGroup) -> Pending:
    """Start summing a contiguous tensor of any shape over the ranks of the group, in place on rank `target` (its number
    there); what the others have of it is lost."""
    work = dist.reduce(tensor, group=group, group_dst=target, async_op=True)
    return _noted(work, "reduce", tensor, group)


def all_gather(output: torch.Tensor, source: torch.Tensor, group: dist.ProcessGroup) -> Pending:
    """Start putting the `source` [n, ...] of every rank of the group into `output` [world_size * n, ...], in rank
    order."""
    return _noted(_all_gather(output, source, group=group, async_op=True), "all_gather", output, group)


def all_to_all(output: torch.Tensor, source: torch.Tensor, group: dist.ProcessGroup) -> Pending:
    """Start sending the i-th of equal parts of `source` to rank i of the group, and putting what each rank sends here
    into `output`, in rank order; both contiguous, of one size."""
    work = dist.all_to_all_single(output, source, group=group, async_op=True)
    return _noted(work, "all_to_all", source, group)


def all_to_all_rows(
    output: torch.Tensor,
    source: torch.Tensor,
    received: Sequence[int],
    sent: Sequence[int],
    group: dist.ProcessGroup,
) -> Pending:
    """As `all_to_all`, of parts of any sizes, none among them.

    Args:
        output: [sum(received), ...].
        source: [sum(sent), ...], contiguous.
        received: rows that each rank of the group sends here; it must know them.
        sent: rows for each of them.
    """
    work = dist.all_to_all_single(output, source, list(received), list(sent), group=group, async_op=True)
    if _traffic is not None:
        row = source.element_size() * source[:1].numel() if len(source) else 0
        _traffic.add("all_to_all_rows", row * (sum(sent) - sent[group.rank()]), group)
    return _timed(work, "all_to_all_rows", source)


def broadcast(tensor: torch.Tensor, source: int, group: dist.ProcessGroup) -> Pending:
    """Start copying a contiguous tensor of any shape from rank `source` of the group (its number there) to all."""
    work = dist.broadcast(tensor, group=group, group_src=source, async_op=True)
    return _noted(work, "broadcast", tensor, group)


def of_first(tensor: torch.Tensor, group: dist.ProcessGroup) -> Pending:
    """Start copying the first rank's contiguous tensor of any shape to all of a group."""
    return broadcast(tensor, 0, group)


def scatter(output: torch.Tensor, parts: list[torch.Tensor] | None, source: int, group: dist.ProcessGroup) -> Pending:
    """Start putting the i-th of the parts that rank `source` of the group has into the `output` of rank i.

    Args:
        parts: contiguous, each of the shape of `output`; None on the other ranks.
    """
    work = dist.scatter(output, parts, group=group, group_src=source, async_op=True)
    return _noted(work, "scatter", output, group)


def send(tensor: torch.Tensor, rank: int, group: dist.ProcessGroup) -> Pending:
    """Start sending a contiguous tensor to a rank of the group (its number there), which receives what is sent to it in
    the order of sending; the tensor must stay as it is until then."""
    work: Any = dist.isend(tensor, group=group, group_dst=rank)
    if _traffic is not None:
        _traffic.add("send", tensor.nbytes, group)
    return _timed(work, "send", tensor)


def receive(tensor: torch.Tensor, rank: int, group: dist.ProcessGroup) -> Pending:
    """Start filling a contiguous tensor with what a rank of the group (its number there) sends."""
    work: Any = dist.irecv(tensor, group=group, group_src=rank)
    return _timed(work, "receive", tensor)


def are_imagined(group: dist.ProcessGroup | None = None) -> bool:
    """Whether the other ranks of a group are not there, and whatever is sent to them is lost: torch's "fake" backend.
    Of such ranks objects are taken to be those of this one."""
    return dist.get_backend(group) == "fake"


def broadcast_object(value: Any, source: int = 0, group: dist.ProcessGroup | None = None) -> Any:
    """The plain Python value that rank `source` of a group has, on every rank of it; None is the default group."""
    if are_imagined(group):
        return value
    box = [value]
    dist.broadcast_object_list(box, group=group, group_src=source)
    return box[0]


def on_first(find: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Call a function on the first rank of a group and return its result on every rank of it.

    For what all must see alike, such as the listing of a network folder.

    Args:
        group: None is the default group.

    Raises:
        UserError: the function did; on every rank.
        RankFailed: the function raised something else; on every rank, where they are several.
    """
    if dist.get_world_size(group) == 1 or are_imagined(group):
        return find()
    answer: Any = None
    cause: Exception | None = None
    if dist.get_rank(group) == 0:
        try:
            answer = find()
        except (UserError, RankFailed) as error:
            answer = error
        except Exception as error:
            answer, cause = _rank_failed(error), error
    answer = broadcast_object(answer, group=group)
    _raise_if_error(answer, cause)
    return answer


def _rank_failed(error: Exception) -> RankFailed:
    return RankFailed(f"rank {dist.get_rank()}: {type(error).__name__}: {error}")


def _raise_if_error(told: Any, cause: Exception | None) -> None:
    """Raise what ranks were told if it is an error; on the rank that it is of, with the one that it stands for."""
    if cause is not None:
        raise told from cause
    if isinstance(told, UserError | RankFailed):
        raise told


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The plain Python value of every rank of a group, in rank order, on each; None is the default group."""
    everyone: list[Any] = [value] * dist.get_world_size(group)
    if are_imagined(group):
        return everyone
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def gather_numbers(numbers: Sequence[float], device: torch.device, group: dist.ProcessGroup) -> torch.Tensor:
    """The numbers of every rank of a group, as many on each: [ranks, numbers] in float64 on the CPU.

    Args:
        device: of the group's messages.
    """
    own = torch.tensor(numbers, dtype=torch.float64, device=device)
    everyone = own.new_empty(group.size() * len(own))
    all_gather(everyone, own, group).wait()
    return everyone.view(group.size(), len(own)).cpu()


@contextmanager
def failing_together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """A block that ends on every rank with the error of any, of several with the first rank's.

    A rank that raised alone would leave the others waiting for it. So nothing in the block may wait for other ranks.

    Args:
        group: whose ranks; None is the default group.

    Raises:
        UserError: a rank raised it.
        RankFailed: a rank raised something else, and they are several.
    """
    if dist.get_world_size(group) == 1:
        yield
        return
    told: UserError | RankFailed | None = None
    cause: Exception | None = None
    try:
        yield
    except (UserError, RankFailed) as error:
        told = error
    except Exception as error:
        told, cause = _rank_failed(error), error
    for rank, each in enumerate(gather_objects(told, group)):
        _raise_if_error(each, cause if rank == dist.get_rank(group) else None)


def gather_on_first(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The plain Python value of every rank of a group (None is the default one), in rank order, on the first of them;
    nothing on the others."""
    is_first = dist.get_rank(group) == 0
    everyone: list[Any] = [None] * dist.get_world_size(group) if is_first else []
    dist.gather_object(value, everyone if is_first else None, group=group, group_dst=0)
    return everyone
