"""With overlap_sync_param updated parameters are on their way while the next forward pass already computes: each is
there when it is read, whatever reads it, and nothing else has changed.

What is still on its way is made nan here. Whoever read it before it has arrived would make the loss nan with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint import load_model
from evo_core.config import TrainConfig
from evo_core.model import Decoder
from evo_core.monitor.monitoring import monitoring
from evo_core.optim.publishing import Event, Publishing
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel import process_group
from evo_core.parallel.mesh import make_mesh
from evo_core.train.loop import run_steps
from evo_core.train.optimizer import make_optimizer
from evo_core.train.run import TrainRun, make_model, make_run
from evo_core.train.run_log import logging_of_run
from tests.evaluate.test_isp import isp
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job

TOKENS = 16
CPU = torch.device("cpu")


@contextmanager
def unreadable_until_there() -> Iterator[list[int]]:
    """In the block every parameter that an update has sent for is nan until it arrives; gives how many there were."""
    start, found = Publishing.start, list[int]()

    def started(self: Publishing) -> None:
        start(self)
        waiting = [slot for chunk in self.chunks[self.taken :] for slot in chunk.slots]
        for slot in waiting:
            slot.param.data.fill_(torch.nan)
        found.append(len(waiting))

    Publishing.start = started  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Publishing.start = start  # type: ignore[method-assign]


def part_by_part(cfg: TrainConfig) -> list[tuple[str, list[Event]]]:
    """What a part of the model finds that has happened since the update, of each part in the order of use."""
    mesh = make_mesh(cfg.degrees(dist.get_world_size()))
    model = make_model(cfg, mesh, CPU, drawn=True)
    assert isinstance(model, Decoder) and model.head is not None and model.embedding is not None
    optimizer = make_optimizer(cfg, model, mesh)
    assert isinstance(optimizer, Zero1AdamW)
    ids, seen = torch.arange(TOKENS), list[tuple[str, list[Event]]]()
    with optimizer.publishing.recording() as events:
        names = {id(module): name for name, module in model.named_modules()}
        for part in (model.embedding, *model.blocks.values(), model.norm):
            assert part is not None
            part.register_forward_pre_hook(lambda part, _: seen.append((names[id(part)], list(events))))
        project = model.head.effective_weight

        def projected() -> torch.Tensor:
            seen.append((names[id(model.head)], list(events)))
            return project()

        model.head.effective_weight = projected  # type: ignore[method-assign]
        for _ in range(2):
            seen.clear()
            optimizer.begin()
            loss = model(ids, ids, torch.tensor([0, TOKENS], dtype=torch.int32), labels=ids).loss
            optimizer.backward(loss, last=True)
            optimizer.reduce(torch.zeros(0, dtype=torch.float64))
            if not events:  # the second step has them of the update after the first one
                assert optimizer.step(1e-2, 0.95)
        return seen


@pytest.mark.parametrize("tensor", [1, 2])
def test_parts_are_sent_for_before_those_before_them_compute(tmp_path: Path, tensor: int) -> None:
    settings = {"hybrid_zero_optimizer": {"overlap_sync_param": True, "all_gather_size": 2000}, "model__num_layers": 4}
    parallel = {"zero1": {"size": 2}, "tensor": {"size": tensor, "mode": "mtp"}}
    cfg = job(tmp_path, parallel=parallel, **settings)
    for seen in run_on_ranks(part_by_part, 2 * tensor, cfg):
        parts = [name for name, _ in seen]
        assert len(parts) == 7
        for number, (part, events) in enumerate(seen):
            sent = [event for event in events if event.what == "gather"]
            there = [event for event in events if event.what == "arrive"]
            waiting = sent[len(there) :]
            assert there and not any(_is_of(event, part) for event in waiting)
            later = parts[number + 1 :]
            if number < 4:  # one chunk is on its way, and is of a part behind this one
                assert len(waiting) == 1 and any(_is_of(waiting[0], other) for other in later)
        every = seen[-1][1]
        assert len(every) == 2 * sum(event.what == "gather" for event in every) > 8


def _is_of(event: Event, part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in event.parameters)


def trained(cfg: TrainConfig, folder: Path) -> TrainRun:
    """A run at its end."""
    torch.set_num_threads(1)
    with process_group.ranks() as ranks:
        mesh = make_mesh(cfg.degrees(ranks.world_size))
        with logging_of_run(speaks=mesh.is_log_rank) as lines, monitoring(cfg, ranks, mesh) as monitor:
            run = make_run(cfg, folder, None, ranks, mesh, lines, monitor)
            run_steps(run)
            return run


def unread(cfg: TrainConfig, folder: Path) -> tuple[list[int], bool]:
    """Parameters on their way behind each update of a run, and whether all that the rank holds are there in the end."""
    with unreadable_until_there() as found:
        run = trained(cfg, folder)
    return found, all(bool(p.isfinite().all()) for p in run.step.model.parameters())


STEPS = 4
COMMON: dict[str, Any] = {
    "data__total_steps": STEPS,
    "data__valid_every": 2,
    "model__num_layers": 4,
    "model__num_kv_attention_heads": 4,
    "ckpt__checkpoint_every": 3,
}
TIED: dict[str, Any] = {"model_type": "LLAMA3", "model__tie_word_embeddings": True}
EXPERTS = {"model_type": "INTERNLM_MoE", "model__num_experts": 4}


def staged(mode: str = "1F1B", **parallel: Any) -> dict[str, Any]:
    return {"pipeline": {"size": 2, "mode": mode}, "zero1": {"size": 2}, **parallel}


def shared(mode: str) -> dict[str, Any]:
    return {"tensor": {"size": 2, "mode": mode}, "zero1": {"size": 2}}


LAYOUTS: list[Any] = [
    pytest.param(4, isp(1, 2, zero1={"size": 2}), {"model__checkpoint": 0.5}, id="isp"),
    pytest.param(4, staged("ZBV"), TIED | {"model__num_chunks": 2}, id="tied zbv"),
]
MORE: list[Any] = [
    pytest.param(2, {"zero1": {"size": 2}}, {"hybrid_zero_optimizer": {"overlap_sync_grad": True}}, id="data"),
    pytest.param(4, staged("ZBV"), {"model__num_chunks": 2}, id="zbv"),
    pytest.param(4, staged(), TIED, id="tied ends"),
    pytest.param(4, shared("mtp"), TIED, id="mtp"),
    pytest.param(4, shared("msp"), {"model__norm_head": True}, id="msp"),
    pytest.param(4, shared("fsp"), EXPERTS, id="fsp"),
    pytest.param(4, staged(), {"model__num_chunks": 2}, id="interleaved"),
    pytest.param(4, staged("ZBH1"), EXPERTS, id="zbh1"),
    pytest.param(4, isp(2, 2, zero1={"size": 2}), EXPERTS, id="isp of experts"),
]


@pytest.mark.parametrize(
    ("ranks", "parallel", "settings"),
    [*LAYOUTS, *(pytest.param(*each.values, id=each.id, marks=pytest.mark.slow) for each in MORE)],
)
def test_whatever_reads_parameters_waits_for_them(
    tmp_path: Path, ranks: int, parallel: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Training, evaluation and saving, at every layout: the bits are those without the overlap."""
    ways: dict[str, dict[str, Any]] = {"off": {}, "on": {"overlap_sync_param": True, "all_gather_size": 700}}
    for name, way in ways.items():
        blocks = COMMON | settings
        optim = blocks.get("hybrid_zero_optimizer", {}) | way | {"clip_grad_norm": 1.0}
        folder = str(tmp_path / f"ckpt-{name}")
        blocks |= {"parallel": parallel, "hybrid_zero_optimizer": optim, "ckpt__save_ckpt_folder": folder}
        for waiting, whole in run_on_ranks(unread, ranks, job(tmp_path, **blocks), tmp_path / name, timeout=200.0):
            assert whole
            assert len(waiting) == STEPS and all(waiting)
    measured = ("loss", "grad_norm", "val/en_loss", "val/en_acc")
    off, on = ([[r.get(key) for key in measured] for r in curve(tmp_path / name)] for name in ways)
    assert off == on and len(on) == STEPS
    for step in ("3", "4"):
        one, other = (load_model(tmp_path / f"ckpt-{name}" / step)[0].state_dict() for name in ways)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_ends_behind_an_update_waits_for_it(tmp_path: Path) -> None:
    """Nothing else does where nothing is saved."""
    optim = {"overlap_sync_param": True, "all_gather_size": 700}
    cfg = job(tmp_path, data__total_steps=2, ckpt__enable_save_ckpt=False, hybrid_zero_optimizer=optim)
    assert all(whole for _, whole in run_on_ranks(unread, 2, cfg, tmp_path / "run"))
