"""A run that starts from a checkpoint which has not all tensors of its model, or has others beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.checkpoint import load_model
from evo_core.command_line.program import invoke
from evo_core.config.identity import identity_of
from evo_core.errors import CheckpointError
from evo_core.model import build_model
from evo_core.storage.files import link_tree
from evo_core.train import train
from evo_core.train.command import app
from evo_core.weights import write_weights
from tests.model.configs import randomise
from tests.ranks import run_on_ranks
from tests.s3_server import S3Server
from tests.train.jobs import curve, job, run, write_job
from tests.weights.internevo_files import write_tensor_parallel
from tests.weights.models import weights

STILL = {"adam__lr": 1e-13, "lr_scheduler__eta_min": 0.0, "adam__weight_decay": 0.0, "data__total_steps": 1}
"""A step that changes no weight in its first ten digits."""


def start(folder: Path, path: Path, allow: dict[str, Any] | None = None, name: str = "new", **changes: Any) -> Any:
    """A job of one step that starts from the model in a folder."""
    info = {"path": str(path), "content": ["model"], "ckpt_type": changes.pop("ckpt_type", "evo")}
    info["content"] = changes.pop("content", info["content"])
    ckpt = {"auto_resume": False, "load_ckpt_info": info | ({"allow": allow} if allow else {})}
    return job(folder, ckpt={"save_ckpt_folder": str(folder / name), **ckpt}, **{**STILL, **changes})


def tensors(result: Any) -> dict[str, Tensor]:
    return load_model(result.checkpoint)[0].state_dict()


def first_weights(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """The weights that a run of the same model begins with."""
    cfg = job(folder, ckpt={"save_ckpt_folder": str(folder / "fresh")}, **{**STILL, **changes})
    return tensors(run(cfg, folder / "fresh-run"))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint of the whole state after three steps."""
    cfg = job(tmp_path, ckpt={"save_ckpt_folder": str(tmp_path / "trained")}, data__total_steps=3)
    return Path(run(cfg, tmp_path / "before").checkpoint)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_weights(weights(made(tmp_path)), tmp_path / "hf", "hf")
    return tmp_path / "hf"


def made(folder: Path, **changes: Any) -> Any:
    model = build_model(job(folder, **changes).model)
    randomise(model, seed=5)
    return model


def test_a_new_layer_gets_first_weights_at_every_layout(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, fresh = load_model(trained)[0].state_dict(), first_weights(tmp_path, model__num_layers=3)
    capsys.readouterr()
    cfg = start(tmp_path, trained, {"missing": ["layers.2.*"]}, model__num_layers=3)
    found = tensors(run(cfg, tmp_path / "run"))
    assert same(found["layers.2.attention.wo.weight"], fresh["layers.2.attention.wo.weight"])
    assert all(same(found[name], before.get(name, fresh[name])) for name in found)
    said = capsys.readouterr().out
    assert f"{trained} lacks, first weights were drawn: layers.2.* (tensors: 9)" in said

    def on_tensor_ranks() -> None:
        allow = {"missing": ["layers.2.*"]}
        cut = start(tmp_path, trained, allow, "cut", model__num_layers=3, parallel={"tensor": 2})
        train(cut, folder=tmp_path / "cut-run")
        dist.barrier()

    run_on_ranks(on_tensor_ranks, 2)
    cut = load_model(tmp_path / "cut" / "1")[0].state_dict()
    assert all(same(cut[name], found[name]) for name in found)


@pytest.mark.s3
def test_from_a_store(s3: S3Server, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    there = f"s3://{s3.new_bucket()}/before"
    link_tree(trained, there)
    allow = {"missing": ["layers.2.*"]}
    on_disk = tensors(run(start(tmp_path, trained, allow, model__num_layers=3), tmp_path / "run"))
    cfg = start(tmp_path, Path("there"), allow, "stored", model__num_layers=3)
    info = cfg.ckpt.load_ckpt_info.model_copy(update={"path": there})
    cfg = cfg.model_copy(update={"ckpt": cfg.ckpt.model_copy(update={"load_ckpt_info": info})})
    found = tensors(run(cfg, tmp_path / "stored-run"))
    assert all(torch.equal(found[name], on_disk[name]) for name in on_disk)


def test_what_is_not_said_is_one_error_with_what_to_write(tmp_path: Path, trained: Path) -> None:
    """Of what the message says to write, the run starts."""
    changes = {"model__num_layers": 1, "model__tie_word_embeddings": True}
    with pytest.raises(CheckpointError) as caught:
        run(start(tmp_path, trained, **changes), tmp_path / "run")
    assert "has layers.1.attention.wo.bias" in str(caught.value)
    written = str(caught.value).partition("write allow: ")[2].partition(" in ckpt")[0]
    assert written == '{unexpected: ["layers.1.*", "output.weight"]}'
    allow = json.loads(written.replace("unexpected", '"unexpected"'))
    found = tensors(run(start(tmp_path, trained, allow, **changes), tmp_path / "run"))
    before = load_model(trained)[0].state_dict()
    assert all(same(tensor, before[name]) for name, tensor in found.items())


def test_a_head_of_its_own_is_drawn_where_it_was_the_embedding(tmp_path: Path) -> None:
    tied = job(tmp_path, ckpt={"save_ckpt_folder": str(tmp_path / "tied")}, **STILL, model__tie_word_embeddings=True)
    checkpoint = Path(run(tied, tmp_path / "before").checkpoint)
    with pytest.raises(CheckpointError, match=r"lacks output\.weight \(.*allow: \{missing: \[\"output\.weight\"\]\}"):
        run(start(tmp_path, checkpoint), tmp_path / "run")
    found = tensors(run(start(tmp_path, checkpoint, {"missing": "output.weight"}), tmp_path / "run"))
    fresh = first_weights(tmp_path)
    assert same(found["output.weight"], fresh["output.weight"])
    assert not same(found["output.weight"], found["tok_embeddings.weight"])


def test_states_of_the_optimizer_for_new_tensors_are_refused(tmp_path: Path, trained: Path) -> None:
    allow = {"missing": ["layers.2.*"]}
    with pytest.raises(CheckpointError) as caught:
        run(start(tmp_path, trained, allow, content=["all"], model__num_layers=3), tmp_path / "run")
    said = str(caught.value)
    assert "layers.2.attention_norm.weight and 4 more: a tensor that is new here has no optimizer states there" in said
    assert said.endswith('(write content: ["model", "sampler", "scheduler"])')
    # Of what is left over, states are not asked for.
    allow = {"unexpected": ["layers.1.*"]}
    cfg = start(tmp_path, trained, allow, content=["all"], model__num_layers=1, data__total_steps=4)
    assert run(cfg, tmp_path / "run").step == 4


def test_what_the_run_saved_itself_must_be_whole(tmp_path: Path, trained: Path) -> None:
    """Going on, nothing is missing: a pattern of the start has no say in it."""
    cfg = start(tmp_path, trained, {"missing": ["layers.2.*"]}, model__num_layers=3)
    run(cfg, tmp_path / "run")
    again = start(tmp_path, trained, {"missing": ["layers.9.*"]}, model__num_layers=3, data__total_steps=2)
    again = again.model_copy(update={"ckpt": again.ckpt.model_copy(update={"auto_resume": True})})
    assert run(again, tmp_path / "run").step == 2


def test_a_start_given_to_the_command(tmp_path: Path, trained: Path) -> None:
    """By its options, with which a run that is started again goes on from its own."""
    config = write_job(tmp_path, **STILL, model__num_layers=3, ckpt={"save_ckpt_folder": str(tmp_path / "new")})
    words = ["--config", str(config), "--folder", str(tmp_path / "run"), "--init", str(trained)]
    with pytest.raises(CheckpointError) as caught:
        invoke(app, words, "evo train")
    said = str(caught.value)
    assert said.endswith("(to draw first weights for what it lacks, give --init-allow-missing 'layers.2.*')")
    with pytest.raises(
        CheckpointError, match=r"--init-content: lacks .* \(give --init-content model sampler scheduler\)"
    ):
        invoke(app, [*words, "--init-content", "all", "--init-allow-missing", "layers.2.*"], "evo train")
    invoke(app, [*words, "--init-allow-missing", "layers.2.*"], "evo train")
    invoke(app, [*words, "--init-allow-missing", "layers.2.*", "--set", "data.total_steps=2"], "evo train")
    assert [line["step"] for line in curve(tmp_path / "run")] == [0, 1]


@pytest.mark.parametrize("form", ["hf", "internevo"])
def test_another_systems_folder(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names are those of this run's family, whatever the folder calls its tensors."""
    model, folder = made(tmp_path), tmp_path / "theirs"
    if form == "hf":
        write_weights(weights(model), folder, "hf")
    else:
        write_tensor_parallel(model.state_dict(), folder, 2, tensor=2, pipeline=1)
    kind = {"ckpt_type": "hf_model"} if form == "hf" else {"ckpt_type": "internevo"}
    with pytest.raises(CheckpointError, match=r'write allow: \{missing: \["layers\.2\.\*"\]\} in ckpt'):
        run(start(tmp_path, folder, **kind, model__num_layers=3), tmp_path / "run")
    grown = start(tmp_path, folder, {"missing": ["layers.2.*"]}, **kind, model__num_layers=3)
    found = tensors(run(grown, tmp_path / "run"))
    before, fresh = model.state_dict(), first_weights(tmp_path, model__num_layers=3)
    assert all(same(found[name], before.get(name, fresh[name])) for name in found)
    assert f"{folder} lacks, first weights were drawn: layers.2.* (tensors: 9)" in capsys.readouterr().out

    with pytest.raises(CheckpointError, match=r'write allow: \{unexpected: \["layers\.1\.\*"\]\} in ckpt'):
        run(start(tmp_path, folder, **kind, model__num_layers=1), tmp_path / "run")
    cut = start(tmp_path, folder, {"unexpected": ["layers.1.*"]}, "cut", **kind, model__num_layers=1)
    assert all(same(tensor, before[name]) for name, tensor in tensors(run(cut, tmp_path / "run")).items())


def test_another_systems_folder_on_tensor_ranks(tmp_path: Path, hf: Path) -> None:
    def on_ranks() -> None:
        changes = {"ckpt_type": "hf_model", "model__num_layers": 3, "parallel": {"tensor": 2}}
        train(start(tmp_path, hf, {"missing": ["layers.2.*"]}, **changes), folder=tmp_path / "run")
        dist.barrier()

    run_on_ranks(on_ranks, 2)
    found, before = load_model(tmp_path / "new" / "1")[0].state_dict(), made(tmp_path).state_dict()
    fresh = first_weights(tmp_path, model__num_layers=3)
    assert all(same(found[name], before.get(name, fresh[name])) for name in found)


def test_a_tensor_that_no_family_has_goes_by_its_own_name(tmp_path: Path, hf: Path) -> None:
    """As a value head that was trained on top, or an adapter."""
    from safetensors.torch import load_file, save_file

    state = load_file(hf / "model.safetensors")
    state |= {"score.weight": torch.ones(1, 16), "model.layers.0.attention.lora_a.weight": torch.ones(2, 16)}
    save_file(state, hf / "model.safetensors", metadata={"format": "pt"})
    names = r'unexpected: \["model\.layers\.\*\.attention\.lora_a\.weight", "score\.weight"\]'
    with pytest.raises(CheckpointError, match=names):
        run(start(tmp_path, hf, ckpt_type="hf_model"), tmp_path / "run")
    allow = {"unexpected": ["score.weight", "*.lora_*"]}
    found = tensors(run(start(tmp_path, hf, allow, ckpt_type="hf_model"), tmp_path / "run"))
    assert all(same(found[name], tensor) for name, tensor in made(tmp_path).state_dict().items())


def test_a_part_of_a_tensor_is_never_enough(tmp_path: Path) -> None:
    """Keys are there without their queries: rows of one matrix here."""
    from safetensors.torch import load_file, save_file

    family = {"model_type": "LLAMA2", "model__no_bias": True}
    write_weights(weights(made(tmp_path, **family)), tmp_path / "hf", "hf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    del state["model.layers.1.self_attn.q_proj.weight"]
    save_file(state, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    cfg = start(tmp_path, tmp_path / "hf", {"missing": ["layers.1.*"]}, ckpt_type="hf_model", model__no_bias=True)
    with pytest.raises(CheckpointError, match=r"lacks blocks\.1\.attention\.q\.weight, a part of layers\.1\.attention"):
        run(cfg, tmp_path / "run")


def test_runs_that_allow_nothing_keep_their_keys(tmp_path: Path, hf: Path) -> None:
    info = identity_of(start(tmp_path, hf, ckpt_type="hf_model"), 1)["ckpt"]["load_ckpt_info"]
    assert "allow" not in info
    allowed = start(tmp_path, hf, {"missing": "output.weight"}, ckpt_type="hf_model")
    assert identity_of(allowed, 1)["ckpt"]["load_ckpt_info"]["allow"] == {"missing": ["output.weight"]}
