"""The commands under `srun`, as a user of the tutorial types them: no launcher, no address, two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.endtoend.conftest import HERE, Evo
from tests.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slurm

# The tutorial's line, with four ranks for its sixteen.
SRUN = ["srun", "-p", "debug", "-N", "2", "-n", "4", "--ntasks-per-node=2", "--gpus-per-task=1"]


def srun(slurm: SlurmCluster, folder: Path, *words: str) -> str:
    """Run `python -m WORDS` by srun, in an environment that names no first node."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "MASTER_")) and name not in ("RANK", "WORLD_SIZE")
    }
    environment = kept | {
        "SLURM_CONF": str(slurm.conf),
        "PYTHONPATH": str(HERE.parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [*SRUN, sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_training_and_generation_find_their_ranks_and_the_first_node(
    whole: Evo, slurm: SlurmCluster, tmp_path: Path
) -> None:
    """Two stages over nodes called node1 and node2, which no name server knows; the losses are those of a local run."""
    shards = whole.artifact("shards")
    job = tmp_path / "job.py"
    job.write_text(
        f"""\
JOB_NAME = "tutorial"
model_type = "INTERNLM2_PUBLIC"
data = dict(seq_len=64, micro_bsz=2, global_batch_tokens=512, total_steps=24,
            train_folder="{shards}/train", tokenizer_path="{shards}/tokenizer")
model = dict(num_layers=2, hidden_size=32, num_attention_heads=2, num_kv_attention_heads=1, mlp_ratio=2,
             multiple_of=16, vocab_size=512, no_bias=True, dtype="torch.float32")
adam = dict(lr=1e-2)
lr_scheduler = dict(warmup_ratio=0.1, eta_min=1e-3)
hybrid_zero_optimizer = dict(clip_grad_norm=1.0)
parallel = dict(zero1=dict(size=-1), pipeline=dict(size=2))
ckpt = dict(enable_save_ckpt=True, save_ckpt_folder="local:{tmp_path}/ckpt", checkpoint_every=12)
generation = dict(ckpt_folder="local:{tmp_path}/ckpt/24", output_folder="{tmp_path}/texts", batch_size=1, max_length=24,
                  do_sample=False, prompts=["The", "def"])
"""
    )
    srun(slurm, tmp_path, "evo_core.train", "--config", "job.py", "--folder", "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == pytest.approx([loss for _, loss in whole.curve()], rel=1e-4)
    srun(slurm, tmp_path, "evo_core.generate", "--config", "job.py")
    texts = [json.loads(line) for line in (tmp_path / "texts" / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in texts] == ["The", "def"] and all(row["text"] for row in texts)
