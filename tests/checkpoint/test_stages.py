"""Checkpoints of a model whose layers lie on several ranks: to and from every other layout, and what is said on all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from evo_core.checkpoint import load, load_model
from evo_core.checkpoint.allowed import Allow
from evo_core.checkpoint.finite import check_model_finite
from evo_core.checkpoint.tensors import model_tensors
from evo_core.errors import CheckpointError
from tests.checkpoint.model_states import Layout, config, differing, said_of_drift, saved, state_of, truth
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

TIED, OWN_HEAD = "LLAMA3", "INTERNLM2_PUBLIC"
LAYERS = {"num_layers": 6}
"""Of two stages each has three; of four on two ranks the first has one and the second two, and so on; of four on as
many ranks the last two have one more."""

ONE = Layout(1, 1)
WHOLE = [ONE, Layout(1, 2), Layout(2, 1)]
TWO, CHUNKS, FOUR = Layout(1, 1, 2), Layout(1, 1, 2, 2), Layout(1, 1, 4)
STAGES = [TWO, CHUNKS, Layout(1, 1, 2, 2, is_v=True), FOUR, Layout(2, 1, 2), Layout(1, 2, 2)]
MOVES = [
    *((TIED, each, WHOLE[number % 3]) for number, each in enumerate(STAGES)),
    *((TIED, WHOLE[number % 3], each) for number, each in enumerate(STAGES)),
    *((TIED, STAGES[number - 1], STAGES[number]) for number in (0, 2, 4)),
    *((OWN_HEAD, *move) for move in ((CHUNKS, FOUR), (FOUR, ONE), (ONE, CHUNKS))),
]
"""Family, and from where to where its checkpoints go."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every family at every layout that it comes from."""
    folder = tmp_path_factory.mktemp("stages")
    wanted = {(family, written) for family, written, _ in MOVES}
    for ranks in (1, 2, 4):
        own = sorted((family, layout) for family, layout in wanted if layout.ranks == ranks)
        run_on_ranks(lambda own=own: [saved(folder, *each, **LAYERS) for each in own] and None, ranks)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_tensors_are_the_same_bits_at_every_layout(root: Path, ranks: int) -> None:
    """Weights, moments and master values; those of the tied weight, too, on both ends."""
    asked = [move for move in MOVES if move[2].ranks == ranks]

    def wrong() -> dict[str, list[str]]:
        return {str(each): names for each in asked if (names := differing(root, *each, **LAYERS))}

    assert run_on_ranks(wrong, ranks) == [{}] * ranks


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("layout", [CHUNKS, FOUR], ids=str)
def test_one_process_and_torch_itself_see_one_whole_model(root: Path, layout: Layout) -> None:
    folder = root / TIED / str(layout)
    loaded, _ = load_model(folder)
    wanted = {name: truth(name, placed) for name, placed in model_tensors(loaded).items()}
    plain = {name: torch.empty_like(tensor) for name, tensor in wanted.items()}
    dcp.load(plain, checkpoint_id=folder / "1" / "model", no_dist=True)
    for tensors in (loaded.state_dict(), plain):
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())


def said_of(checkpoint: Path, layers: int, layout: Layout, content: tuple[str, ...], allow: Allow) -> str:
    """What this rank by itself says of a checkpoint of another number of layers."""
    model, optimizer = state_of(config(TIED, num_layers=layers), layout)
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint, model, optimizer, content, allow)
    return str(caught.value)


def test_what_one_stage_has_no_tensors_for_is_told_by_all_alike(root: Path) -> None:
    """Also by those of which everything is there; and other stages' tensors are not left over."""
    folder, weights = root / TIED / str(TWO) / "1", ("model",)
    new = Allow(missing=("layers.[67].*",))
    cases: list[tuple[int, tuple[str, ...], Allow, tuple[str, ...]]] = [
        (8, weights, Allow(), ("lacks layers.6.attention.wk", 'allow: {missing: ["layers.6.*", "layers.7.*"]}')),
        (5, weights, Allow(), ("has layers.5.attention.wk", 'allow: {unexpected: ["layers.5.*"]}')),
        (8, ("all",), new, ("lacks layers.6.attention.wk", "a tensor that is new here has no optimizer states there")),
    ]
    said = run_on_ranks(lambda: [said_of(folder, layers, FOUR, *how) for layers, *how, _ in cases], 4)  # type: ignore[arg-type]
    assert all(of_rank == said[0] for of_rank in said)
    for complaint, (*_, words) in zip(said[0], cases, strict=True):
        assert all(each in complaint for each in words), complaint


def test_what_a_stage_is_allowed_to_lack_keeps_its_first_weights(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once, of the last stage too; the weights of both ends are not said to be drawn."""

    def started() -> tuple[list[str], str]:
        caplog.set_level("INFO")
        model, optimizer = state_of(config(TIED, num_layers=8), TWO)
        load(root / TIED / str(FOUR) / "1", model, optimizer, ("model",), Allow(missing=("layers.[67].*",)))
        tensors = model_tensors(model)
        drawn = [name for name, placed in tensors.items() if bool((placed.local == -7).all())]
        assert all(torch.equal(p.local, truth(n, p)) for n, p in tensors.items() if n not in drawn)
        return drawn, caplog.text

    (none, log), (drawn, silent) = run_on_ranks(started, 2)
    assert not none
    assert {name.split(".")[1] for name in drawn} == {"6", "7"}
    assert "lacks, first weights were drawn: layers.6.*, layers.7.* (tensors: 18)" in log
    assert "first weights" not in silent


def test_damage_of_one_stages_file_ends_all(root: Path, tmp_path: Path) -> None:
    def ranks() -> str:
        folder = saved(tmp_path, TIED, TWO, **LAYERS)
        if dist.get_rank() == 1:
            flip(folder / "model" / "__1_0.distcp")
        dist.barrier()
        with pytest.raises(CheckpointError) as caught:
            load_model(folder, mesh=mesh_of(pipeline=2))
        return str(caught.value)

    first, second = run_on_ranks(ranks, 2)
    assert "__1_0.distcp: damaged" in first
    assert second == first


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def test_ends_whose_tied_weights_have_drifted_apart_are_told(tmp_path: Path) -> None:
    cfg = config(TIED, **LAYERS)
    for part, value in (("model", ""), ("optimizer", "exp_avg.")):
        name = f"{value}tok_embeddings.weight"
        (said,) = set(run_on_ranks(said_of_drift, 4, tmp_path, cfg, FOUR, name))
        assert f"{part}/{name} has other values on rank 0 than on rank 3" in said
    assert not any(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_told_of_any_stage(caplog: pytest.LogCaptureFixture) -> None:
    """Of the tied weight once."""

    def spoilt() -> str:
        model, _ = state_of(config(TIED, **LAYERS), FOUR)
        for name, parameter in model.named_parameters():
            nn.init.zeros_(parameter)
            if name in ("tok_embeddings.weight", "layers.4.attention_norm.weight", "norm.weight"):
                parameter.data.view(-1)[:3] = float("nan")
        caplog.clear()
        check_model_finite(model, Path("folder"))
        return caplog.text

    first, *others = run_on_ranks(spoilt, 4)
    found = "tok_embeddings.weight (3 of 2048), layers.4.attention_norm.weight (3 of 32), norm.weight (3 of 32)"
    assert found in first
    assert not any(others)
