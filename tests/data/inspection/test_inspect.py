"""Counts and samples of token files, as functions and as commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from evo_core.data.commands import app
from evo_core.data.dataset.build import ShardSource, write_shards
from evo_core.data.inspection.find import find_lone_metas, find_shards
from evo_core.data.inspection.statistics import statistics
from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import write_sft_dataset
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import write_bin, write_folder


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two types in train, one in valid; the last file is empty."""
    write_folder(tmp_path / "data/train", {"cn": [[[1] * 5, [-1, 1]], [[3]]], "en": [[[2] * 100, [2] * 9]]})
    write_folder(tmp_path / "data/valid", {"cn": [[[4, 5, 6]], []]})
    (tmp_path / "data/train/cn/.hidden.bin").write_bytes(b"half")
    return tmp_path / "data"


def test_shards_behind_every_sort_of_path(folder: Path) -> None:
    assert [shard.group for shard in find_shards(folder)] == ["train/cn"] * 2 + ["train/en"] + ["valid/cn"] * 2
    assert [shard.group for shard in find_shards(folder / "train")] == ["train/cn"] * 2 + ["train/en"]
    assert [shard.group for shard in find_shards(folder / "train/cn")] == ["cn"] * 2
    assert [shard.group for shard in find_shards(folder / "train/cn/train_000.bin")] == ["train_000.bin"]


def test_what_is_no_token_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for path, message in {
        tmp_path / "nowhere": "there is nothing here",
        tmp_path / "none": "no token files",
        folder / "train/cn/train_000.bin.meta": "not a token file",
    }.items():
        with pytest.raises(DataError, match=message):
            find_shards(path)


def test_statistics(folder: Path) -> None:
    found = statistics(find_shards(folder), trained=True)
    assert list(found) == ["train/cn", "train/en", "valid/cn", "all"]
    cn = found["train/cn"]
    assert (cn.files, cn.documents, cn.tokens, cn.trained) == (2, 3, 8, 7)
    assert (cn.shortest, cn.median, cn.p95, cn.longest) == (1, 2, 5, 5)
    assert cn.histogram == ((1, 1, 1), (2, 3, 1), (4, 7, 1))
    assert found["train/en"].histogram == ((8, 15, 1), (16, 31, 0), (32, 63, 0), (64, 127, 1))
    assert (found["all"].files, found["all"].documents, found["all"].tokens) == (5, 6, 120)
    assert cn.bytes == sum(path.stat().st_size for path in (folder / "train/cn").glob("t*.bin"))


def test_statistics_against_a_count_by_hand(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    lengths = random.randint(0, 300, 500)
    documents = [random.randint(-9, 9, length).tolist() for length in lengths]
    write_bin(tmp_path / "a.bin", documents, meta_dtype=np.int32)
    found = statistics(find_shards(tmp_path / "a.bin"), trained=True)["a.bin"]
    ordered = sorted(lengths)
    assert (found.median, found.p95) == (ordered[249], ordered[474])
    assert found.trained == sum(token >= 0 for document in documents for token in document)
    for low, high, count in found.histogram:
        assert count == sum(low <= length <= high for length in lengths)
    assert sum(count for *_, count in found.histogram) == 500


def test_lengths_come_from_the_meta_alone(folder: Path) -> None:
    path = folder / "train/en/train_000.bin"
    path.write_bytes(b"x" * (path.stat().st_size - 1) + b"\n")
    assert statistics(find_shards(folder))["train/en"].tokens == 109


def test_the_command_stats(folder: Path) -> None:
    text = run("stats", folder).output
    assert "valid/cn" in text and "trained" not in text
    assert f"64 to 127 {'█' * 20} 1\n" in text and f"1 {'█' * 20} 1\n" in text
    found = json.loads(run("stats", folder, "--trained", "--json").output)
    assert found["train/cn"]["trained"] == 7 and found["all"]["documents"] == 6


@pytest.fixture
def dataset(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    records = [{"instruction": f"undo {n}", "input": "", "output": f"redo {n}"} for n in range(20)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    write_sft_dataset([tmp_path / "alpaca.json"], tmp_path / "sft", SftSettings(tokenizer.path), split_ratio=0.25)
    return tmp_path / "sft"


def test_the_command_head(dataset: Path) -> None:
    """The tokenizer and the origin are found beside the data; prompt and answer are told apart."""
    (first,) = json.loads(run("head", dataset, "--json").output)
    assert first["origin"] == "alpaca.json" and first["file"] == str(dataset / "train/en/dataset.bin")
    begin, prompt, answer = first["parts"]
    number = answer["text"].split()[1].partition("\n")[0].partition("<")[0]
    assert [part["trained"] for part in first["parts"]] == [True, False, True]
    assert begin["text"] == "<s>"
    assert prompt["text"].startswith(f"<|User|>:undo {number}</s>") and prompt["text"].endswith("<|Bot|>:")
    assert answer["text"].startswith(f"redo {number}</s>")
    assert sum(part["tokens"] for part in first["parts"]) == len(first["ids"])

    text = run("head", dataset, "-n", 2).output
    assert text.count("[trained on: ") == 4 and f"redo {number}" in text
    assert "dataset.bin:2  train/en, " in text


def test_samples_are_counted_through_all_files(dataset: Path) -> None:
    (sample,) = json.loads(run("head", dataset, "--sample", 16, "--json").output)
    assert (sample["split"], sample["line"]) == ("valid", 1)
    assert len(json.loads(run("head", dataset, "-n", 100, "--json").output)) == 20
    with pytest.raises(DataError, match="there is no sample 21: there are 20"):
        run("head", dataset, "--sample", 21)


def test_head_without_a_tokenizer_shows_ids(folder: Path) -> None:
    text = run("head", folder).output
    assert "1 1 1 1 1\n" in text and "Name one with --tokenizer" in text


def test_head_with_another_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    write_bin(folder / "train/cn/train_000.bin", [[5, 600]])
    with pytest.raises(DataError, match=r"train_000\.bin:1: token id 600 is outside .* name it with --tokenizer"):
        run("head", folder, "--tokenizer", tokenizer.path)


def test_the_command_verify(dataset: Path, tokenizer: Tokenizer) -> None:
    assert (
        "20 documents" in run("verify", dataset).output and "ids below 600: all well" in run("verify", dataset).output
    )
    assert "ids below 600: all well" in run("verify", dataset / "train", "--tokenizer", tokenizer.path).output
    text = run("verify", dataset, "--vocab-size", 3, "--limit", 2, status=2).output
    assert "dataset.bin:1: token id" in text and "… and 18 more" in text and "20 problems" in text
    report = json.loads(run("verify", dataset, "--vocab-size", 3, "--json", status=2).output)
    assert report["count"] == 20 and len(report["problems"]) == 20
    with pytest.raises(DataError, match="not both"):
        run("verify", dataset, "--vocab-size", 3, "--tokenizer", tokenizer.path)


def test_verify_compares_a_dataset_with_its_manifest(tmp_path: Path) -> None:
    """An id that is another valid one shows in the digest alone."""
    write_bin(tmp_path / "cn.bin", [[1, 2], [3, 4]])
    source = ShardSource("cn", tmp_path / "cn.bin", "cn.txt")
    write_shards([source], tmp_path / "set", valid_fraction=0, shard_tokens=100)
    assert "all well" in run("verify", tmp_path / "set").output
    (shard,) = (tmp_path / "set" / "train").rglob("*.bin")
    shard.write_bytes(shard.read_bytes().replace(b"[3, 4]", b"[3, 5]"))
    text = run("verify", tmp_path / "set", status=2).output
    assert f"{shard.name}: holds other bytes than statistics.json says" in text and "1 problem" in text
    shard.unlink()
    (shard.parent / f"{shard.name}.meta").unlink()
    write_bin(shard.with_name("other.bin"), [[1]])
    text = run("verify", tmp_path / "set", status=2).output
    assert f"{shard.name}: is listed in statistics.json, and not there" in text and "2 problems" in text
    (tmp_path / "set" / "statistics.json").write_text("{}")
    assert "not a manifest of shards" in run("verify", tmp_path / "set", status=2).output


def test_verify_finds_a_meta_that_lost_its_bin(folder: Path) -> None:
    (folder / "train/en/train_000.bin").unlink()
    assert [path.name for path in find_lone_metas(folder)] == ["train_000.bin.meta"]
    text = run("verify", folder, status=2).output
    assert "train_000.bin.meta: a meta without its .bin" in text and "ids not compared" in text


def test_head_tells_special_tokens_from_text_that_spells_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("a</s>b"), 2]
    write_bin(tmp_path / "a.bin", [[-token for token in ids], [*ids[1:-1], *([2] * 9)]])
    arguments = ("head", tmp_path / "a.bin", "-n", 2, "--tokenizer", tokenizer.path)
    first, second = json.loads(run(*arguments, "--json").output)
    assert first["parts"][0]["text"] == "<s>a</s>b</s>"
    assert first["special"] == [{"at": 1, "id": 1, "piece": "<s>"}, {"at": len(ids), "id": 2, "piece": "</s>"}]
    assert [token["id"] for token in second["special"]] == [2] * 9
    text = run(*arguments).output
    assert f"[special tokens: <s> = 1 at 1; </s> = 2 at {len(ids)}]\n" in text and "<s>a</s>b</s>\n" in text
    assert f"[special tokens: </s> = 2 at {len(ids) - 1}, " in text and " …]\n" in text
