"""`load_model` on ranks that hold a model together: each has its part, and what is wrong is said on all of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint import load_model
from evo_core.errors import CheckpointError
from evo_core.parallel.inference import inference_mesh
from evo_core.parallel.mesh import Mesh
from evo_core.placement import placements_of
from evo_core.weights import Target, write_weights
from evo_core.weights.loading import read_config
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks
from tests.weights.models import model, weights


def parts(folder: Path, mesh: Mesh | None = None, **options: Any) -> Any:
    """The pieces of every parameter that this rank of four has, of two tensor ranks."""
    loaded, _ = load_model(folder, mesh=mesh or inference_mesh(read_config(folder).model, 2), **options)
    placements = placements_of(loaded)
    return {
        name: [(piece.where, piece.of(parameter.detach())) for piece in placements[name].pieces]
        for name, parameter in loaded.named_parameters()
    }


def assert_parts_of(whole: torch.nn.Module, found: list[Any]) -> None:
    expected = dict(whole.named_parameters())
    assert set().union(*found) == expected.keys()
    for rank in found:
        for name, pieces in rank.items():
            for where, tensor in pieces:
                assert torch.equal(tensor, where.of(expected[name].detach())), name
    elements = [sum(tensor.numel() for pieces in rank.values() for _, tensor in pieces) for rank in found]
    assert max(elements) < 0.6 * sum(parameter.numel() for parameter in expected.values())


@pytest.mark.parametrize("kind", ["evo", "hf", "internevo"])
def test_each_rank_has_its_part(tmp_path: Path, kind: Target) -> None:
    write_weights(weights(model("INTERNLM2_PUBLIC", vocab_size=64), None), tmp_path / kind, kind)
    whole, found = load_model(tmp_path / kind)[0], run_on_ranks(lambda: parts(tmp_path / kind), 4)
    assert_parts_of(whole, found)
    assert all(rank.keys() == found[0].keys() for rank in found)


@pytest.mark.parametrize(("family", "kind"), [("INTERNLM2_PUBLIC", "internevo"), ("LLAMA3", "evo"), ("LLAMA3", "hf")])
def test_each_stage_has_its_part(tmp_path: Path, family: str, kind: Target) -> None:
    """The second one is tied: a format has its weight once, and both ends hold it."""
    write_weights(weights(model(family, vocab_size=64, num_layers=3), None), tmp_path, kind)
    whole, found = load_model(tmp_path)[0], run_on_ranks(lambda: parts(tmp_path, mesh_of(tensor=2, pipeline=2)), 4)
    assert_parts_of(whole, found)
    first, last = found[0].keys(), found[2].keys()
    assert {int(name.split(".")[1]) for name in first if name.startswith("layers.")} == {0}
    tied = first & last
    assert tied == ({"tok_embeddings.weight"} if family == "LLAMA3" else set())


def test_damage_that_one_rank_sees_ends_all(tmp_path: Path) -> None:
    write_weights(weights(model("QWEN3", vocab_size=64), None), tmp_path / "own", "evo")
    file = next((tmp_path / "own" / "model").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)

    def ranks() -> str:
        with pytest.raises(CheckpointError) as caught:
            parts(tmp_path / "own", check=dist.get_rank() == 0)
        return str(caught.value)

    first, *others = run_on_ranks(ranks, 4)
    assert "damaged" in first
    assert others == [first] * 3


def test_weights_that_are_no_numbers_are_counted_once(tmp_path: Path) -> None:
    odd = model("QWEN3", vocab_size=64)
    with torch.no_grad():
        odd.embedding.weight[[0, 63], 1] = float("nan")
        odd.blocks["1"].attention_norm.weight[:3] = float("inf")
    write_weights(weights(odd, None), tmp_path / "theirs", "hf")

    def ranks() -> Any:
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("evo_core.checkpoint.finite").addHandler(handler)
        parts(tmp_path / "theirs", check=dist.get_rank() == 0)
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            parts(tmp_path / "theirs", allow_non_finite=False)
        return said[:1]

    first, *others = run_on_ranks(ranks, 4)
    size = odd.embedding.weight.numel()
    assert f"tok_embeddings.weight (2 of {size})" in first[0]
    assert "attention_norm.weight (3 of " in first[0]
    assert others == [[]] * 3
