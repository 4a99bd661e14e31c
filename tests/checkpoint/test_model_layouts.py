"""Models and their optimizers, saved where tensor ranks share each layer, and loaded where others do or none."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import TrainState, load, load_model, save
from evo_core.checkpoint.finite import check_model_finite
from evo_core.checkpoint.tensors import model_tensors, read_model, write_tensors
from evo_core.config import TrainConfig
from evo_core.errors import CheckpointError
from evo_core.placement import Held, Placement
from evo_core.weights import build, open_weights
from tests.checkpoint.model_states import Layout, config, differing, held, said_of_drift, saved, state_of, truth
from tests.ranks import run_on_ranks

ONE, FOUR, BOTH = Layout(1, 1), Layout(4, 1), Layout(2, 2)
SHARDED, HYBRID = Layout(1, 4, fsdp=True), Layout(1, 2, groups=2, fsdp=True)
SHARED_BOTH = Layout(2, 2, fsdp=True)
DEALT = Layout(1, 4, expert=4)
LAYOUTS = [FOUR, BOTH, Layout(1, 4), Layout(2, 1), Layout(1, 2), ONE]
MOVES: dict[str, Iterable[tuple[Layout, Layout]]] = {
    # In groups, of which two ranks of four share one: from every layout to every other.
    "INTERNLM2_PUBLIC": list(itertools.permutations(LAYOUTS, 2)),
    "LLAMA2": list(itertools.pairwise([SHARDED, ONE, HYBRID, FOUR, SHARED_BOTH, BOTH, SHARDED])),
    **dict.fromkeys(("INTERNLM", "LLAMA3", "QWEN3"), ((FOUR, ONE), (FOUR, BOTH), (ONE, FOUR))),
    # And where data ranks share the experts: states over some of those that hold one, over all and over none.
    "INTERNLM_MoE": [
        *((FOUR, other) for other in (ONE, BOTH, DEALT)),
        *((ONE, other) for other in (FOUR, Layout(1, 4, expert=2))),
        *((DEALT, other) for other in (ONE, FOUR, Layout(2, 2, expert=2), Layout(1, 2, expert=2))),
        (Layout(2, 2, expert=2), DEALT),
    ],
}
"""By family, from where to where its checkpoints go: fused in blocks and groups, split (and fsdp), tied, experts."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every family at every layout that it comes from."""
    folder = tmp_path_factory.mktemp("layouts")
    wanted = {(family, written) for family in MOVES for written, _ in MOVES[family]}
    for ranks in (1, 2, 4):
        own = sorted((family, layout) for family, layout in wanted if layout.ranks == ranks)
        run_on_ranks(lambda own=own: [saved(folder, *each) for each in own] and None, ranks)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_tensors_are_the_same_bits_at_every_layout(root: Path, ranks: int) -> None:
    asked = [(family, *move) for family in MOVES for move in MOVES[family] if move[1].ranks == ranks]

    def wrong() -> dict[str, list[str]]:
        return {str(each): names for each in asked if (names := differing(root, *each))}

    assert run_on_ranks(wrong, ranks) == [{}] * ranks


@pytest.mark.parametrize("family", MOVES)
def test_one_process_sees_one_whole_model(root: Path, family: str) -> None:
    """For inference and for a conversion."""
    checkpoint = root / family / str(FOUR)
    loaded, converted = load_model(checkpoint)[0], build(open_weights(checkpoint))
    wanted = {name: truth(name, placed) for name, placed in model_tensors(loaded).items()}
    for model in (loaded, converted):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
        assert model.state_dict().keys() == wanted.keys()


def test_states_that_lie_there_as_vectors_are_read_into_parts(root: Path, tmp_path: Path) -> None:
    """A checkpoint of format 1, whose model lies there as it does in format 2."""
    family = "INTERNLM2_PUBLIC"
    folder = tmp_path / family / "1x1" / "1"
    shutil.copytree(root / family / "1x1" / "1", folder)
    shutil.rmtree(folder / "optimizer")

    def as_vectors() -> dict[str, Any]:
        states = state_of(config(family), ONE)[1].state()
        vectors = {name: truth(name, placed).reshape(-1) for name, placed in states.items()}
        records = write_tensors(folder / "optimizer", vectors)
        return {f"optimizer/{name}": record.plain for name, record in records.items()}

    (records,) = run_on_ranks(as_vectors, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {name: record for name, record in manifest["files"].items() if not name.startswith("optimizer/")}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1, "files": files | records}))
    found = run_on_ranks(lambda: [differing(tmp_path, family, ONE, layout) for layout in (FOUR, BOTH)], 4)
    assert found == [[[], []]] * 4


def complaint(checkpoint: Path, cfg: TrainConfig) -> str:
    """What a rank says of a checkpoint that does not fit, and that nothing of its own was changed before."""
    model, optimizer = state_of(cfg, FOUR)
    before = [(placed.local, placed.local.clone()) for _, placed in held(model, optimizer)]
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint, model, optimizer)
    assert all(torch.equal(now, then) for now, then in before)
    return str(caught.value)


def test_what_does_not_fit_is_told_by_every_rank_before_anything_is_changed(root: Path, tmp_path: Path) -> None:
    """In the shapes of whole tensors, whatever a rank holds of them."""
    family = "INTERNLM2_PUBLIC"

    def without_moments() -> None:
        model, optimizer = state_of(config(family), ONE)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        states = {name: placed for name, placed in optimizer.state().items() if not name.startswith("exp_avg.")}
        save(tmp_path, config(family), model, states, TrainState(step=1))

    run_on_ranks(without_moments, 1)
    cases = [
        (root / family / "1x1" / "1", {"vocab_size": 128}, "has shape [64, 32] there and [128, 32] here"),
        (root / family / "4x1" / "1", {"num_layers": 2}, "lacks layers.1."),
        (tmp_path / "1", {}, "lacks exp_avg."),
    ]
    said = run_on_ranks(lambda: [complaint(checkpoint, config(family, **own)) for checkpoint, own, _ in cases], 4)
    assert all(of_rank == said[0] for of_rank in said)
    assert all(message in complained for complained, (*_, message) in zip(said[0], cases, strict=True))


def test_a_head_on_two_ranks_that_has_drifted_apart_is_told(tmp_path: Path) -> None:
    """The second key/value head is on the third and fourth rank of four, in its optimizer's states too."""
    cfg = config("INTERNLM2_PUBLIC")  # the last row is of the value, behind the queries and the key
    for part, value in (("model", ""), ("optimizer", "exp_avg_sq.")):
        name = f"{value}layers.0.attention.wqkv.weight"
        (said,) = set(run_on_ranks(said_of_drift, 4, tmp_path, cfg, FOUR, name))
        assert f"{part}/{name} has other values on rank 2 than on rank 3" in said
    assert not any(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_found_on_any_rank(caplog: pytest.LogCaptureFixture) -> None:
    """A norm, which all have, is counted once."""

    def spoilt() -> tuple[str, str]:
        model, _ = state_of(config("LLAMA2"), BOTH)
        if dist.get_rank() % 2 == 1:  # the second tensor rank of both data ranks
            model.get_parameter("layers.0.feed_forward.w1.weight").data[3, :5] = float("nan")
        model.get_parameter("norm.weight").data[1] = float("inf")
        caplog.clear()
        check_model_finite(model, Path("folder"))
        with pytest.raises(CheckpointError) as caught:
            check_model_finite(model, Path("folder"), allowed=False)
        return caplog.text, str(caught.value)

    found = run_on_ranks(spoilt, 4)
    wanted = "has NaN or infinite weights: layers.0.feed_forward.w1.weight (5 of 2048), norm.weight (1 of 32)"
    assert [wanted in warned for warned, _ in found] == [True, False, False, False]
    assert all(f"folder: {wanted} (--allow-non-finite" in raised for _, raised in found)


class Tied(nn.Module):
    """One weight [6, 3] under two names, of which each of two ranks holds half of the rows."""

    def __init__(self, rank: int, *, tied: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        on_each = tuple(Placement.cut((6, 3), 0, t, 2, [t]) for t in range(2))
        self.held = {name: Held(on_each, rank, partial=False) for name, _ in self.named_parameters()}


def test_one_weight_under_two_names_is_compared_where_it_lies(tmp_path: Path) -> None:
    def compared() -> str:
        rank = dist.get_rank()
        other = Tied(rank, tied=False)
        for parameter in other.parameters():
            nn.init.constant_(parameter, 1 + rank)
        if rank == 1:
            other.head.weight.data[2, 1] = 5
        write_tensors(tmp_path, model_tensors(other))
        try:
            read_model(tmp_path, Tied(rank, tied=True))
        except CheckpointError as error:
            return str(error)
        return "the same"

    first, second = run_on_ranks(compared, 2)
    assert first == "the same"
    assert "embedding.weight and head.weight are two weights there and one in this model" in second
