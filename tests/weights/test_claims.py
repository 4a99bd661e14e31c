"""Folders that claim what is not so: files elsewhere, impossible sizes, weights that are no numbers."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evo_core.checkpoint import load_model
from evo_core.checkpoint.records import file_record
from evo_core.convert.command import main as convert
from evo_core.errors import CheckpointError
from evo_core.serve.command import main as serve
from evo_core.weights import build, kind_of, open_weights, write_weights
from tests.weights.models import model, same, weights
from tests.weights.test_hf_config import edited


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A Hugging Face folder in several files."""
    write_weights(weights(model("LLAMA2")), tmp_path / "hf", "hf", max_shard=20_000)
    return tmp_path / "hf"


@pytest.fixture
def evo(tmp_path: Path) -> Path:
    write_weights(weights(model("LLAMA2")), tmp_path / "evo", "evo")
    return tmp_path / "evo"


def refused(folder: Path) -> str:
    """What is said of a folder, in one line, by whatever reads it."""
    said = []
    for read in (lambda: load_model(folder), lambda: build(open_weights(folder))):
        with pytest.raises(CheckpointError) as caught:
            read()
        said.append(str(caught.value))
    assert "\n" not in said[0] + said[1]
    return said[0]


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "a/../../b.safetensors", 7, None, [], ""])
def test_an_index_names_files_of_its_own_folder(hf: Path, name: Any) -> None:
    index = hf / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first, *_ = content["weight_map"]
    (hf.parent / "elsewhere.safetensors").write_bytes((hf / content["weight_map"][first]).read_bytes())
    content["weight_map"][first] = name
    index.write_text(json.dumps(content))
    assert str(index) in refused(hf)


@pytest.mark.parametrize("names", [[], ["a"], "model.safetensors", 5, None, ...])
def test_an_index_without_names_is_refused(hf: Path, names: Any) -> None:
    index = hf / "model.safetensors.index.json"
    index.write_text(json.dumps({} if names is ... else {"weight_map": names}))
    assert f"{index}: weight_map" in refused(hf)


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b""])
def test_an_index_that_is_no_json_is_refused(hf: Path, content: bytes) -> None:
    (hf / "model.safetensors.index.json").write_bytes(content)
    assert "model.safetensors.index.json" in refused(hf)


def test_links_are_followed_as_in_the_hub_s_cache(hf: Path) -> None:
    blobs, snapshot = hf.parent / "cache" / "blobs", hf.parent / "cache" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(hf.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    assert same(load_model(snapshot)[0], load_model(hf)[0])


@pytest.mark.parametrize("size", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "head_dim"])
@pytest.mark.parametrize("value", [10**9, 10**15, 3 * 10**15, 1e15])
def test_sizes_that_the_weights_cannot_have_take_no_memory(hf: Path, size: str, value: int) -> None:
    assert "config.json" in refused(edited(hf, **{size: value}))


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**15])
def test_heads_that_cannot_be(hf: Path, value: int) -> None:
    assert "config.json" in refused(edited(hf, num_attention_heads=value, num_key_value_heads=value, head_dim=2))


@pytest.mark.parametrize(
    ("key", "value"), [("num_layers", 10**9), ("hidden_size", 10**12), ("vocab_size", 10**12), ("num_layers", 3)]
)
def test_a_checkpoint_of_ours_with_other_sizes_takes_no_memory(evo: Path, key: str, value: int) -> None:
    config = yaml.safe_load((evo / "config.yaml").read_text())
    config["model"][key] = value
    (evo / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = json.loads((evo / "manifest.json").read_text())
    record = file_record(evo / "config.yaml")
    manifest["files"]["config.yaml"] = {"size": record.size, "digest": record.digest}
    (evo / "manifest.json").write_text(json.dumps(manifest))
    assert str(evo) in refused(evo)


@pytest.mark.parametrize("name", ["blocks.999999999.norm1.weight", "blocks.0.mlp.w1.weight", "w1.weight", "blocks"])
def test_odd_names_in_an_internevo_file(tmp_path: Path, name: str) -> None:
    made = model("INTERNLM")
    write_weights(weights(made), tmp_path / "8", "internevo")
    state = torch.load(tmp_path / "8" / "model_tp0_pp0.pt")
    torch.save(state | {name: torch.zeros(())}, tmp_path / "8" / "model_tp0_pp0.pt")
    assert str(tmp_path / "8") in refused(tmp_path / "8")


def test_a_rank_far_away(tmp_path: Path) -> None:
    write_weights(weights(model("INTERNLM")), tmp_path / "8", "internevo")
    (tmp_path / "8" / "model_tp0_pp0.pt").rename(tmp_path / "8" / "model_tp999999999_pp0.pt")
    assert "tp0" in refused(tmp_path / "8")


@pytest.mark.parametrize("params", ["[]", '{"dim": 1e999, "n_layers": 1, "n_heads": 1}', '{"dim": 0}', "{"])
def test_params_of_a_llama_that_are_none(tmp_path: Path, params: str) -> None:
    (tmp_path / "params.json").write_text(params)
    torch.save({"tok_embeddings.weight": torch.zeros(3), "x": torch.zeros(1)}, tmp_path / "consolidated.00.pth")
    assert "params.json" in refused(tmp_path)


@pytest.mark.parametrize("state", [{}, {"a": 1}, [], torch.zeros(2), {"state_dict": {}}], ids=str)
def test_files_without_tensors(hf: Path, state: Any) -> None:
    for file in hf.glob("model*"):
        file.unlink()
    torch.save(state, hf / "pytorch_model.bin")
    assert kind_of(hf) == "hf"
    assert str(hf) in refused(hf)


def test_a_tensor_that_looks_larger_than_its_file(hf: Path) -> None:
    for file in hf.glob("model*"):
        file.unlink()
    torch.save({"model.embed_tokens.weight": torch.zeros(1).expand(10**6, 10**6)}, hf / "pytorch_model.bin")
    assert "larger than what the file holds" in refused(hf)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_whole_numbers_as_weights_are_quantised_ones(hf: Path, suffix: str, every: bool) -> None:
    from safetensors.torch import load_file, save_file

    state = {name: tensor for file in hf.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in hf.glob("model*"):
        file.unlink()
    chosen = list(state) if every else ["model.layers.1.mlp.up_proj.weight"]
    state |= {name: state[name].to(torch.int8) for name in chosen}
    if suffix == "bin":
        torch.save(state, hf / "pytorch_model.bin")
    else:
        save_file(state, hf / "model.safetensors")
    assert "quantised" in refused(hf)


def broken(folder: Path, kind: Any, value: float) -> Path:
    """A folder of a format in which a few weights are no numbers."""
    made = model("LLAMA2")
    with torch.no_grad():
        made.get_submodule("layers.1").attention_norm.weight[:3] = value  # type: ignore[union-attr]
    write_weights(weights(made), folder, kind)
    return folder


@pytest.mark.parametrize("kind", ["evo", "hf", "internevo"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named_when_loaded(
    tmp_path: Path, kind: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken(tmp_path / "broken", kind, value)
    with caplog.at_level(logging.WARNING):
        load_model(folder)
    assert "has NaN or infinite weights: layers.1.attention_norm.weight (3 of 32)" in caplog.text
    with pytest.raises(CheckpointError, match=r"layers.1.attention_norm.weight"):
        load_model(folder, allow_non_finite=False)


def test_convert_names_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert([str(broken(tmp_path / "broken", "hf", float("nan"))), str(tmp_path / "evo")])
    assert caplog.text.count("has NaN or infinite weights: blocks.1.attention_norm.weight (3 of 32)") == 1


def test_serve_refuses_them_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(broken(tmp_path / "broken", "evo", float("nan")))
    for arguments, said in (([folder], "--allow-non-finite"), ([folder, "--allow-non-finite"], "holds no tokenizer")):
        with pytest.raises(SystemExit) as ended:
            serve(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_sound_weights_are_loaded_without_a_word(evo: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(evo, allow_non_finite=False)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
