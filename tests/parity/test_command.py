"""`evo parity` as a command: the table, JSON for a script, the exit status, and what is said of wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evo_core.command_line.program import invoke
from evo_core.errors import ConfigError
from evo_core.parity import matrix
from evo_core.parity.command import MISS, app

Captured = pytest.CaptureFixture[str]


def parity(*words: str) -> int:
    return invoke(app, words, "evo parity")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A job with 16 tensor ranks, of a model that has two key/value heads for each."""
    data: dict[str, Any] = {
        "model_type": "LLAMA2",
        "model": {
            "num_layers": 80,
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "num_kv_attention_heads": 32,
            "vocab_size": 32000,
            "checkpoint": True,
        },
        "parallel": {"tensor": {"size": 16, "mode": "msp"}, "zero1": {"size": 8}},
        "ckpt": {"enable_save_ckpt": False},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parity
def test_the_table_and_its_verdict(capsys: Captured) -> None:
    assert parity("--layouts", "mtp2", "dp2-zero2") == 0
    head, *lines, summary = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", head) == [
        *("layout", "zero1", "mode", "recompute", "loss", "norm", "gradient", "worst gradient", "verdict", "s")
    ]
    assert [re.split(r"  +", line)[:4] for line in lines] == [["dp2-zero2", "2", "dp", "0"], ["mtp2", "1", "mtp2", "0"]]
    assert all(re.search(r"\d\.\de-1\d  +\S+\.\S+ +equal", line) for line in lines)
    assert re.fullmatch(
        r"2 of 2 layouts train as one process does, in float64: largest deviation \d\.\de-\d\d, allowed 1e-12", summary
    )


@pytest.mark.parity
def test_a_miss_is_told_and_ends_with_its_status(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(matrix, "FLOAT64_BAR", 1e-20)
    assert parity("--layouts", "mtp2") == MISS == 1
    out = capsys.readouterr().out
    assert re.search(r"^mtp2 .* MISS +\d", out, re.MULTILINE)
    assert re.search(r"^    step 0: \S+ deviates by \d\.\de-\d\d", out, re.MULTILINE)
    assert "0 of 1 layouts train as one process does" in out


@pytest.mark.parity
@pytest.mark.slow
def test_a_configuration_of_ones_own_as_json(config: Path, capsys: Captured) -> None:
    assert parity("--config", str(config), "--layouts", "config", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["equal"] is True and said["dtype"] == "float64"
    for line in ("parallel.tensor.size 16 -> 2", "parallel.zero1.size 8 -> 1", "model.num_layers 80 -> 4"):
        assert line in said["notes"]
    (row,) = said["rows"]
    assert (row["layout"], row["mode"], row["recompute"], row["why"]) == ("config", "msp2", 1.0, None)
    assert 0 < row["gradient"]["deviation"] <= row["bar"] == 1e-12
    assert row["gradient"]["name"].startswith(("layers.", "norm.", "tok_embeddings.", "output."))


def test_the_list(config: Path, capsys: Captured) -> None:
    assert parity("--list", "--ranks", "4") == 0
    assert {"mtp4", "fsp2-dp2-zero2", "msp4-moe", "dp4-zero2"} <= set(capsys.readouterr().out.split())
    assert parity("--list", "--config", str(config)) == 0
    listed = capsys.readouterr().out.split()
    assert listed[0] == "config" and "msp2-recompute" in listed and "msp2-moe" not in listed
    assert not any("-ep" in name for name in listed)
    job = yaml.safe_load(config.read_text())
    job["model"] |= {"num_kv_attention_heads": 64, "num_experts": 8}
    config.write_text(yaml.safe_dump(job | {"model_type": "INTERNLM_MoE"}))
    assert parity("--list", "--config", str(config)) == 0
    assert {"config", "dp2", "dp2-ep1", "dp2-zero2-ep2"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layouts", "mtp2", "msq2"], r'--layouts: no such layout: msq2; did you mean "m.p2"\? \(--list shows all\)'),
        (["--layouts", "msp4", "--ranks", "2"], r"--layouts: msp4 is for 4 ranks, not 2 \(add --ranks 4\)"),
        (["--ranks", "0"], r"--ranks: there are layouts of 2 and of 4 ranks, not of 0"),
        (["--ranks", "3"], r"--ranks: there are layouts of 2 and of 4 ranks, not of 3"),
        (["--dtype", "float16"], r"--dtype: 'float16'"),
        (["--config", "nowhere.yaml"], r"nowhere.yaml"),
        (["--layouts"], r"--layouts: requires an argument"),
    ],
)
def test_wrong_input(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parity(*words)


def test_a_layout_that_the_model_cannot_have_is_refused_before_anything_runs(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "job.yaml"
    model = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 64, "attn_drop_rate": 0.1}
    path.write_text(yaml.safe_dump({"model": model, "ckpt": {"enable_save_ckpt": False}}))
    with pytest.raises(ConfigError, match="attn_drop_rate"):
        parity("--config", str(path), "--layouts", "mtp2")
    assert capsys.readouterr().out == ""
