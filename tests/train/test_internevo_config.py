"""InternEvo's own configuration, with only its size constants replaced, trains as its log shows."""

from __future__ import annotations

import re
from pathlib import Path

from evo_core.config import load_config
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, run

CONFIG = Path(__file__).parents[2] / "configs" / "train" / "7B_sft.py"
SIZES = {"SEQ_LEN": 64, "HIDDEN_SIZE": 32, "NUM_ATTENTION_HEAD": 4, "NUM_LAYER": 2, "VOCAB_SIZE": 256}


def test_it_runs(tmp_path: Path) -> None:
    text = CONFIG.read_text()
    for name, value in SIZES.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    (tmp_path / "small.py").write_text(text)
    cfg = load_config(tmp_path / "small.py", ["data.total_steps=3", "enable_tb=false"])
    run_on_ranks(run, 2, cfg, tmp_path / "run")
    records = curve(tmp_path / "run")
    assert [r["lr"] for r in records] == [4.0000000000000003e-07, 6.000000000000001e-07, 8.000000000000001e-07]
    assert [r["loss_scale"] for r in records] == [65536.0] * 3
    assert [r["adam_beta2"] for r in records] == [0.95] * 3
    assert [r["num_consumed_tokens"] for r in records] == [2 * 64 * 4 * 2 * n for n in (1, 2, 3)]
    said = (tmp_path / "run" / "train.log").read_text()
    assert "data parallel size: 2, pipeline parallel size: 1, tensor parallel size: 1" in said
    assert "New Run" in said
    assert re.search(r"Number of elements on ranks: \[\d+, \d+\]", said)
    assert said.count("WARNING") == 1  # auto_resume with load_ckpt_info
    assert "nothing is saved (ckpt.enable_save_ckpt): from scratch; load_ckpt_info" in said
    (without,) = re.findall(r"set, but without effect here: (.*)", said)
    assert "parallel.weight.memory_pool" in without
    assert "overlap_sync_grad" not in without
