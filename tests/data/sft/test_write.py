"""Files of records to token files: the split, wrong records, every file format, any number of workers."""

from __future__ import annotations

import errno
import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from evo_core.data import TrainData
from evo_core.data.sft.records import RecordReader, record_files
from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import SftResult, write_sft_dataset, write_sft_file
from evo_core.data.shards.format import BinWriter
from evo_core.data.shards.origins import Origins
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import job, read_bin, write_bin


def alpaca(number: int) -> dict[str, Any]:
    return {"instruction": f"undo {number}", "input": "", "output": f"redo {number}"}


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def dataset(folder: Path, count: int = 30) -> Path:
    path = folder / "records.jsonl"
    path.write_text(lines(*map(alpaca, range(count))))
    return path


def write(path: Path, out: Path, tokenizer: Tokenizer, **options: Any) -> SftResult:
    on_error = options.pop("on_error", "raise")
    return write_sft_dataset(record_files(path), out, SftSettings(tokenizer.path, on_error=on_error), **options)


def test_the_split_holds_every_sample_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = dataset(tmp_path)
    write_sft_file([path], tmp_path / "all.bin", SftSettings(tokenizer.path))
    for seed in (0, 1):
        result = write(path, tmp_path / f"out{seed}", tokenizer, split_ratio=0.3, seed=seed)
        sides = [read_bin(tmp_path / f"out{seed}/{split}/en/dataset.bin") for split in ("train", "valid")]
        assert [len(side) for side in sides] == [21, 9]
        assert sorted(sides[0] + sides[1]) == sorted(read_bin(tmp_path / "all.bin"))
        assert [counts.samples for counts in result.splits.values()] == [21, 9]
        assert [counts.tokens for counts in result.splits.values()] == [sum(map(len, side)) for side in sides]
    first, second = (read_bin(tmp_path / f"out{seed}/valid/en/dataset.bin") for seed in (0, 1))
    assert first != second


def test_a_second_run_replaces_the_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, out = dataset(tmp_path), tmp_path / "out"
    write(path, out, tokenizer)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    write(path, out, tokenizer)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    write(path, out, tokenizer, split_ratio=0)
    assert len(read_bin(out / "train/en/dataset.bin")) == 30
    assert not list((out / "valid").rglob("*.bin*"))


def test_two_types_in_one_folder_are_trained_on_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "out"
    write(dataset(tmp_path), out, tokenizer, data_type="en")
    write(dataset(tmp_path, 12), out, tokenizer, data_type="cn")
    write(dataset(tmp_path, 20), out, tokenizer, data_type="cn", split_ratio=0)
    assert sorted(Origins.load(out).shards) == ["train/cn/dataset.bin", "train/en/dataset.bin", "valid/en/dataset.bin"]
    data = TrainData(job(out / "train", seq_len=64), dp_rank=0, dp_size=1)
    assert data.types == ("cn", "en") and data.trained["cn"] and data.trained["en"]


def test_shards_of_nobody_knows_where_are_in_the_way(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "out"
    write_bin(out / "train" / "code" / "mine.bin", [[1, 2, 3]])
    with pytest.raises(DataError, match=r"train/code/mine\.bin: this shard is in the way"):
        write(dataset(tmp_path), out, tokenizer)
    assert sorted(path.name for path in out.rglob("*")) == ["code", "mine.bin", "mine.bin.meta", "train"]


def test_a_shard_that_was_put_there_by_hand_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "out"
    write(dataset(tmp_path), out, tokenizer)
    write_bin(out / "train" / "en" / "mine.bin", [[1, 2, 3]])
    told = r"origins\.json: train/en/mine\.bin is not among the shards .*remove this file"
    with pytest.raises(DataError, match=told):
        TrainData(job(out / "train", seq_len=64), dp_rank=0, dp_size=1)
    (out / "origins.json").unlink()
    assert TrainData(job(out / "train", seq_len=64), dp_rank=0, dp_size=1).types == ("en",)


def _note(seen: list[tuple[float, int]], share: float, tokens: int) -> None:
    seen.append((share, tokens))


def test_any_number_of_workers_writes_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = dataset(tmp_path, 600)
    for workers in (1, 2):
        seen: list[tuple[float, int]] = []
        report = partial(_note, seen)
        write(path, tmp_path / f"out{workers}", tokenizer, workers=workers, on_progress=report)
        assert seen == sorted(seen) and seen[-1][0] == pytest.approx(1)
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("out1", "out2")
    )
    assert one == two and len(one) == 6


def test_every_file_of_a_folder_and_where_samples_come_from(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "raw"
    folder.mkdir()
    records = [alpaca(n) for n in range(50)]
    (folder / "a.json").write_text(json.dumps(records[:10]))
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, records[10:20])))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines(*records[20:30]).encode()))
    (folder / "d.json.zst").write_bytes(zstandard.compress(json.dumps(records[30:40]).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(records[40:]), folder / "e.parquet")
    (folder / "notes.txt").write_text("not records")
    (tmp_path / "all.jsonl").write_text(lines(*records))

    write(folder, tmp_path / "out", tokenizer, split_ratio=0)
    write(tmp_path / "all.jsonl", tmp_path / "expected", tokenizer, split_ratio=0)
    bin_path = "train/en/dataset.bin"
    assert read_bin(tmp_path / "out" / bin_path) == read_bin(tmp_path / "expected" / bin_path)
    origins = Origins.load(tmp_path / "out")
    assert [origins.of(bin_path, n)[0] for n in range(0, 50, 5)] == list("aabbccddee")


WRONG = {
    "a cut line": (b'{"instruction": "a", "outp', "not JSON"),
    "no object": (b"[1, 2]", "expected an object, not list"),
    "a missing field": (b'{"instruction": "a"}', "there is no field 'output' (its fields: 'instruction')"),
    "a field of another type": (b'{"instruction": "a", "output": 3}', "the field 'output' is not text"),
    "not UTF-8": (b'{"instruction": "\xff", "output": "b"}', "not UTF-8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_records(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    content, message = WRONG[name]
    path = tmp_path / "records.jsonl"
    good = [lines(alpaca(n)).encode() for n in range(12)]
    path.write_bytes(b"".join(good[:2]) + content + b"\n\n" + b"".join(good[2:]))
    with pytest.raises(DataError) as raised:
        write(path, tmp_path / "out", tokenizer)
    assert f"{path}:3: {message}" in str(raised.value)
    assert not (tmp_path / "out").exists()

    result = write(path, tmp_path / "out", tokenizer, on_error="skip")
    assert result.skipped.count == 1 and str(result.skipped.first) == str(raised.value)
    assert sum(counts.samples for counts in result.splits.values()) == 12


def test_the_record_of_a_list_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps([alpaca(1), {"output": "b"}]))
    with pytest.raises(DataError, match=r"records\.json: record 2: there is no field 'instruction'"):
        write(path, tmp_path / "out", tokenizer)


def test_id_zero_cannot_be_a_prompt(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "zeros.py").write_text("def answer(record):\n    return [([5, 0], record['trained']), ([6], True)]\n")
    settings = SftSettings(tokenizer.path, record_format="zeros:answer")
    path = tmp_path / "records.jsonl"
    path.write_text(lines({"trained": True}, {"trained": False}))
    with pytest.raises(DataError, match=r"records\.jsonl:2: the prompt holds token id 0 \('<unk>'\)"):
        write_sft_file([path], tmp_path / "out.bin", settings)
    path.write_text(lines({"trained": True}))
    write_sft_file([path], tmp_path / "out.bin", settings)
    assert read_bin(tmp_path / "out.bin") == [[tokenizer.bos_id, 5, 0, 6, tokenizer.eos_id]]


def test_wrong_settings(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = dataset(tmp_path, 5)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"split_ratio": 1}, "split_ratio: must be at least 0 and below 1"),
        ({"split_ratio": 0.1}, "5 samples are too few for a split ratio of 0.1"),
        ({"data_type": "a/b"}, "type: 'a/b' is no name for a data type"),
        ({"seed": -1}, "seed: must be at least 0"),
    ]
    for options, message in cases:
        with pytest.raises(DataError, match=message):
            write(path, tmp_path / "out", tokenizer, **options)
    with pytest.raises(DataError, match="max_length: must be at least 2"):
        write_sft_file([path], tmp_path / "x.bin", SftSettings(tokenizer.path, max_length=1))
    with pytest.raises(DataError, match="there is no format 'alpacca'; did you mean \"alpaca\""):
        write_sft_file([path], tmp_path / "x.bin", SftSettings(tokenizer.path, record_format="alpacca"))
    with pytest.raises(DataError, match="a chat template is for the format chat"):
        write_sft_file([path], tmp_path / "x.bin", SftSettings(tokenizer.path, chat_template=path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["records.jsonl"]


def test_a_full_disk_leaves_the_earlier_run_as_it_was(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    write(dataset(tmp_path), out, tokenizer)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in ("write_line", "commit"):
        with monkeypatch.context() as patch:
            patch.setattr(BinWriter, name, full)
            for folder in (out, tmp_path / "fresh"):
                with pytest.raises(DataError, match="the disk is full"):
                    write(dataset(tmp_path, 40), folder, tokenizer)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "fresh").exists()


def test_a_folder_of_the_users_is_not_replaced(tmp_path: Path, tokenizer: Tokenizer) -> None:
    mine = tmp_path / "tokenizer/weights"
    mine.mkdir(parents=True)
    with pytest.raises(DataError, match="tokenizer: this folder is in the way"):
        write(dataset(tmp_path), tmp_path, tokenizer)
    assert mine.exists() and not (tmp_path / "train").exists()


def test_nothing_to_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, message in {
        "nowhere.json": "there is no such file of records",
        "a.txt": "not a file of records",
        "folder": "there is no file of records here",
    }.items():
        if name == "a.txt":
            (tmp_path / name).write_text("text")
        elif name == "folder":
            (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=message):
            record_files(tmp_path / name)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        write(tmp_path / "empty.jsonl", tmp_path / "out", tokenizer)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(RecordReader(tmp_path / "broken.parquet"))
