"""What a config.json of others means: beside transformers, and for InternLM's classes as they were published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.checkpoint import load_model
from evo_core.errors import CheckpointError
from evo_core.model import build_model
from evo_core.weights import open_weights, write_weights
from tests.model.configs import randomise, relative_error, tiny
from tests.weights.models import SHAPES, logits, model, their_logits, weights
from tests.weights.test_hf import theirs

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 16}


def edited(folder: Path, **changes: Any) -> Path:
    """The folder with other settings; `...` takes one out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": DEFAULT, "rope_scaling": LLAMA3 | ORIGINAL},
        {"rope_parameters": DEFAULT, "rope_scaling": DYNAMIC},
        {"rope_parameters": DEFAULT, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_parameters": LLAMA3 | ORIGINAL, "rope_scaling": None},
        {"rope_parameters": LLAMA3 | ORIGINAL, "rope_scaling": {}},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "rope_scaling": DYNAMIC},
        {
            "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
            "rope_scaling": DYNAMIC,
            "rope_theta": 700.0,
        },
        {"rope_parameters": ..., "rope_theta": 700.0, "rope_scaling": DYNAMIC | {"rope_theta": 300.0}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 700.0},
        {"rope_parameters": ..., "rope_theta": 700.0},
        {"rope_parameters": ..., "rope_scaling": LLAMA3 | ORIGINAL, "rope_theta": 500000.0},
        {"rope_parameters": ..., "rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3, "max_position_embeddings": 8},
        {"rope_parameters": LLAMA3 | ORIGINAL, "original_max_position_embeddings": 4},
        {"rope_parameters": ..., "rope_scaling": None, "rope_theta": ...},
        {"rope_parameters": DEFAULT | {"type": "default"}, "max_position_embeddings": ...},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_rotary_positions_are_those_of_transformers(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    theirs(kind, head_dim=16, max_position_embeddings=10).save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    expected = their_logits(AutoModelForCausalLM.from_pretrained(tmp_path))
    ours, _ = load_model(tmp_path)
    assert relative_error(logits(ours), expected) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary positions of type 'yarn'"),
        ({"rope_scaling": "dynamic"}, "rope_scaling: 'dynamic' is no block"),
        ({"rope_scaling": ..., "rope_parameters": [1]}, "rope_parameters: .* is no block"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor: is missing"),
        ({"rope_scaling": LLAMA3 | {"factor": "x"}}, "describes a model that is not supported"),
        ({"rope_theta": "x", "rope_parameters": ...}, "describes a model that is not supported"),
        ({"rope_theta": -1, "rope_parameters": ...}, "describes a model that is not supported"),
        ({"architectures": [5]}, "architectures: .* is no list of names"),
        ({"architectures": "LlamaForCausalLM"}, "architectures: .* is no list of names"),
        ({"architectures": {"a": 1}}, "architectures: .* is no list of names"),
        ({"architectures": [], "model_type": [1]}, "is not supported"),
        ({"num_attention_heads": 0}, "num_attention_heads: .*0 is not a whole number above 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: .*0 is not a whole number above 0"),
        ({"num_attention_heads": -4}, "num_attention_heads: .*-4 is not a whole number above 0"),
        ({"num_attention_heads": ...}, "num_attention_heads: cannot be read: it is missing"),
        ({"hidden_size": 0}, "hidden_size: .*0 is not a whole number above 0"),
        ({"hidden_size": 1e300}, "hidden_size: .* is no size"),
        ({"hidden_size": math.inf}, "hidden_size: .* is no size"),
        ({"hidden_size": math.nan}, "hidden_size: .* is no size"),
        ({"hidden_size": True}, "hidden_size: .* is no size"),
        ({"hidden_size": "48"}, "hidden_size: .* is no size"),
        ({"hidden_size": [48]}, "hidden_size: .* is no size"),
        ({"hidden_size": 48.5}, "hidden_size: .* is not a whole number"),
        ({"intermediate_size": 0}, "intermediate_size: .*0 is not a whole number above 0"),
        ({"vocab_size": 0}, "vocab_size: .*0 is not a whole number above 0"),
        ({"head_dim": 0}, "head_dim: .*0 is not a whole number above 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: .*0 is not a whole number above 0"),
        ({"architectures": ["InternLMMoEForCausalLM"]}, "num_experts: cannot be read: it is missing"),
        ({"architectures": ["InternLMForCausalLM"], "rotary": "dynamic"}, "rotary: 'dynamic' is no block"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding window"),
        ({"torch_dtype": "int8", "quantization_config": {"bits": 8}}, "quantised"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_a_line(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    theirs("Llama").save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_weights(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def internlm(folder: Path, model_type: str = "INTERNLM", **changes: Any) -> Path:
    """A folder of InternLM's, with biases, as its own code published it; `...` leaves a key to the class."""
    made = build_model(tiny(model_type=model_type, **SHAPES[model_type] | {"no_bias": False}))
    randomise(made, 0)
    write_weights(weights(made), folder, "hf")
    return edited(folder, max_position_embeddings=8, **changes)


@pytest.mark.parametrize("rotary", [..., None, {"base": 10000}, {"base": 10000, "type": "dynamic"}])
def test_internlm_stretches_its_base_where_it_is_not_told_otherwise(tmp_path: Path, rotary: Any) -> None:
    """The class InternLMConfig has the default ``rotary={"base": 10000, "type": "dynamic"}``."""
    ours, _ = load_model(internlm(tmp_path / "hf", rotary=rotary))
    assert ours.cfg.use_dynamic_ntk_rope
    length, trained, width = 24, 8, ours.cfg.head_dim
    # Dynamic NTK with a scaling factor of 1: base · (L / M)^(d / (d − 2)).
    stretched = 10000 * (length / trained) ** (width / (width - 2))
    other, _ = load_model(internlm(tmp_path / "other", rotary={"base": stretched, "type": "origin"}))
    assert relative_error(logits(ours, length), logits(other, length)) <= 1e-6
    origin, _ = load_model(internlm(tmp_path / "origin", rotary={"base": 10000, "type": "origin"}))
    assert relative_error(logits(ours, length), logits(origin, length)) > 1e-3
    assert relative_error(logits(ours, trained), logits(origin, trained)) <= 1e-6


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC"])
@pytest.mark.parametrize("bias", [..., None, True])
def test_internlm_has_biases_where_it_is_not_told_otherwise(tmp_path: Path, model_type: str, bias: Any) -> None:
    told, _ = load_model(internlm(tmp_path / "told", model_type))
    ours, _ = load_model(internlm(tmp_path / "hf", model_type, bias=bias))
    assert not ours.cfg.no_bias
    assert torch.equal(logits(ours), logits(told))


def test_without_the_biases_it_asks_for_a_folder_is_refused(tmp_path: Path) -> None:
    made = model("INTERNLM", no_bias=True)
    write_weights(weights(made), tmp_path / "hf", "hf")
    load_model(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"lacks .*bias"):
        load_model(edited(tmp_path / "hf", bias=...))


def test_rotary_of_a_llama_is_nobody_s(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs("Llama", max_position_embeddings=10).save_pretrained(tmp_path)
    edited(tmp_path, rotary={"base": 20, "type": "dynamic"})
    ours, _ = load_model(tmp_path)
    assert relative_error(logits(ours), their_logits(AutoModelForCausalLM.from_pretrained(tmp_path))) <= 1e-5
