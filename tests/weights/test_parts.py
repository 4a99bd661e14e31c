"""Ranks that hold a part of a model read that part of a folder, of whatever format, and nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evo_core.checkpoint.tensors import model_tensors
from evo_core.model import Decoder, build_model
from evo_core.parallel.apply import build_parallel
from evo_core.placement import Rectangle
from evo_core.weights import fill_model, open_weights, write_weights
from evo_core.weights.heads import halves_to_pairs, part_of_qkv, to_qkv
from evo_core.weights.lazy import Lazy, held, joined, stacked
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks
from tests.weights.internevo_files import (
    tensor_shard,
    write_isp,
    write_later_isp,
    write_model_config,
    write_tensor_parallel,
)
from tests.weights.models import model, weights
from tests.weights.test_internevo import SIZES, stated


class Elements(TorchDispatchMode):
    """Counts the floating-point elements that operations read; what is only a view of a tensor reads none."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            read = tree_leaves((args[func._schema.is_mutable :], kwargs))  # what is written to is the first
            tensors = [x for x in read if isinstance(x, Tensor) and not x.is_meta and x.is_floating_point()]
            self.read += sum(x.numel() for x in tensors)
        return func(*args, **(kwargs or {}))


def hugging_face(made: Decoder, folder: Path) -> None:
    write_weights(weights(made), folder, "hf", max_shard=30_000)


def evo(made: Decoder, folder: Path) -> None:
    write_weights(weights(made), folder, "evo")


def internevo(made: Decoder, folder: Path) -> None:
    write_tensor_parallel(made.state_dict(), folder, 2, tensor=2, pipeline=2)
    write_model_config(folder, stated(made))


def internevo_isp(made: Decoder, folder: Path) -> None:
    write_isp(made.state_dict(), folder, 2, tensor=2, weight=4, pipeline=1)
    write_model_config(folder, stated(made))


def internevo_later_isp(made: Decoder, folder: Path) -> None:
    write_later_isp(made.state_dict(), folder, 2, weight=2, pipeline=2)
    write_model_config(folder, stated(made))


def meta(made: Decoder, folder: Path) -> None:
    folder.mkdir()
    for rank in range(2):
        shard = {name: tensor_shard(name, tensor, rank, 2) for name, tensor in made.state_dict().items()}
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 64}
    (folder / "params.json").write_text(json.dumps(params))


class Case(NamedTuple):
    """A folder, and the model that is filled from it.

    Attributes:
        times: how often an element is read at most: to be put in order, to be put beside others, to be copied.
        here: what is otherwise in the model that is filled.
    """

    write: Callable[[Decoder, Path], None]
    model_type: str
    times: int
    here: dict[str, Any]


PAIRS, HALVES = {"qk_interleaved": True}, {"qk_interleaved": False}
CASES = {
    "hf, nothing to reorder": Case(hugging_face, "LLAMA2", 1, HALVES),
    "hf, norms of heads": Case(hugging_face, "QWEN3", 1, {}),
    "hf, halves to pairs": Case(hugging_face, "LLAMA2", 2, PAIRS),
    "hf, tied": Case(hugging_face, "LLAMA3", 1, HALVES),
    "hf, fused in groups": Case(hugging_face, "INTERNLM2_PUBLIC", 3, {}),
    "hf, groups from three": Case(hugging_face, "LLAMA2", 3, {"model_type": "INTERNLM2_PUBLIC"}),
    "hf, three from groups": Case(hugging_face, "INTERNLM2_PUBLIC", 3, {"model_type": "LLAMA2"}),
    "hf, fused in blocks": Case(hugging_face, "INTERNLM", 2, {}),
    "hf, experts": Case(hugging_face, "INTERNLM_MoE", 2, {}),
    "internevo, fused in blocks": Case(internevo, "INTERNLM", 2, {}),
    "internevo, fused in groups": Case(internevo, "INTERNLM2_PUBLIC", 3, {}),
    "internevo, three": Case(internevo, "LLAMA2", 2, HALVES),
    "internevo, experts": Case(internevo, "INTERNLM_MoE", 2, {}),
    "internevo, isp": Case(internevo_isp, "INTERNLM2_PUBLIC", 3, {}),
    "internevo, later isp, fused in blocks": Case(internevo_later_isp, "INTERNLM", 2, {}),
    "internevo, later isp, experts": Case(internevo_later_isp, "INTERNLM_MoE", 2, {}),
    "evo": Case(evo, "QWEN3", 2, {}),  # once more, from torch's archive
    "meta": Case(meta, "LLAMA2", 2, PAIRS),
}


def written(case: Case, folder: Path) -> Any:
    """Write the folder of a case; the `model` block that is filled from it."""
    own = PAIRS if case.write is meta else HALVES if case.model_type == "LLAMA2" else {}
    made = model(case.model_type, **SIZES, **own)
    case.write(made, folder)
    return type(made.cfg).model_validate({**made.cfg.model_dump(exclude_unset=True), **case.here})


class Found(NamedTuple):
    """What a rank of four found: the tensors that are not its part of the whole ones, the elements that it holds and
    that were read for them, and that were read for the whole model."""

    wrong: list[str]
    held: int
    read: int
    read_whole: int


LAYOUTS: dict[str, dict[str, Any]] = {
    "features": {"tensor": 4},
    "gathered": {"tensor": {"size": 4, "mode": "isp"}, "weight": {"size": 4}},
}
"""How four ranks share a model: its blocks by features, or each weight of them by rows."""


def filled(folder: Path, cfg: Any, layout: str) -> Found:
    """Fill a whole model and what this rank of four holds of it."""
    whole, mine = build_model(cfg), build_parallel(cfg, mesh_of(1, **LAYOUTS[layout]), "cpu")
    for parameter in mine.parameters():
        torch.nn.init.constant_(parameter, -7)
    with Elements() as for_whole:
        fill_model(whole, open_weights(folder, model=cfg))
    with Elements() as for_part:
        fill_model(mine, open_weights(folder, model=cfg))
    there, here = whole.state_dict(), model_tensors(mine)
    wrong = [
        name
        for name, placed in here.items()
        for piece, view in placed.pieces()
        if not torch.equal(view, piece.where.of(there[name]))
    ]
    return Found(wrong, sum(each.local.numel() for each in here.values()), for_part.read, for_whole.read)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Found]]:
    """By case and layout, what each of 4 ranks found; all from one group of ranks."""
    folder = tmp_path_factory.mktemp("parts")
    blocks = {name: written(case, folder / name) for name, case in CASES.items()}
    every = list(itertools.product(CASES, LAYOUTS))
    on_each = run_on_ranks(lambda: {each: filled(folder / each[0], blocks[each[0]], each[1]) for each in every}, 4)
    return {each: [of_rank[each] for of_rank in on_each] for each in every}


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_rank_has_its_part_of_the_whole_and_reads_no_more(
    case: str, layout: str, found: dict[tuple[str, str], list[Found]]
) -> None:
    for rank in found[case, layout]:
        assert rank.wrong == []
        assert rank.held <= rank.read <= CASES[case].times * rank.held
        assert rank.read < 0.3 * rank.read_whole  # norms and routers are whole, and two ranks share a key/value head


def made_of(tensors: list[Lazy]) -> Lazy:
    """Fused in groups, cut into shards by columns and by rows, taken apart, reordered and put together in blocks."""
    whole = stacked([stacked(tensors[:2], 1), stacked(tensors[2:], 1)], 0)
    q, k, v = (whole.then(lambda x, part=part: part_of_qkv(x, part, "grouped", 4, 2, 4)) for part in "qkv")
    paired = [each.then(lambda x: halves_to_pairs(x, 4)) for each in (q, k)]
    return joined([*paired, v], lambda parts: to_qkv(parts, "blocked", 2, 4)).to(torch.float32)


def test_any_rectangle_is_that_of_the_whole() -> None:
    """Through every kind of step at once."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((12, 3), (12, 5), (20, 4), (20, 4))
    lazy = made_of([held(torch.randn(size, generator=generator, dtype=torch.float64)) for size in sizes])
    whole = lazy.read()
    assert whole.shape == lazy.shape == (32, 8)
    assert whole.dtype == lazy.dtype == torch.float32
    for top in range(0, 32, 3):
        for rows in (0, 1, 7, 32 - top):
            for left, columns in ((0, 8), (2, 2), (3, 5), (7, 1)):
                if top + rows <= 32:
                    where = Rectangle((top, left), (rows, columns))
                    assert torch.equal(lazy.part(where), where.of(whole)), where


def test_rows_that_hold_nothing() -> None:
    assert held(torch.empty(0, 3)).then(lambda x: x.flip(0)).read().shape == (0, 3)
    both = joined([held(torch.empty(0, 3)), held(torch.ones(2, 3))], torch.cat)
    assert torch.equal(both.read(), torch.ones(2, 3))
