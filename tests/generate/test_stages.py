"""Stages of a pipeline generate the tokens of one process, and each remembers its own blocks alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evo_core.generate import generate, stream
from evo_core.generate.forward import Forward
from evo_core.generate.kv_cache import KVCache
from evo_core.model import Decoder
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.pipeline.placing import Placing
from evo_core.placement import Placed, placements_of
from tests.generate.models import LetterTokenizer, decoder, rows_that_come_and_go
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

PROMPTS = [[1, 7, 30, 4], [5], [9, 9, 9, 9, 9, 9, 9, 12], [40, 2]]
FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM2": {"num_kv_attention_heads": 2, "num_layers": 3},  # one block, then two
    "post norm": {"apply_post_layer_norm": True, "qk_interleaved": True},
    "LLAMA2": {"model_type": "LLAMA2", "embed_split_hidden": True},
    "tied": {"model_type": "QWEN3", "num_kv_attention_heads": 2, "tie_word_embeddings": True},
    "MoE": {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe_type": "MegaBlock-D"},
    "normed head": {"norm_head": True},
    "wide stream": {"dtype": "bfloat16", "residual_in_fp32": True},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "batch_size": 4},
    "sampled": {"top_p": 0.9, "top_k": 20, "temperature": 2.0, "batch_size": 3},
    "penalised": {"temperature": 1.5, "repetition_penalty": 1.5, "length_penalty": 0.8, "batch_size": 4},
    "ending": {"do_sample": False, "repetition_penalty": 1.1, "eos_id": [9, 20, 33, 50, 61], "batch_size": 4},
    "beams": {"do_sample": False, "num_beams": 3, "batch_size": 3, "eos_id": [9, 33]},
    "drawn beams": {"num_beams": 2, "temperature": 2.0, "repetition_penalty": 1.2, "batch_size": 4},
    "stretched": {"do_sample": False, "dynamic_ntk": True, "batch_size": 4},
}


def whole(family: str) -> Decoder:
    """A model of that family; texts beyond 6 tokens are long ones to it."""
    return decoder(vocab_size=64, max_position_embeddings=6, **FAMILIES[family])


def part_of(model: Decoder, mesh: Mesh, placing: Placing | None = None) -> Decoder:
    """What this rank holds of a model."""
    own: Any = build_parallel(model.cfg, mesh, "cpu", dtype=model.dtype, placing=placing)
    cut, weights = placements_of(own), dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if name in cut:
                Placed(parameter, cut[name]).fill(weights[name])
            else:
                parameter.copy_(weights[name])
    return own.eval()


def texts(model: Decoder, *settings: str, mesh: Mesh | None = None) -> list[list[tuple[list[int], bool]]]:
    return [
        [
            (result.ids, result.finished)
            for result in generate(model, None, PROMPTS, max_new_tokens=9, seed=3, mesh=mesh, **SETTINGS[name])
        ]
        for name in settings
    ]


@pytest.mark.parametrize(
    ("layout", "asked"),
    [
        ({"pipeline": 2}, {family: ["greedy", "drawn beams"] for family in FAMILIES} | {"INTERNLM2": list(SETTINGS)}),
        ({"pipeline": 2, "tensor": 2}, {"tied": ["sampled", "beams"], "MoE": ["greedy"], "INTERNLM2": ["stretched"]}),
        ({"pipeline": 3}, {"INTERNLM2": ["sampled", "beams", "stretched"]}),
    ],
)
def test_the_tokens_of_one_process(layout: dict[str, int], asked: dict[str, list[str]]) -> None:
    expected = {family: texts(whole(family), *settings) for family, settings in asked.items()}
    if "ending" in asked["INTERNLM2"]:  # or nothing is shown of rows that leave before others
        of_ending = expected["INTERNLM2"][list(SETTINGS).index("ending")]
        assert len({len(ids) for ids, _ in of_ending}) > 2
        assert any(finished for _, finished in of_ending)

    def ranks() -> Any:
        mesh = mesh_of(zero1=1, **layout)
        return {family: texts(part_of(whole(family), mesh), *settings, mesh=mesh) for family, settings in asked.items()}

    for found in run_on_ranks(ranks, layout["pipeline"] * layout.get("tensor", 1)):
        assert found == expected


def test_rows_join_and_leave_on_the_short_path_and_through_modules() -> None:
    def of(model: Decoder, short: bool, mesh: Mesh | None = None) -> list[tuple[list[int], list[float]]]:
        rows = rows_that_come_and_go(model, mesh, short=short)
        return [(row.new, [round(value, 9) for value in row.log_probs or []]) for row in rows]

    families = ("INTERNLM2", "MoE")
    expected = [of(whole(family), short=True) for family in families]

    def ranks() -> Any:
        mesh = mesh_of(pipeline=2)
        first = mesh.pipeline.rank == 0
        # Each stage takes the path that its own blocks allow.
        return [
            [of(part_of(whole(family), mesh), short, mesh) for family in families]
            for short in (False, first, not first)
        ]

    for found in run_on_ranks(ranks, 2):
        assert found == [expected] * 3


def test_each_stage_remembers_its_own_blocks() -> None:
    @torch.inference_mode()
    def ranks() -> Any:
        mesh = mesh_of(pipeline=2)
        model = part_of(whole("INTERNLM2"), mesh)
        cache = KVCache(model)
        logits = Forward(model, mesh).prompts([[3, 4, 5], [6]], [5, 5], cache)
        return {layer: tuple(kept.shape[:3]) for layer, kept in cache.layers.items()}, logits.device.type

    first, last = run_on_ranks(ranks, 2)
    assert first == ({0: (2, 2, 2)}, "meta")
    assert last == ({1: (2, 2, 2), 2: (2, 2, 2)}, "cpu")


def test_the_last_stage_chooses() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 3.0, "batch_size": 3}

    def ranks() -> Any:
        mesh = mesh_of(pipeline=2)
        model, seed = part_of(whole("INTERNLM2"), mesh), mesh.pipeline.rank
        return [
            [result.ids for result in generate(model, None, PROMPTS, seed=seed, num_beams=n, mesh=mesh, **settings)]
            for n in (1, 2)
        ]

    of_last = [
        [result.ids for result in generate(whole("INTERNLM2"), None, PROMPTS, seed=1, num_beams=n, **settings)]
        for n in (1, 2)
    ]
    assert run_on_ranks(ranks, 2) == [of_last] * 2


@pytest.mark.parametrize("broken", [0, 1])
def test_weights_that_are_no_numbers_end_a_text_on_every_stage(broken: int) -> None:
    """Of one token in one stage: the rows that read it fail, on all ranks, and no others."""

    def ranks() -> Any:
        mesh = mesh_of(pipeline=2)
        model: Any = part_of(whole("INTERNLM2"), mesh)
        if mesh.pipeline.rank == broken:
            weight = model.embedding.weight if broken == 0 else model.head.weight
            with torch.no_grad():
                weight[12, 0] = float("nan")
        settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "batch_size": 4, "mesh": mesh}
        return [[r.error for r in generate(model, None, PROMPTS, num_beams=n, **settings)] for n in (1, 2)]

    first, last = run_on_ranks(ranks, 2)
    assert first == last
    for errors in first:
        assert [number for number, error in enumerate(errors) if error] == ([2] if broken == 0 else [0, 1, 2, 3])
        assert "8 tokens are not finite" in errors[2]


def test_a_stream_is_that_of_one_process_and_may_be_left() -> None:
    def pieces(model: Decoder, mesh: Mesh | None = None) -> list[str]:
        options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 2.0, "mesh": mesh}
        left = stream(model, LetterTokenizer(), "a cat", seed=5, **options)
        return [next(left), *stream(model, LetterTokenizer(), "the cat", seed=4, **options)]

    expected = pieces(whole("INTERNLM2"))

    def ranks() -> list[str]:
        mesh = mesh_of(pipeline=2)
        return pieces(part_of(whole("INTERNLM2"), mesh), mesh)

    assert run_on_ranks(ranks, 2) == [expected] * 2


def test_stages_that_cannot_generate_are_refused() -> None:
    def ranks() -> None:
        mesh = mesh_of(pipeline=2)
        with pytest.raises(ValueError, match="a stage generates no tokens alone"):
            generate(part_of(whole("INTERNLM2"), mesh), None, PROMPTS)
        chunks = part_of(decoder(vocab_size=64, num_layers=4), mesh, Placing(2, chunks=2))
        with pytest.raises(ValueError, match="one stage each"):
            generate(chunks, None, PROMPTS, mesh=mesh)

    run_on_ranks(ranks, 2)
