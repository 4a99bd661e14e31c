"""Between two clean-ups nothing is left over: what a step has made is free without Python's garbage collector, and the
loop reads the device once."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from evo_core.config import TrainConfig
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.train.memory import collected_by_hand
from evo_core.train.step import TrainStep
from tests.evaluate.test_isp import isp
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, job, run


def live(cfg: TrainConfig, folder: Path) -> list[int]:
    """Tensors that there are before each step."""
    found: list[int] = []

    def count(step: int) -> None:
        assert not gc.isenabled()
        found.append(sum(type(each) is torch.Tensor for each in gc.get_objects()))

    before_each_step(count)
    run(cfg, folder)
    assert gc.isenabled()
    return found


STAGES = {"pipeline": {"size": 2, "mode": "ZBV"}}


@pytest.mark.parametrize(
    ("ranks", "parallel", "settings", "steps"),
    [
        (2, {"zero1": {"size": 2}}, {}, 20),
        (2, isp(2, 2), {"model__checkpoint": 0.5}, 12),
        (2, STAGES, {"model__num_chunks": 2, "model__num_layers": 4}, 12),
        pytest.param(2, {"zero1": {"size": 2}}, {}, 60, marks=pytest.mark.slow),
        pytest.param(2, isp(2, 2), {"model__checkpoint": 0.5}, 60, marks=pytest.mark.slow),
        pytest.param(2, STAGES, {"model__num_chunks": 2, "model__num_layers": 4}, 60, marks=pytest.mark.slow),
    ],
)
def test_steps_leave_no_tensors_to_the_collector(
    tmp_path: Path, ranks: int, parallel: dict[str, Any], settings: dict[str, Any], steps: int
) -> None:
    optim = {"overlap_sync_grad": True, "overlap_sync_param": True, "all_gather_size": 700}
    settings = settings | {"data__total_steps": steps, "data__empty_cache_and_diag_interval": 1000}
    cfg = job(tmp_path, parallel=parallel, hybrid_zero_optimizer=optim, ckpt__enable_save_ckpt=False, **settings)
    for found in run_on_ranks(live, ranks, cfg, tmp_path / "run"):
        assert len(found) == steps
        assert max(found[3:]) <= found[3] + 10


def test_a_run_that_fails_gives_the_collector_back() -> None:
    def fails() -> None:
        with collected_by_hand():
            assert not gc.isenabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert gc.isenabled()


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers that are read from tensors, and results whose shape depends on them."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.checks = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING and not self.checks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Adds what a CPU tensor does without an operation: `tolist` and `cpu`. A one-hot encoding reads nothing: that it
    checks its numbers is so on the CPU alone."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.tolist, torch.Tensor.cpu):
            self._reads.found[func.__name__] += 1
        self._reads.checks = func is torch.nn.functional.one_hot
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._reads.checks = False


def reads_of_steps(cfg: TrainConfig, folder: Path) -> list[Counter[str]]:
    """What each step reads of tensors on the model's device: passes, reduction and update."""
    found: list[Counter[str]] = []

    def counted(owner: Any, name: str, *, begins: bool = False) -> None:
        whole = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            if begins:
                found.append(Counter())
            with Reads() as reads, Calls(reads):
                result = whole(*args, **kwargs)
            found[-1] += reads.found
            return result

        setattr(owner, name, counting)

    counted(TrainStep, "forward_backward", begins=True)
    counted(Zero1AdamW, "reduce")
    counted(Zero1AdamW, "step")
    run(cfg, folder)
    return found


def test_a_step_reads_the_device_once(tmp_path: Path) -> None:
    """The totals with the norm, as one message that is copied to the CPU; experts also read how many tokens each gets,
    in every pass of a block. On the CPU attention asks for the length of each document, once a micro-batch."""
    optim = {"overlap_sync_grad": True, "overlap_sync_param": True, "all_gather_size": 700}
    plain = {"data__total_steps": 3, "ckpt__enable_save_ckpt": False, "hybrid_zero_optimizer": optim}
    experts = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}
    settings: list[tuple[dict[str, Any], Counter[str]]] = [
        ({"model__drop_rate": 0.1, "model__dtype": "torch.float16"}, Counter(cpu=1, tolist=1 + 2)),
        (experts, Counter(cpu=1, tolist=1 + 2 + 2 * 2, bincount=2 * 2)),  # two blocks, two micro-batches
    ]
    for number, (more, expected) in enumerate(settings):
        cfg = job(tmp_path, **plain, **more)
        for steps in run_on_ranks(reads_of_steps, 2, cfg, tmp_path / str(number)):
            assert steps == [expected] * 3
