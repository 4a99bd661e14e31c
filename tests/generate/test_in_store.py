"""Generation whose checkpoint, prompts and output are in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.config import load_config
from evo_core.data.shards.format import BinWriter
from evo_core.errors import UserError
from evo_core.generate.command import run
from evo_core.parallel.process_group import ranks
from evo_core.storage.files import link_tree, list_files, open_file
from tests.generate.conftest import Trained
from tests.ranks import run_on_ranks
from tests.s3_server import READER_KEY, READER_SECRET, S3Server

pytestmark = pytest.mark.s3


def test_from_a_store_into_one(s3: S3Server, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    root = f"s3://{s3.new_bucket()}"
    with BinWriter(tmp_path / "prompts" / "en" / "a.bin") as writer:
        writer.write([1, 5, 6])
        writer.write([1, 7])
    link_tree(tmp_path / "prompts", f"{root}/prompts")
    link_tree(trained.saved, f"{root}/ckpt")

    def work(places: tuple[Path | str, Path | str, Path | str]) -> None:
        keys = ("ckpt_folder", "data_folder", "output_folder")
        settings = [f"generation.{key}={place}" for key, place in zip(keys, places, strict=True)]
        with ranks() as joined:
            run(load_config(trained.config, settings), joined)

    run_on_ranks(work, 1, (trained.saved, tmp_path / "prompts", tmp_path / "out"))
    run_on_ranks(work, 2, (f"{root}/ckpt", f"{root}/prompts", f"{root}/out"))
    written = [file.path for file in list_files(f"{root}/out", lambda *what: None)]
    assert written == sorted(path.name for path in (tmp_path / "out").iterdir()) and "en.bin" in written
    for name in written:
        with open_file(f"{root}/out/{name}") as file:
            assert file.read() == (tmp_path / "out" / name).read_bytes()
    copied = [path.as_posix() for path in (tmp_path / "cache").rglob("*.distcp")]
    assert copied and all("/2/model/" in path for path in copied), "neither older ones nor the optimizer's states"

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    with pytest.raises(UserError, match=r"/out: generation.output_folder: cannot be written: it may not be written"):
        work((trained.saved, tmp_path / "prompts", f"{root}/out"))
