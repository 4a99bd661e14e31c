"""The settings that are locations: one grammar for all of them, refused by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.config.locations import LOCATIONS, PATHS, unprefixed_save
from tests.config.jobs import at, job, refusal

LOAD = {"auto_resume": False, "load_ckpt_info": {"path": "x", "content": "model"}}
STORES = ("gs://b/x", "hdfs://b/x", "memory://x", "lokal:x", "C:\\x")


@pytest.mark.parametrize("key", [*LOCATIONS, *PATHS])
def test_an_unknown_place_is_refused_by_key(key: str) -> None:
    for text in STORES:
        changes = at(key, text)
        if key == "ckpt.load_ckpt_info.path":
            changes = at("ckpt", LOAD | {"load_ckpt_info": {"path": text, "content": "model"}})
        (line,) = refusal(changes).splitlines()
        assert line.startswith(f'{key}: "{text}": no place is known by "')
        assert "local:PATH" in line


@pytest.mark.parametrize("key", PATHS)
def test_what_is_on_this_machine_is_in_no_store(key: str) -> None:
    assert refusal(at(key, "s3://b/x")).startswith(f"{key}: ")


def test_what_is_not_used_may_be_anything() -> None:
    job(at("ckpt", {"enable_save_ckpt": False, "save_ckpt_folder": "gs://x"}))
    job(at("ckpt", {"auto_resume": True, "load_ckpt_info": {"path": "gs://x", "content": "model"}}))


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_folder_is_none(blank: str) -> None:
    config = job({"data": {"train_folder": blank, "valid_folder": blank, "tokenizer_path": blank}})
    assert (config.data.train_folder, config.data.valid_folder, config.data.tokenizer_path) == (None, None, None)
    assert config.identity(1) == job({"data": {"train_folder": None}}).identity(1)
    config = job({"generation": {"ckpt_folder": blank, "data_folder": blank, "output_folder": blank}})
    assert config.generation == job().generation
    assert "data.train_folder: is required" in refusal(
        at("data", {"type": "hf", "train_folder": blank, "tokenizer_path": "x", "pack_sample_into_one": False})
    )


def test_a_blank_place_to_save_in_or_to_start_from_is_an_error() -> None:
    assert "ckpt.save_ckpt_folder: " in refusal(at("ckpt.save_ckpt_folder", ""))
    load = LOAD | {"load_ckpt_info": {"path": "", "content": "model"}}
    assert refusal(at("ckpt", load)) == "ckpt.load_ckpt_info.path: is empty: a location is expected"


def test_a_new_folder_without_a_prefix_is_said(tmp_path: Path) -> None:
    def said(folder: str) -> str | None:
        return unprefixed_save(job(at("ckpt.save_ckpt_folder", folder)), "ckpt.save_ckpt_folder")

    new = tmp_path / "new"
    assert said(str(new)) == (
        f"ckpt.save_ckpt_folder: {new} has no prefix and is taken for a local folder: write local:{new} to say so"
    )
    assert said(f"local:{new}") is None
    assert said(str(tmp_path)) is None
