"""What a manifest says of how its checkpoint came to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from blake3 import blake3

from evo_core.checkpoint.about import About
from evo_core.checkpoint.manifest import read_manifest
from evo_core.code_version import evo_version, git_state
from evo_core.config import load_config
from evo_core.errors import CheckpointError
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run, write_job, write_tokens

Change = Callable[[dict[str, Any]], Any]


def dataset(folder: Path) -> dict[str, str]:
    """A dataset as `evo data shard` leaves one, and the settings that name it."""
    write_tokens(folder / "dataset" / "train")
    write_tokens(folder / "dataset" / "valid", documents=6, seed=1)
    (folder / "dataset" / "statistics.json").write_text('{"shards": []}')
    return {"data__train_folder": f"{folder}/dataset/train", "data__valid_folder": f"{folder}/dataset/valid"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks: tensors cut, saved every third step, evaluated every second one."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = job(folder, parallel__tensor={"size": 2, "mode": "msp"}, data__valid_every=2, **dataset(folder))
    run_on_ranks(lambda: run(cfg, folder / "run").step, 2)
    return folder


def about(checkpoint: Path) -> About:
    found = read_manifest(checkpoint).about
    assert found is not None
    return found


def test_code_data_and_layout(trained: Path) -> None:
    said, git = about(trained / "ckpt" / "8"), git_state()
    assert said.evo == evo_version()
    assert (said.commit, said.modified) == ((git.commit, git.modified) if git else (None, None))
    content = (trained / "dataset" / "statistics.json").read_bytes()
    assert said.dataset == f"blake3:{blake3(content).hexdigest()}"
    assert (said.train_folder, said.no_dataset) == (f"{trained}/dataset/train", None)
    wanted = {"data": 1, "tensor": 2, "pipeline": 1, "zero1": 1, "tensor_mode": "msp"}
    assert {name: said.layout[name] for name in wanted} == wanted
    assert not {"pipeline_mode", "num_chunks"} & said.layout.keys()


def test_the_layout_of_a_pipeline(tmp_path: Path) -> None:
    cfg = job(tmp_path, parallel__pipeline={"size": 2, "mode": "ZBV"}, model__num_chunks=2, model__num_layers=4)
    wanted = {"pipeline": 2, "data": 2, "pipeline_mode": "ZBV", "num_chunks": 2}
    layout = About.of(cfg, 4).layout
    assert {name: layout[name] for name in wanted} == wanted


def test_the_layout_of_isp(tmp_path: Path) -> None:
    parallel = {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 4}, "zero1": {"size": -1}}
    cfg = job(tmp_path, parallel=parallel)
    assert About.of(cfg, 8).layout == {
        "pipeline": 1,
        "tensor": 2,
        "data": 4,
        "weight": 4,
        "weight_data": 2,
        "zero1": 2,
        "tensor_mode": "isp",
    }


def test_the_layout_of_shared_parameters_and_of_experts(tmp_path: Path) -> None:
    shared = About.of(job(tmp_path, parallel={"zero1": {"size": 2, "fsdp": True}}), 4).layout
    assert (shared["fsdp"], shared["zero1"]) == (2, 2) and "expert" not in shared
    mixture = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}
    dealt = About.of(job(tmp_path, **mixture), 8).layout
    assert dealt["expert"] == 4 and "fsdp" not in dealt


def test_metrics_are_those_of_the_last_step_and_scores_where_it_was_evaluated(trained: Path) -> None:
    lines = curve(trained / "run")
    for step, evaluated in ((3, False), (6, True), (8, True)):
        metrics = dict(about(trained / "ckpt" / str(step)).metrics)
        assert metrics == lines[step - 1]
        assert {"loss", "grad_norm", "lr", "tokens_per_second", "loss/en"} <= metrics.keys()
        assert any(name.startswith("val/") for name in metrics) == evaluated


def test_the_file_is_json_for_everybody(trained: Path) -> None:
    content = (trained / "ckpt" / "8" / "manifest.json").read_bytes()
    assert orjson.loads(content)["about"] == asdict(about(trained / "ckpt" / "8"))


def test_what_is_not_finite_is_null() -> None:
    made = about_of_nothing().after({"grad_norm": float("inf"), "loss": float("nan"), "step": 3})
    assert made.metrics == {"grad_norm": None, "loss": None, "step": 3}


def about_of_nothing() -> About:
    return About("0", None, None, None, "sha256:0", None, None, "random data", {})


def test_digests_tell_what_changes_weights_from_what_does_not(tmp_path: Path) -> None:
    first = About.of(job(tmp_path), 1)
    elsewhere = About.of(job(tmp_path, ckpt__checkpoint_every=4), 2)
    other = About.of(job(tmp_path, adam__lr=2e-2), 1)
    assert first.identity_digest == elsewhere.identity_digest != other.identity_digest
    assert len({first.settings_digest, elsewhere.settings_digest, other.settings_digest}) == 3
    assert About.of(job(tmp_path), 1) == first


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data__train_folder": None}, "random data"),
        (
            {"data__train_folder": "/nowhere/at/all"},
            "no statistics.json of `evo data shard` can be read beside the folder",
        ),
        ({"data__train_folder": "/"}, "no statistics.json of `evo data shard` can be read beside the folder"),
    ],
)
def test_data_without_a_version_say_why(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    made = About.of(job(tmp_path, **changes), 1)
    assert (made.dataset, made.no_dataset) == (None, why)


def test_what_came_from_the_environment_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = dataset(tmp_path)
    (tmp_path / "secret-bucket").symlink_to(tmp_path / "dataset")
    monkeypatch.setenv("DATA_HERE", f"{tmp_path}/secret-bucket")
    monkeypatch.setenv("RATE", "0.0123456")
    where["data__train_folder"] = "${oc.env:DATA_HERE}/train"
    made = About.of(load_config(write_job(tmp_path, adam={"lr": "${oc.env:RATE}"}, **where)), 1)
    assert "secret-bucket" not in json.dumps(asdict(made))
    assert made.train_folder == "${oc.env:DATA_HERE}/train"
    assert made.dataset is not None
    assert made.identity_digest is None


WAYS: dict[str, Change] = {
    "no object": lambda said: 5,
    "a list": lambda said: [said],
    "an unknown name": lambda said: said | {"commits": "abc"},
    "one that is missing": lambda said: {name: value for name, value in said.items() if name != "settings_digest"},
    "a commit that is a number": lambda said: said | {"commit": 5},
    "modified as text": lambda said: said | {"modified": "no"},
    "a layout that is a list": lambda said: said | {"layout": ["data"]},
    "a map in the layout": lambda said: said | {"layout": {"data": {}}},
    "a list in the metrics": lambda said: said | {"metrics": {"loss": [1.0]}},
    "no number": lambda said: said | {"metrics": {"loss": float("nan")}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_one_is_a_damaged_manifest(tmp_path: Path, way: str) -> None:
    content = {"format": 2, "step": 3, "tokens": 5, "data_digest": "", "files": {}, "about": asdict(about_of_nothing())}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path).about == about_of_nothing()
    content["about"] = WAYS[way](asdict(about_of_nothing()))
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="damaged manifest"):
        read_manifest(tmp_path)


def test_a_manifest_of_an_older_version_is_read(tmp_path: Path) -> None:
    content = {"format": 2, "step": 3, "tokens": 5, "data_digest": "", "files": {}, "written_by": {"ranks": 2}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path).about is None
