"""`evo estimate` as a command: the table, JSON for a script, what is proposed, and what is said of wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evo_core.command_line.program import invoke
from evo_core.config import load_config
from evo_core.errors import ConfigError
from evo_core.estimate.command import app
from tests.estimate.files import TINY, write

Captured = pytest.CaptureFixture[str]
REPOSITORY = Path(__file__).parents[2]


def estimate(*words: object) -> int:
    return invoke(app, list(map(str, words)), "evo estimate")


def data(captured: Captured, *words: object) -> dict[str, Any]:
    assert estimate(*words, "--json") == 0
    return json.loads(captured.readouterr().out)


def test_the_table_and_the_settings_to_paste(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path, **TINY)
    assert estimate("--config", path, "--gpus", 2) == 0
    text = capsys.readouterr().out
    head, own, *_ = text.splitlines()
    assert head == f"{path} on 2 GPUs (a100, 80 GB each)"
    assert own == "as it is: zero1 2, recompute 0; 512 tokens a step"
    for part in ("parameters", "gradients", "master values", "moments", "buffers", "activations", "in all"):
        assert f"\n  {part} " in text, part
    assert "\n  reduce_scatter  zero " in text and "inside a node" in text
    assert "\nmodelled: " in text and "tokens/GPU/s, mfu " in text
    assert "times are a model's, nothing of them is measured. It assumes\n- a100: 312 teraflops" in text
    first = text.split("\n1. ")[1].split("\n2. ")[0]
    pasted = yaml.safe_load("\n".join(first.splitlines()[2:]))
    assert list(pasted) == ["parallel", "model", "hybrid_zero_optimizer"]
    load_config(path, blocks=pasted).check_world(2)


def test_json_has_every_part_and_what_is_proposed_loads_whatever_the_file_has(tmp_path: Path, capsys: Captured) -> None:
    few = {**TINY["data"], "global_batch_tokens": None, "micro_num": 1}
    path = write(tmp_path, **{**TINY, "data": few, "parallel": {"zero1": {"size": 3}}})
    found = data(capsys, "--config", path, "--gpus", 2, "--chip", "h100", "--network", 50, "--gpu-memory", 0.5)
    assert set(found) == {
        *("config", "gpus", "gpu_memory", "own", "best", "legal", "runs", "seconds", "assumptions"),
    }
    assert found["gpus"] == 2 and found["gpu_memory"] == 0.5e9
    assert found["own"]["refused"].startswith("parallel.zero1.size: 3 does not divide the 2 data-parallel ranks")
    assert any("a node 50 GB/s" in line for line in found["assumptions"])
    assert len(found["best"]) == 5
    seconds = [each["modelled"]["seconds"] for each in found["best"]]
    assert seconds == sorted(seconds)
    parts = {"parameters", "gathered", "gradients", "master", "moments", "buffers", "activations", "total"}
    for each in found["best"]:
        assert set(each) == {"layout", "rank", "memory", "fits", "sent", "modelled", "reason", "settings"}
        assert set(each["memory"]) == parts
        assert each["fits"] and each["memory"]["total"] <= 0.5e9
        assert sum(size for part, size in each["memory"].items() if part != "total") == each["memory"]["total"]
        assert all(set(sent) == {"collective", "axis", "bytes"} for sent in each["sent"])
        cfg = load_config(path, blocks=each["settings"])
        cfg.check_world(2)
        assert cfg.dp(2) * cfg.micro_num(cfg.dp(2)) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpus", 0), "--gpus: 0 must be above 0"),
        (("--gpus", -8), "--gpus: -8 must be above 0"),
        (("--gpus", "some"), "--gpus: "),
        (("--gpus", 8, "--gpu-memory", -1), "--gpu-memory: -1 must be above 0"),
        (("--gpus", 8, "--gpu-memory", "nan"), "--gpu-memory: nan must be above 0"),
        (("--gpus", 8, "--gpu-memory", "inf"), "--gpu-memory: inf must be above 0"),
        (("--gpus", 8, "--node-gpus", 0), "--node-gpus: 0 must be above 0"),
        (("--gpus", 8, "--network", 0), "--network: 0 must be above 0"),
        (("--gpus", 8, "--chip", "h10"), '--chip: no numbers are known of "h10"; did you mean "h100"? (a100, '),
        (("--gpus", 8, "--set", "model.dtype=torch.float64"), "model.dtype: float64: the peak of a100 for it is"),
        (("--gpus", 37), "--gpus: 37 GPUs: the job has no layout for so many (nearest: 32 or 48 GPUs)"),
        ((), "--gpus: is required"),
    ],
)
def test_wrong_input_is_one_line(words: tuple[object, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        estimate("--config", write(tmp_path), *words)
    assert str(told.value).startswith(said), str(told.value)
    assert "\n" not in str(told.value)


def test_a_model_type_of_ones_own_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    job["model_type"] = "tests.estimate.own_type:Own"
    job["model"] = {"vocab_size": 64}
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    with pytest.raises(ConfigError) as told:
        estimate("--config", path, "--gpus", 8)
    assert str(told.value).startswith("model_type: tests.estimate.own_type:Own is a model type of your own")


@pytest.mark.slow
def test_7b_on_1024_gpus(capsys: Captured) -> None:
    path = REPOSITORY / "configs/train/7b.yaml"
    found = data(capsys, "--config", path, "--gpus", 1024)
    assert found["legal"] > 1000 and len(found["best"]) == 5
    for each in found["best"]:
        assert each["fits"]
        load_config(path, blocks=each["settings"]).check_world(1024)
