"""A run that starts from another system's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint import load_model
from evo_core.errors import CheckpointError
from evo_core.model import build_model
from evo_core.train import train
from evo_core.train.start import Start
from evo_core.weights import open_weights, write_weights
from tests.model.configs import randomise
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job
from tests.weights.internevo_files import (
    tensor_shard,
    write_context,
    write_isp,
    write_model_config,
    write_scheduler,
    write_tensor_parallel,
)
from tests.weights.models import weights

ISP = {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2, "overlap": True, "memory_pool": True}}


def from_there(folder: Path, path: Path | str, ckpt_type: str, content: Any = "model", **changes: Any) -> Any:
    """A job of one step at a learning rate too small to change a float64's first ten digits."""
    ckpt = {
        "save_ckpt_folder": str(folder / "ckpt"),
        "auto_resume": False,
        "load_ckpt_info": {"path": str(path), "content": content, "ckpt_type": ckpt_type},
    }
    rate = {"data__total_steps": 1, "adam__lr": 1e-13, "lr_scheduler__eta_min": 0.0, "adam__weight_decay": 0.0}
    return job(folder, ckpt=ckpt, **rate, **changes)


def made(folder: Path, **changes: Any) -> Any:
    """A model of the job's shape with weights of its own."""
    model = build_model(job(folder, **changes).model)
    randomise(model, seed=5)
    return model


def theirs(folder: Path) -> Path:
    """A folder of InternEvo: 6 batches, of which one had no update."""
    write_tensor_parallel(made(folder.parent).state_dict(), folder, 2, tensor=2, pipeline=1)
    write_model_config(folder, {"num_attention_heads": 4, "num_kv_attention_heads": 2})
    write_context(folder, batches=6, updates=5, tokens=6 * 128)
    write_scheduler(folder, position=5, total_steps=20, warmup=4, lr=1e-2, eta_min=1e-3)
    (folder / f"{folder.name}.step").write_text("")
    return folder


def write_meta(model: Any, folder: Path) -> None:
    """Two shards of the job's model of family LLAMA2."""
    folder.mkdir()
    for rank in range(2):
        shard = {name: tensor_shard(name, tensor, rank, 2) for name, tensor in model.state_dict().items()}
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    params = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 64}
    (folder / "params.json").write_text(json.dumps(params))


def start_loss(cfg: Any, folder: Path) -> float:
    train(cfg, folder=folder)
    return float(curve(folder)[0]["loss"])


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_weights(weights(made(tmp_path)), tmp_path / "hf", "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("ckpt_type", ["hf_llama", "hf_model"])
def test_from_a_hugging_face_folder(tmp_path: Path, hf: Path, ckpt_type: str) -> None:
    """The weights trained on are those of the folder, to the last bit that one tiny step leaves."""
    cfg = from_there(tmp_path, hf, ckpt_type)
    result = train(cfg, folder=tmp_path / "run")
    trained, _ = load_model(result.checkpoint)
    for name, tensor in made(tmp_path).state_dict().items():
        assert torch.allclose(trained.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)
    assert curve(tmp_path / "run")[0]["step"] == 0


def test_rows_are_put_in_this_runs_order(tmp_path: Path, hf: Path) -> None:
    """Neighbouring pairs, separate projections: other tensors, the same loss."""
    here = start_loss(from_there(tmp_path, hf, "hf_model"), tmp_path / "a")
    there = from_there(tmp_path, hf, "hf_model", model_type="LLAMA2", model__qk_interleaved=True)
    assert start_loss(there, tmp_path / "b") == pytest.approx(here, rel=1e-12)


@pytest.mark.parametrize("ckpt_type", ["internevo", "internlm"])
def test_from_an_internevo_folder_without_its_shape(tmp_path: Path, ckpt_type: str) -> None:
    model = made(tmp_path)
    write_tensor_parallel(model.state_dict(), tmp_path / "theirs" / "20", 2, tensor=2, pipeline=2)
    (tmp_path / "theirs" / "20" / "20.step").write_text("")
    result = train(from_there(tmp_path, f"local:{tmp_path / 'theirs'}", ckpt_type), folder=tmp_path / "run")
    trained, _ = load_model(result.checkpoint)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(trained.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


def test_from_metas_files(tmp_path: Path) -> None:
    """Two shards; LLAMA2 has Meta's names and Meta's order."""
    family = {"model_type": "LLAMA2", "model__no_bias": True, "model__qk_interleaved": True}
    model = made(tmp_path, **family)
    write_meta(model, tmp_path / "theirs")
    result = train(from_there(tmp_path, tmp_path / "theirs", "llama", **family), folder=tmp_path / "run")
    trained, _ = load_model(result.checkpoint)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(trained.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


def test_on_several_ranks(tmp_path: Path, hf: Path) -> None:
    alone = start_loss(from_there(tmp_path, hf, "hf_model"), tmp_path / "alone")

    def run() -> None:
        train(from_there(tmp_path, hf, "hf_model"), folder=tmp_path / "ranks")
        dist.barrier()

    run_on_ranks(run, 2)
    assert curve(tmp_path / "ranks")[0]["loss"] == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("parallel", [{"tensor": 2}, ISP], ids=["mtp", "isp"])
def test_on_tensor_ranks(tmp_path: Path, hf: Path, parallel: dict[str, Any]) -> None:
    """Each reads its part; what is no number in the part of any of them is told."""
    alone = start_loss(from_there(tmp_path, hf, "hf_model"), tmp_path / "alone")

    def run(path: Path, name: str) -> None:
        train(from_there(tmp_path, path, "hf_model", parallel=parallel), folder=tmp_path / name)
        dist.barrier()

    run_on_ranks(run, 2, hf, "ranks")
    assert curve(tmp_path / "ranks")[0]["loss"] == pytest.approx(alone, rel=1e-12)
    assert "NaN" not in (tmp_path / "ranks" / "train.log").read_text()

    spoilt = made(tmp_path)
    spoilt.get_parameter("layers.1.feed_forward.w3.weight").data[-1] = torch.nan  # the last rank's
    write_weights(weights(spoilt), tmp_path / "spoilt", "hf")
    run_on_ranks(run, 2, tmp_path / "spoilt", "warned")
    said = (tmp_path / "warned" / "train.log").read_text()
    assert f"{tmp_path / 'spoilt'} has NaN or infinite weights: layers.1.feed_forward.w3.weight (16 of " in said


@pytest.mark.parametrize("kind", ["internevo", "internevo, isp", "llama"])
def test_gathered_weights_are_those_of_any_folder(tmp_path: Path, kind: str) -> None:
    family = {"model_type": "LLAMA2", "model__no_bias": True, "model__qk_interleaved": True}
    model, there = made(tmp_path, **family), tmp_path / "theirs"
    if kind == "internevo":
        write_tensor_parallel(model.state_dict(), there, 2, tensor=2, pipeline=2)
    elif kind == "internevo, isp":
        write_isp(model.state_dict(), there, 2, tensor=4, weight=2, pipeline=1)
    else:
        write_meta(model, there)
    cfg = from_there(tmp_path, there, kind.partition(",")[0], parallel=ISP, **family)
    run_on_ranks(lambda: (train(cfg, folder=tmp_path / "run"), dist.barrier()), 2)
    trained, _ = load_model(tmp_path / "ckpt" / "1")
    for name, tensor in model.state_dict().items():
        assert torch.allclose(trained.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["internevo", pytest.param("hf_model", marks=pytest.mark.slow)])
def test_each_rank_reads_the_experts_that_it_has(tmp_path: Path, kind: str) -> None:
    """A file for each; from there on the run is that of one process, and what it saves has all of them."""
    family = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}
    model, there = made(tmp_path, **family), tmp_path / "theirs"
    if kind == "internevo":
        write_tensor_parallel(model.state_dict(), there, 2, tensor=2, pipeline=1)
    else:
        write_weights(weights(model), there, "hf")
    cfg = from_there(tmp_path, there, kind, **family)
    assert cfg.degrees(2).expert == 2
    run_on_ranks(lambda: (train(cfg, folder=tmp_path / "run"), dist.barrier()), 2)
    trained, _ = load_model(tmp_path / "ckpt" / "1")
    assert trained.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(trained.state_dict()[name], tensor, rtol=1e-9, atol=1e-11), name
    write_weights(open_weights(tmp_path / "ckpt" / "1"), tmp_path / "converted", "internevo")
    assert len([*(tmp_path / "converted").glob("model_moe_layer*_expert*_tp0.pt")]) == 2 * 4
    again = start_loss(from_there(tmp_path / "ckpt", tmp_path / "converted", "internevo", **family), tmp_path / "again")
    assert again == pytest.approx(curve(tmp_path / "run")[0]["loss"], rel=1e-9)


def test_a_wrong_type_is_named_with_the_right_one(tmp_path: Path, hf: Path) -> None:
    for said, right in (("internevo", "hf_model"), ("llama", "hf_model")):
        with pytest.raises(
            CheckpointError, match=f"ckpt_type: {said}: .* another format .hf. .write ckpt_type: {right}"
        ):
            train(from_there(tmp_path, hf, said), folder=tmp_path / "run")


@pytest.mark.parametrize("content", [["model", "optimizer"], ["model", "sampler", "scheduler"], "all"])
def test_what_is_not_read_of_internevo_is_refused_with_what_to_write(tmp_path: Path, content: Any) -> None:
    theirs(tmp_path / "20")
    said = r'neither optimizer nor place in the data \(write content: \["model", "scheduler"\]\)$'
    with pytest.raises(CheckpointError, match=said):
        train(from_there(tmp_path, tmp_path / "20", "internevo", content), folder=tmp_path / "run")


def test_of_other_systems_the_model_alone_is_read(tmp_path: Path, hf: Path) -> None:
    said = r'only the model is read, neither .* \(write content: \["model"\]\)$'
    with pytest.raises(CheckpointError, match=said):
        train(job(tmp_path), init=Start(hf, ("model", "scheduler"), resumes=False), folder=tmp_path / "run")


def test_weights_alone_have_no_optimizer(tmp_path: Path) -> None:
    write_weights(weights(made(tmp_path)), tmp_path / "evo", "evo")
    with pytest.raises(CheckpointError, match="holds weights alone, no states of an optimizer"):
        train(from_there(tmp_path, tmp_path / "evo", "internevo", "all"), folder=tmp_path / "run")
    assert start_loss(from_there(tmp_path, tmp_path / "evo", "evo"), tmp_path / "run") > 0


def test_other_shapes_and_heads_are_refused(tmp_path: Path, hf: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks layers\.2\..* and"):
        train(from_there(tmp_path, hf, "hf_model", model__num_layers=3), folder=tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"model\.num_attention_heads: has num_attention_heads 4 there and 8 here"
    ):
        cfg = from_there(tmp_path, hf, "hf_model", model__num_attention_heads=8, model__num_kv_attention_heads=4)
        train(cfg, folder=tmp_path / "run")


def test_settings_that_change_what_weights_mean_are_named(
    tmp_path: Path, hf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(from_there(tmp_path, hf, "hf_model", model__rope_base=5e5), folder=tmp_path / "run")
    said = capsys.readouterr().out
    assert "model.rope_base is 10000.0 with these weights and 500000.0 in this run" in said
    assert "layer_norm_epsilon is" not in said


def test_a_hub_id_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cfg = from_there(tmp_path, "internlm/internlm-7b", "hf_model")
    with pytest.raises(CheckpointError) as caught:
        train(cfg, folder=tmp_path / "run")
    assert "there is no folder internlm/internlm-7b, and as a hub id it cannot be fetched" in str(caught.value)
    assert "local:/path/to/internlm-7b" in str(caught.value)


def test_a_hub_id(tmp_path: Path, hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, settings and tokenizer are asked for, and no code."""
    asked: list[Any] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(hf)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert open_weights("internlm/internlm-7b").folder == hf
    assert start_loss(from_there(tmp_path, "internlm/internlm-7b", "hf_model"), tmp_path / "run") > 0
    assert {name for name, _ in asked} == {"internlm/internlm-7b"}
    assert not any(pattern.endswith((".py", "*")) for _, patterns in asked for pattern in patterns)
    saved = json.loads((tmp_path / "ckpt" / "1" / "manifest.json").read_text())
    assert saved["step"] == 1
    config = (tmp_path / "ckpt" / "1" / "config.yaml").read_text()
    assert "path: internlm/internlm-7b" in config
