"""`evo inspect`: what a person and a script are told of checkpoints, whole or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint.folder import create
from evo_core.checkpoint.manifest import read_manifest
from evo_core.checkpoint.run import Run
from evo_core.inspect.command import main
from evo_core.weights import open_weights, write_weights
from tests.train.jobs import curve, job, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(job(folder, data__valid_every=4, ckpt__oss_snapshot_freq=2), folder / "run")
    return folder


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Path:
    """The save folder of the run, with one checkpoint damaged, and one begun by another run."""
    shutil.copytree(trained / "ckpt", tmp_path / "ckpt")
    (tmp_path / "ckpt" / "6" / "manifest.json").write_text("{")
    create(tmp_path / "ckpt", 9, Run("abc" * 5, "other\x1b[2J job"))
    return tmp_path / "ckpt"


def inspect(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_a_save_folder_is_a_line_for_each(trained: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = inspect(capsys, saved).splitlines()
    rows = [line.split() for line in lines]
    assert rows[0] == ["checkpoint", "state", "tokens", "loss", "size", "saved", "run", "job"]
    names = ["9", "8", "6", "snapshot/4", "3", "snapshot/2"]
    assert [row[:2] for row in rows[1:7]] == [
        [name, {"9": "incomplete", "6": "damaged"}.get(name, "complete")] for name in names
    ]
    assert rows[2][2:4] == ["1,024", f"{curve(trained / 'run')[7]['loss']:.4f}"]
    assert rows[1][-3:] == ["abcabcab", r"other\x1b[2J", "job"]
    assert lines[7].startswith("6: damaged manifest: ")


def test_a_checkpoint_is_told_from_top_to_bottom(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect(capsys, f"local:{trained}/ckpt/8")
    said = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.splitlines() if line[0] != " "}
    about = read_manifest(trained / "ckpt" / "8").about
    assert about is not None
    assert said["identity"] == about.identity_digest
    assert said["state"] == "complete"
    assert said["dataset"].startswith("- (no statistics.json")
    assert "tensor 1" in said["layout"]
    measured = dict(line.split() for line in text.splitlines() if line[:2] == "  " and len(line.split()) == 2)
    last = curve(trained / "run")[-1]
    for name in ("loss", "grad_norm", "loss/en", "val/en_loss"):
        assert float(measured[name]) == pytest.approx(last[name], rel=1e-5)


def test_a_script_gets_all_of_it(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed: list[dict[str, Any]] = json.loads(inspect(capsys, saved, "--json"))
    assert [each["state"] for each in listed] == ["incomplete", "complete", "damaged", *["complete"] * 3]
    whole = json.loads(inspect(capsys, saved / "8", "--json"))
    assert whole | {"name": "8"} == listed[1] | {"manifest": whole["manifest"]}
    assert whole["manifest"] == json.loads((saved / "8" / "manifest.json").read_text())
    assert whole["bytes"] == sum(file["size"] for file in whole["manifest"]["files"].values())
    assert json.loads(inspect(capsys, saved / "9", "--json"))["manifest"] is None


def test_what_was_converted_or_is_older_says_less(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(open_weights(str(trained / "ckpt")), tmp_path / "hf", "hf")
    write_weights(open_weights(str(tmp_path / "hf")), tmp_path / "evo", "evo")
    text = inspect(capsys, tmp_path / "evo")
    assert "converted_from hf" in text
    assert "identity" not in text


@pytest.mark.parametrize(("name", "said"), [("nowhere", "no such folder"), (".", "there is no checkpoint of Evo here")])
def test_where_there_is_none(tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / name)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
