"""A manifest that says less, or something else, than what a checkpoint consists of is damage like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint.manifest import read_manifest
from evo_core.errors import CheckpointError
from evo_core.weights import open_weights
from evo_core.weights.loading import load_model, read_config
from tests.train.jobs import job, run

Change = Callable[[dict[str, Any]], Any]


def without(name: str) -> Change:
    return lambda manifest: manifest["files"].pop(name) and manifest


def named(name: str) -> Change:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["files"][name] = manifest["files"].pop("config.yaml")
        return manifest

    return change


def size_as_text(manifest: dict[str, Any]) -> dict[str, Any]:
    record = manifest["files"]["config.yaml"]
    record["size"] = str(record["size"])
    return manifest


@pytest.mark.parametrize("format", [0, 3, 99])
def test_other_formats_are_refused_in_a_sentence(tmp_path: Path, format: int) -> None:
    content = {"format": format, "step": 3, "tokens": 5, "data_digest": "", "files": {}, "more": True}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    said = (
        rf"another version of Evo, in format {format}; this one reads 1 and 2 \(read it with the version that wrote it"
    )
    for read in (load_model, open_weights, read_manifest):
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path)


WAYS: dict[str, Change] = {
    "a list": lambda manifest: [manifest],
    "no object": lambda manifest: 3,
    "no files": lambda manifest: manifest | {"files": {}},
    "files are a list": lambda manifest: manifest | {"files": list(manifest["files"])},
    "a file is not named": without("model/__0_0.distcp"),
    "the metadata are not named": without("model/.metadata"),
    "the configuration is not named": without("config.yaml"),
    "the place of the run is not named": without("train_state.json"),
    "the optimizer's are not named": without("optimizer/__0_0.distcp"),
    "a path out of the folder": named("../6/config.yaml"),
    "an absolute path": named("/etc/hostname"),
    "another spelling": named("model/../config.yaml"),
    "a size that is text": size_as_text,
    "a digest that is none": lambda manifest: manifest | {"files": {"config.yaml": {"size": 3, "digest": None}}},
    "more in a record": lambda manifest: manifest | {"files": {"config.yaml": {"size": 3, "digest": "", "x": 1}}},
    "steps as text": lambda manifest: manifest | {"step": "8"},
    "fewer than no steps": lambda manifest: manifest | {"step": -1},
    "a tokenizer elsewhere": lambda manifest: manifest | {"tokenizer": "../../tokenizer"},
    "a tokenizer that is a number": lambda manifest: manifest | {"tokenizer": 7},
    "a format that is no number": lambda manifest: manifest | {"format": "2"},
    "an unknown key": lambda manifest: manifest | {"stp": 8},
}
TEXTS = {
    "empty": "",
    "cut": '{"format": 1, "files": {',
    "deep": "[" * 100_000,
    "deep inside": '{"format": 1, "files": ' + '{"a":' * 100_000,
    "not UTF-8": "\udcff",
    "a number of 5,000 digits": '{"format": 1, "step": ' + "9" * 5000 + "}",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(job(folder), folder / "run")
    return folder


@pytest.fixture
def newest(trained: Path) -> Any:
    """The manifest of the newest checkpoint, put back after the test."""
    path = trained / "ckpt" / "8" / "manifest.json"
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@pytest.mark.parametrize("way", [*WAYS, *TEXTS, "twins"])
def test_the_one_before_is_taken_and_readers_are_told(
    trained: Path, newest: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if way in WAYS:
        newest.write_text(json.dumps(WAYS[way](json.loads(newest.read_text()))))
    elif way in TEXTS:
        newest.write_bytes(TEXTS[way].encode("utf-8", "surrogateescape"))
    else:
        newest.write_text(newest.read_text().replace('"files": {', '"files": {}, "files": {', 1))
    for read in (load_model, open_weights):
        with pytest.raises(CheckpointError, match=r"/8") as error:
            read(newest.parent)
        assert "\n" not in str(error.value)
        assert "manifest" in str(error.value)
    run(job(trained, data__total_steps=6, lr_scheduler={"total_steps": 8}), trained / "again")
    said = capsys.readouterr().out
    assert f"resuming from {trained / 'ckpt' / '6'}" in said
    assert said.count("falling back to the checkpoint before it") == 1


def test_what_a_user_puts_beside_is_theirs(trained: Path) -> None:
    mine = trained / "ckpt" / "6"
    (mine / "README.md").write_text("the one that went into the paper")
    (mine / "hf").mkdir(exist_ok=True)
    (mine / "hf" / "config.json").write_text("{}")
    assert load_model(mine)[0] is not None
    assert read_config(mine).job_name == "test"


def test_a_file_too_many_among_the_weights_is_damage(trained: Path) -> None:
    extra = trained / "ckpt" / "6" / "model" / "__1_0.distcp"
    extra.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"does not name model/__1_0\.distcp"):
        load_model(trained / "ckpt" / "6")
    extra.unlink()
