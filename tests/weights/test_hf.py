"""Hugging Face folders: against transformers itself, there and back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.checkpoint import load_model
from evo_core.errors import CheckpointError
from evo_core.placement import Rectangle
from evo_core.weights import as_model_type, build, cast, kind_of, open_weights, write_weights
from evo_core.weights.safetensors_file import read_safetensors
from tests.model.configs import relative_error
from tests.weights.models import SHAPES, content, logits, model, same, their_logits, weights

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def theirs(kind: str, **settings: Any) -> Any:
    """A random model of transformers, float32."""
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    made = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return made


@pytest.mark.parametrize(
    ("kind", "settings", "model_type"),
    [
        ("Llama", {}, "LLAMA2"),
        ("Llama", {"attention_bias": True, "tie_word_embeddings": True}, "LLAMA2"),
        ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}, "LLAMA3"),
        ("Qwen3", {"head_dim": 16}, "QWEN3"),
        ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-4}, "QWEN3"),
    ],
)
def test_what_transformers_wrote_gives_the_same_logits(
    tmp_path: Path, kind: str, settings: dict[str, Any], model_type: str
) -> None:
    made = theirs(kind, **settings)
    made.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    ours, tokenizer = load_model(tmp_path / "theirs")
    assert ours.cfg.model_type == model_type
    assert tokenizer is None
    assert relative_error(logits(ours), their_logits(made)) <= 1e-5

    # And back: the very same tensors.
    write_weights(open_weights(tmp_path / "theirs"), tmp_path / "ours", "hf", max_shard=30_000)
    before = {
        name: t.read() for f in (tmp_path / "theirs").glob("*.safetensors") for name, t in read_safetensors(f).items()
    }
    after = {
        name: t.read() for f in (tmp_path / "ours").glob("*.safetensors") for name, t in read_safetensors(f).items()
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_one_file_of_all_goes_before_an_index_that_was_left_there(tmp_path: Path) -> None:
    """A folder saved anew as a whole where shards were, against transformers, which reads it so."""
    from transformers import AutoModelForCausalLM

    made = theirs("Llama")
    with torch.no_grad():
        made.lm_head.weight.mul_(2)
    made.save_pretrained(tmp_path / "old", max_shard_size="30KB")
    theirs("Llama").save_pretrained(tmp_path / "both")
    for file in tmp_path.glob("old/model*"):
        file.rename(tmp_path / "both" / file.name)
    expected = their_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "both"))
    assert relative_error(logits(load_model(tmp_path / "both")[0]), expected) <= 1e-5
    for shard in tmp_path.glob("both/model-*"):
        shard.unlink()
    assert relative_error(logits(load_model(tmp_path / "both")[0]), expected) <= 1e-5


def test_a_tied_matrix_that_is_stored_as_the_head_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    theirs("Llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = their_logits(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert relative_error(logits(load_model(tmp_path)[0]), expected) <= 1e-5


@pytest.mark.parametrize("model_type", ["LLAMA2", "LLAMA3", "QWEN3"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_transformers_loads_what_we_wrote(tmp_path: Path, model_type: str, interleaved: bool) -> None:
    from transformers import AutoModelForCausalLM

    made = model(model_type, qk_interleaved=interleaved)
    write_weights(weights(made), tmp_path / "hf", "hf", max_shard=20_000)
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    read, found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(read).__name__ == ("Qwen3ForCausalLM" if model_type == "QWEN3" else "LlamaForCausalLM")
    assert relative_error(their_logits(read), logits(made)) <= 1e-5


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_internlm_as_a_llama(tmp_path: Path, model_type: str, dynamic: bool) -> None:
    """They are llamas in all but names and order, long texts included: transformers computes the same."""
    from transformers import AutoModelForCausalLM

    length = {"use_dynamic_ntk_rope": dynamic, "max_position_embeddings": 10, "dynamic_ntk_factor": 2.0}
    made = model(model_type, **length)
    write_weights(weights(made), tmp_path / "hf", "hf", architecture="LlamaForCausalLM")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert relative_error(their_logits(read), logits(made)) <= 1e-5
    back = build(as_model_type(open_weights(tmp_path / "hf"), model_type))
    assert same(back, made)


@pytest.mark.parametrize("model_type", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_equal(tmp_path: Path, model_type: str, dtype: str) -> None:
    made = model(model_type, dtype=dtype, qk_interleaved=False)
    write_weights(weights(made), tmp_path / "hf", "hf", max_shard=15_000)
    found = open_weights(tmp_path / "hf")
    assert (found.kind, found.model.model_type) == ("hf", model_type)
    assert same(build(found), made)
    assert found.model.moe == made.cfg.moe
    write_weights(found, tmp_path / "evo", "evo")
    again = open_weights(tmp_path / "evo")
    assert same(build(again), made)
    write_weights(again, tmp_path / "hf2", "hf", max_shard=15_000)
    assert content(tmp_path / "hf") == content(tmp_path / "hf2")


def test_internlm_names_and_rotary(tmp_path: Path) -> None:
    """The names of InternLM's own class, and rows in its order, written out by hand."""
    made = model("INTERNLM", use_dynamic_ntk_rope=True)
    write_weights(weights(made), tmp_path / "as it runs", "hf")
    tensors = {name: t.read() for name, t in read_safetensors(tmp_path / "as it runs" / "model.safetensors").items()}
    state = made.state_dict()
    for layer in range(2):
        for number, part in enumerate("qkv"):
            rows = slice(32 * number, 32 * (number + 1))
            for kind in ("weight", "bias"):
                theirs = tensors[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"]
                assert torch.equal(theirs, state[f"blocks.{layer}.mixer.Wqkv.{kind}"][rows])
        for ours, name in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            assert torch.equal(
                tensors[f"model.layers.{layer}.mlp.{name}.weight"], state[f"blocks.{layer}.mlp.{ours}.weight"]
            )
    assert torch.equal(tensors["model.embed_tokens.weight"], state["embedding.weight"])
    assert len(tensors) == 3 + 2 * (8 + 3 + 2)
    config = json.loads((tmp_path / "as it runs" / "config.json").read_text())
    assert config["rotary"] == {"base": 10000.0, "type": "dynamic"}
    assert config["bias"] is True
    assert open_weights(tmp_path / "as it runs").model.use_dynamic_ntk_rope

    write_weights(weights(made), tmp_path / "plain", "hf", rotary_type="origin")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["rotary"]["type"] == "origin"
    assert not open_weights(tmp_path / "plain").model.use_dynamic_ntk_rope


def test_internlm2_names_and_rows(tmp_path: Path) -> None:
    """With neighbouring pairs the query and key rows of wqkv are reordered, values are not."""
    made = model("INTERNLM2_PUBLIC", qk_interleaved=True)
    write_weights(weights(made), tmp_path / "hf", "hf")
    tensors = {name: t.read() for name, t in read_safetensors(tmp_path / "hf" / "model.safetensors").items()}
    ours = made.state_dict()["layers.1.attention.wqkv.weight"]
    theirs = tensors["model.layers.1.attention.wqkv.weight"]
    for row in range(64):  # 2 key/value heads of (2 queries, key, value), each 8 rows
        head, place = divmod(row, 8)
        value = head % 4 == 3
        source = row if value else 8 * head + (2 * place if place < 4 else 2 * (place - 4) + 1)
        assert torch.equal(theirs[row], ours[source]), row
    assert torch.equal(tensors["output.weight"], made.state_dict()["output.weight"])


def test_pickled_weights_without_code(tmp_path: Path) -> None:
    made = theirs("Llama")
    made.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)  # as old versions save it
    (tmp_path / "model.safetensors").unlink()
    names = list(state)
    index = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert relative_error(logits(build(open_weights(tmp_path))), their_logits(made)) <= 1e-5

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model.norm.weight": Evil()}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin: cannot be read as tensors"):
        open_weights(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="is named by the index and is not there"):
        open_weights(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_named_together(tmp_path: Path) -> None:
    made = theirs("Llama")
    state = made.state_dict()
    state["model.layers.1.mlp.gate_proj.bias"] = torch.zeros(88)
    state["model.norm.weight"] = torch.zeros(47)
    del state["model.layers.2.self_attn.q_proj.weight"]
    made.save_pretrained(tmp_path, state_dict=state)
    found = open_weights(tmp_path)
    in_the_model = (
        r"lacks layers\.2\.attention\.wq\.weight; has layers\.1\.feed_forward\.w1\.bias, which this model does not "
        r"have; norm\.weight has shape \[47\] there and \[48\] here$"
    )
    with pytest.raises(CheckpointError, match=in_the_model):
        build(found)
    in_plain_form = (
        r"lacks blocks\.2\.attention\.q\.weight; has blocks\.1\.mlp\.gate\.bias, which this model does not have; "
        r"has the shapes norm\.weight \[47\] in place of \[48\]"
    )
    with pytest.raises(CheckpointError, match=in_plain_form):
        write_weights(found, tmp_path / "evo", "evo")
    assert not (tmp_path / "evo").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"architectures": ["GPTNeoXForCausalLM"]}, "GPTNeoXForCausalLM is not supported"),
        (
            {"architectures": ["XForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
            "it brings code of its own, which is not run",
        ),
        ({"rope_parameters": YARN}, "rotary positions of type 'yarn' are not supported"),
        ({"mlp_bias": True}, "an MLP with biases is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"hidden_size": None}, "cannot be read"),
        ({"num_attention_heads": 5}, "describes a model that is not supported"),
    ],
)
def test_what_our_decoder_does_not_do_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    theirs("Llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_weights(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "architecture", "problem"),
    [
        ({"norm_type": "layernorm"}, None, "model.norm_type layernorm"),
        ({"use_swiglu": False}, None, "model.use_swiglu False"),
        ({"apply_post_layer_norm": True}, None, "model.apply_post_layer_norm True"),
        ({}, "Qwen3ForCausalLM", "model.qk_norm False"),
        ({}, "InternLMForCausalLM", "model.num_kv_attention_heads 2"),
        ({}, "LlamForCausalLM", "did you mean"),
    ],
)
def test_what_a_class_has_no_place_for_is_refused(
    tmp_path: Path, settings: dict[str, Any], architecture: str | None, problem: str
) -> None:
    made = weights(model("INTERNLM2_PUBLIC", **settings))
    with pytest.raises(CheckpointError, match=problem):
        write_weights(made, tmp_path / "hf", "hf", architecture=architecture)
    assert list(tmp_path.iterdir()) == []


def test_a_normed_head_is_written_as_it_multiplies(tmp_path: Path) -> None:
    made = model("INTERNLM2_PUBLIC", norm_head=True)
    write_weights(weights(made), tmp_path / "hf", "hf")
    assert relative_error(logits(build(open_weights(tmp_path / "hf"))), logits(made)) <= 1e-6


def test_a_damaged_file(tmp_path: Path) -> None:
    write_weights(weights(model("LLAMA2")), tmp_path / "hf", "hf")
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        open_weights(tmp_path / "hf")


def test_cast_leaves_what_is_kept_wide(tmp_path: Path) -> None:
    made = model("INTERNLM_MoE", dtype="bfloat16")
    narrow = cast(weights(made), torch.float16)
    kinds = {name: tensor.dtype for name, tensor in narrow.tensors.items()}
    router = [name for name in kinds if ".gate.wg." in name]
    assert len(router) == 2
    assert {kinds[name] for name in router} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if name not in router} == {torch.float16}
    write_weights(narrow, tmp_path / "hf", "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "float16"


def test_the_target_must_be_free_and_appears_whole(tmp_path: Path) -> None:
    made = weights(model("LLAMA2"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="is there already"):
        write_weights(made, tmp_path / "taken", "hf")
    assert content(tmp_path / "taken") == {"mine": b"x"}
    (tmp_path / "empty").mkdir()
    write_weights(made, tmp_path / "empty", "hf")
    assert kind_of(tmp_path / "empty") == "hf"

    def fail(where: Rectangle) -> torch.Tensor:
        seen.append([path.name for path in tmp_path.iterdir()])
        raise KeyboardInterrupt

    seen: list[list[str]] = []
    broken = dict(made.tensors)
    broken["head.weight"] = replace(broken["head.weight"], source=fail)
    for kind in ("hf", "evo", "internevo"):
        with pytest.raises(KeyboardInterrupt):
            write_weights(replace(made, tensors=broken), tmp_path / "new", kind)  # type: ignore[arg-type]
        assert "new" not in seen[-1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken"]
