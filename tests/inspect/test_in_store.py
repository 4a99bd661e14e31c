"""Checkpoints and data in an object store: what stays there, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

from evo_core.inspect.command import main
from evo_core.storage.files import link_tree
from tests.s3_server import S3Server
from tests.train.jobs import job, run, write_tokens

pytestmark = pytest.mark.s3


def test_each_mth_stays_and_names_its_dataset(s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = f"s3://{s3.new_bucket()}"
    write_tokens(tmp_path / "dataset" / "train")
    (tmp_path / "dataset" / "statistics.json").write_text('{"shards": []}')
    link_tree(tmp_path / "dataset", f"{bucket}/dataset")
    saves = {"save_ckpt_folder": f"{bucket}/ckpt", "checkpoint_every": 2, "keep": 1, "keep_every": 4}
    run(job(tmp_path, ckpt=saves, data__train_folder=f"{bucket}/dataset/train"), tmp_path / "run")
    capsys.readouterr()

    main([f"{bucket}/ckpt", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["state"], each["job"]) for each in listed] == [
        ("8", "complete", "test"),
        ("4", "complete", "test"),
    ]
    main([f"{bucket}/ckpt/8"])
    digest = blake3((tmp_path / "dataset" / "statistics.json").read_bytes()).hexdigest()
    assert f"blake3:{digest}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([f"{bucket}/nowhere"])
    assert "there is no checkpoint of Evo here" in capsys.readouterr().err
