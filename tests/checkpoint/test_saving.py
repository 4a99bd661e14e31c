"""A save that fails, or cannot clear up after itself: every rank is told the same, and nothing half is left."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
import torch.distributed as dist

from evo_core.checkpoint import TrainState, newest_complete, save
from evo_core.checkpoint.run import Run
from evo_core.config import load_config
from evo_core.errors import UserError
from evo_core.model import build_model
from tests.ranks import run_on_ranks

RUN = Run(id="this")

JOB = """
model_type: LLAMA2
model: {num_layers: 1, hidden_size: 16, num_attention_heads: 2, num_kv_attention_heads: 1, vocab_size: 32,
        dtype: torch.float32}
ckpt: {keep: 1}
"""


def saved(folder: Path, step: int, job: str = JOB) -> str:
    """Save on this rank; the folder, or what was wrong."""
    (folder / f"{dist.get_rank()}.yaml").write_text(job)
    cfg = load_config(folder / f"{dist.get_rank()}.yaml")
    model = build_model(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    try:
        return save(folder / "ckpt", cfg, model, {}, TrainState(step=step), run=RUN).name
    except UserError as error:
        return str(error)


def test_a_tokenizer_that_is_gone_leaves_no_unfinished_folder(tmp_path: Path) -> None:
    gone = JOB + f"data: {{tokenizer_path: {tmp_path / 'gone.model'}}}\n"
    (said,) = set(run_on_ranks(saved, 2, tmp_path, 1, gone))
    assert "gone.model" in said
    assert list((tmp_path / "ckpt").iterdir()) == []


def test_all_of_a_checkpoint_is_on_the_disk_before_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut would take away, a manifest must not vouch for: contents, and names in folders."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words", "to read"]), model_writer=model, vocab_size=32, hard_vocab_limit=False
    )
    (tmp_path / "V7.model").write_bytes(model.getvalue())
    synced: set[Path] = set()
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        if not (tmp_path / "ckpt" / "1" / "manifest.json").exists():
            synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def body() -> set[Path]:
        monkeypatch.setattr(os, "fsync", watched)
        saved(tmp_path, 1, JOB + f"data: {{tokenizer_path: {tmp_path / 'V7.model'}}}\n")
        return synced

    on_disk = set().union(*run_on_ranks(body, 2))
    folder = tmp_path / "ckpt"
    assert (folder / "1" / "tokenizer" / "V7.model").is_file()
    assert {path for path in [folder, *folder.rglob("*")] if path.name != "manifest.json"} <= on_disk


@pytest.fixture
def kept_by_others(tmp_path: Path) -> Iterator[Path]:
    """The save folder with a checkpoint of step 1 that nobody can remove, where one may be made."""
    run_on_ranks(saved, 1, tmp_path, 1)
    folder = tmp_path / "ckpt" / "1"
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", folder], check=True)


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(kept_by_others: Path) -> None:
    assert run_on_ranks(saved, 2, kept_by_others, 2) == ["2", "2"]
    assert newest_complete(kept_by_others / "ckpt") == kept_by_others / "ckpt" / "2"
    assert (kept_by_others / "ckpt" / "1" / "manifest.json").is_file()
