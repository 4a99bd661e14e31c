"""The shipped 7B pipeline, made small by --set alone, from the corpus to samples on a real Slurm cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endtoend.conftest import HERE, Evo
from tests.endtoend.test_slurm import SlurmEvo
from tests.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PRETRAIN_7B = str(HERE.parents[1] / "configs" / "pipelines" / "pretrain-7b.yaml")
CUT_DOWN = [
    "vars.cluster=test_slurm.yaml",
    "steps.raw.params.settle=0",
    "steps.shards.params.valid_fraction=0.2",
    "steps.model.params.model={num_layers: 2, hidden_size: 32, num_attention_heads: 2, num_kv_attention_heads: 1, "
    "vocab_size: 512, mlp_ratio: 2, multiple_of: 16, dtype: torch.float32, checkpoint: 0}",
    "steps.model.params.data={seq_len: 64, micro_bsz: 2, global_batch_tokens: 512, total_steps: 8, valid_every: 4}",
    "steps.model.params.parallel={zero1: {size: 2}}",
    "steps.model.params.ckpt={checkpoint_every: 4}",
    "steps.model.runtime.nodes=2",
    "steps.model.runtime.ranks_per_node=1",
    *(f"steps.{step}.runtime.gpus_per_node=0" for step in ("model", "scores", "samples")),
    "steps.samples.params.max_new_tokens=8",
]
"""As docs/slurm.md has it."""


@pytest.fixture
def evo(tmp_path: Path, slurm: SlurmCluster) -> Iterator[SlurmEvo]:
    evo = SlurmEvo(tmp_path, slurm)
    yield evo
    evo.close()


def test_pretrain_7b_runs_to_the_end(whole: Evo, evo: SlurmEvo) -> None:
    for type_ in ("cn", "en", "code"):
        shutil.copytree(whole.artifact("raw") / type_, evo.folder / "corpus" / type_)
    tokenizer = whole.artifact("tokenizer") / "tokenizer" / "tokenizer.model"
    own = [f"vars.corpus={evo.folder / 'corpus'}", f"vars.tokenizer={tokenizer}"]
    printed = evo("run", PRETRAIN_7B, "--no-server", *(f"--set={setting}" for setting in own + CUT_DOWN))
    assert "6 steps made" in printed
    assert [step for step, _ in evo.curve()] == list(range(8))
    scores = json.loads((evo.artifact("scores") / "scores.json").read_text())
    assert set(scores["model"]) >= {"cn", "en", "code"}
    assert (evo.artifact("samples") / "samples.jsonl").read_text().count("\n") > 0
    manifest = json.loads(evo.artifact("model").parents[1].joinpath("manifest.json").read_text())
    assert manifest["provenance"]["runtime"]["nodes"] == 2
    assert (evo.root / "refs").exists()
