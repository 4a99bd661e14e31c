"""Configurations written and read back, without any secret in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evo_core.config import TrainConfig, load_config, save_config
from evo_core.config.yaml_file import dump_yaml, parse_yaml
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS, JOBS, MODEL, at, job

SECRET = "hush-0123456789"
WITH_SECRET = f"""
vars: {{token: "${{oc.env:TOKEN}}"}}
model: {MODEL}
monitor: {{alert: {{feishu_alert_address: "https://x/${{vars.token}}"}}}}
data: {{train_folder: "${{oc.env:TOKEN}}", valid_folder: "${{oc.env:NOT_SET,/data}}"}}
"""


def again(config: TrainConfig, folder: Path) -> TrainConfig:
    """Saved and loaded."""
    save_config(config, folder / "again.yaml")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".again")] == []
    return load_config(folder / "again.yaml")


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_shipped_configurations_read_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    loaded = again(config, tmp_path)
    assert loaded == config
    assert loaded.identity(8) == config.identity(8)
    assert loaded.settings_without_effect("cpu") == config.settings_without_effect("cpu")
    assert loaded.to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        at("data", {"global_batch_tokens": 8192, "train_folder": "数据 #1: [x]"}),
        at(
            "ckpt", {"load_ckpt_info": {"path": "local:x", "content": ["model", "sampler"]}, "checkpoint_every": ".inf"}
        ),
        at("generation", {"eos_id": [2, 0], "prompts": ["一", 'a "b"\n']}),
        at("ckpt", {"oss_snapshot_freq": 25, "keep": 3, "keep_every": 100, "checkpoint_every": 50}),
        at("beta2_scheduler.c", 0.8),
        at("data.skip_batches", "1-2"),
        at("job_name", "true"),
        at("generation.prompts", ["\ue000oc.env", '\ue000oc.env["HOME"]\ue001']),
    ],
)
def test_read_back_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    config = job(changes)
    assert again(config, tmp_path) == config


_NO_NUL = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(1e-4, 1, allow_nan=False),
    name=st.text(_NO_NUL, max_size=20),
    folder=st.none() | st.text("\\\\${}:.a'\" oc.env", max_size=20).map("/{}".format),
    prompts=st.lists(
        st.text(_NO_NUL, max_size=9) | st.sampled_from(["${HOME}", "\\\\${x", "${oc.env:PATH}"]), min_size=1
    ),
)
def test_any_value_reads_back(lr: float, name: str, folder: str | None, prompts: list[str], tmp_path: Path) -> None:
    changes = {"adam": {"lr": lr}, "data": {"train_folder": folder}, "job_name": name}
    config = job(changes | {"generation": {"prompts": prompts}})
    assert again(config, tmp_path) == config


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(_plain | st.sampled_from(["1e5", "no", "12:30:00", "2026-11-20", "010", ".inf", "0x1", "<<", "a\u2028b"]))
def test_any_plain_data_reads_back(data: Any) -> None:
    loaded = parse_yaml(dump_yaml({"key": data})).data["key"]
    assert loaded == data
    assert type(loaded) is type(data)


def test_execution_defaults_are_not_written(tmp_path: Path) -> None:
    assert set(job().to_plain()) <= {*job().identity(1), "ckpt"}
    assert job({"enable_tb": True}).to_plain()["enable_tb"] is True


def test_the_environment_is_written_as_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    path = tmp_path / "job.yaml"
    path.write_text(WITH_SECRET)
    config = load_config(path)
    assert config.monitor.alert.feishu_alert_address == f"https://x/{SECRET}"
    assert config.data.train_folder == SECRET
    assert config.to_plain()["data"]["valid_folder"] == "${oc.env:NOT_SET,'/data'}"
    loaded = again(config, tmp_path)
    assert loaded == config
    for text in (config.to_yaml(), repr(config), str(config), (tmp_path / "again.yaml").read_text()):
        assert SECRET not in text
    assert SECRET not in str(config.identity(1))


def test_the_identity_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    path = tmp_path / "job.yaml"
    info = '{auto_resume: false, load_ckpt_info: {path: "local:${oc.env:TOKEN}/x"}}'
    path.write_text(f"model: {MODEL}\nckpt: {info}\n")
    config = load_config(path)
    assert config.identity(1)["ckpt"]["load_ckpt_info"]["path"] == "local:${oc.env:TOKEN}/x"
    assert SECRET not in str(config.identity(1))


def test_a_value_set_over_the_environments_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    path = tmp_path / "job.yaml"
    path.write_text(WITH_SECRET)
    config = load_config(path, ["data.train_folder=/mine"])
    assert config.to_plain()["data"]["train_folder"] == "/mine"
    copy = config.model_copy(update={"data": config.data.model_copy(update={"valid_folder": "/other"})})
    assert copy.to_plain()["data"]["valid_folder"] == "/other"
    config = load_config(path, blocks={"data": {"train_folder": "/block"}})
    assert config.to_plain()["data"]["train_folder"] == "/block"


@pytest.mark.parametrize(
    "line",
    [
        'adam: {lr: "${oc.env:TOKEN}"}',
        'model_type: "${oc.env:TOKEN}"',
        'data: {skip_batches: "${oc.env:TOKEN}"}',
        'parallel: {tensor: {mode: "${oc.env:TOKEN}"}}',
        'tensorboard_folder: "gs://${oc.env:TOKEN}"',
        'ckpt: {save_ckpt_folder: "gs://b/${oc.env:TOKEN}"}',
        'ckpt: {auto_resume: false, load_ckpt_info: {path: "gs://b/${oc.env:TOKEN}"}}',
        'moodel: "${oc.env:TOKEN}"',
        'data: "${oc.env:TOKEN}"',
    ],
)
def test_an_error_does_not_tell_the_environments_value(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {MODEL}\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert SECRET not in str(caught.value)
    assert f"{path}:2: " in str(caught.value)


def test_blocks_are_laid_over_the_file_and_under_the_overrides(tmp_path: Path) -> None:
    config = load_config(
        CONFIGS / "train" / "7b.yaml",
        ["adam.lr=2e-4"],
        blocks={"adam": {"lr": 1e-3, "adam_eps": "1e-6"}, "JOB_NAME": "x"},
    )
    assert (config.adam.lr, config.adam.adam_eps, config.adam.weight_decay, config.job_name) == (2e-4, 1e-6, 0.1, "x")


def test_both_names_of_the_job_are_one(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"JOB_NAME: a\nmodel: {MODEL}\n")
    assert load_config(path).job_name == "a"
    assert load_config(path, ["job_name=b"]).job_name == "b"
    assert load_config(path, ["JOB_NAME=c"]).job_name == "c"
