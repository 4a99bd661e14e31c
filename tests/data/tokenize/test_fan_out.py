"""Tokenizing on many cores: the same bytes whoever does it, and nothing left where it fails."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evo_core.data.shards.document_types import read_types
from evo_core.data.tokenize import parts
from evo_core.data.tokenize.fan_out import Interrupted, dask_executor, tokenize_files, tokenize_together
from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, ENGLISH, read_bin


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """900 records, the types in runs."""
    path = tmp_path / "raw.jsonl"
    records = [{"text": f"{CHINESE if n % 3 else ENGLISH} {n}", "lang": "cn" if n < 500 else "en"} for n in range(900)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def all_bytes(path: Path) -> list[bytes]:
    return [Path(f"{path}{ending}").read_bytes() for ending in ("", ".meta", ".types")]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["processes", "threads", "dask"])
def test_a_split_file_is_byte_for_byte_that_of_one_process(
    tmp_path: Path, raw: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 30_000)
    spec = TokenizeSpec(raw, tmp_path / "out" / "a.bin", tokenizer.path, type_key="lang")
    alone = tokenize_file(TokenizeSpec(raw, tmp_path / "alone.bin", tokenizer.path, type_key="lang"))
    shares: list[float] = []
    done: list[int] = []

    def tell(share: float, tokens: int) -> None:
        shares.append(share)

    options = {"workers": 2, "on_progress": tell, "on_done": lambda n, result: done.append(n)}
    if how == "threads":
        with ThreadPoolExecutor(2) as executor:
            [result] = tokenize_files([spec], executor=executor, **options)  # type: ignore[arg-type]
    elif how == "dask":
        with dask_executor("local") as executor:
            [result] = tokenize_files([spec], executor=executor, **options)  # type: ignore[arg-type]
    else:
        [result] = tokenize_files([spec], **options)  # type: ignore[arg-type]
    assert result == alone
    assert all_bytes(spec.output) == all_bytes(tmp_path / "alone.bin")
    assert len(shares) > 1
    assert shares[-1] == 1
    assert done == [0]
    assert left(spec.output.parent) == ["a.bin", "a.bin.meta", "a.bin.types"]
    names, numbers = read_types(spec.output)
    assert names == ("cn", "en")
    assert numbers.tolist() == [0] * 500 + [1] * 400
    assert result.types["cn"][0] == 500


def test_several_files_into_one_in_their_order(
    tmp_path: Path, raw: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 60_000)
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    specs = [TokenizeSpec(path, tmp_path / "x.bin", tokenizer.path) for path in (tmp_path / "b.txt", raw)]
    result = tokenize_together(specs, tmp_path / "out" / "all.bin", workers=2)
    for spec, name in zip(specs, ("b", "raw"), strict=True):
        tokenize_file(TokenizeSpec(spec.input, tmp_path / f"{name}.bin", tokenizer.path))
    together = (tmp_path / "b.bin").read_bytes() + (tmp_path / "raw.bin").read_bytes()
    assert (tmp_path / "out" / "all.bin").read_bytes() == together
    assert result.documents == 902
    assert left(tmp_path / "out") == ["all.bin", "all.bin.meta"]


def test_an_error_names_the_line_of_the_whole_file_and_leaves_nothing(
    tmp_path: Path, raw: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 30_000)
    with raw.open("a") as file:
        file.write("oops\n")
    with pytest.raises(DataError, match=r"raw\.jsonl:901: not JSON"):
        tokenize_files([TokenizeSpec(raw, tmp_path / "out" / "a.bin", tokenizer.path)], workers=2)
    assert left(tmp_path / "out") == []


def test_stopping_leaves_what_is_finished(tmp_path: Path, raw: Path, tokenizer: Tokenizer) -> None:
    stop = threading.Event()
    specs = [TokenizeSpec(raw, tmp_path / "out" / f"{n}.bin", tokenizer.path) for n in range(40)]

    def on_done(number: int, result: object) -> None:
        stop.set()

    with pytest.raises(Interrupted, match="files are left"):
        tokenize_files(specs, workers=1, on_done=on_done, stop=stop)
    names = left(tmp_path / "out")
    assert 0 < len([name for name in names if name.endswith(".bin")]) < 40
    assert not [name for name in names if name.startswith(".")]


def test_no_scheduler_at_the_address() -> None:
    with pytest.raises(DataError, match="no Dask scheduler answers"), dask_executor("127.0.0.1"):
        pass


def test_neighbours_that_are_small_are_done_together(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1000)
    for number in range(300):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": f"{ENGLISH} {number}"}) + "\n")
    (tmp_path / "7.jsonl").write_text("oops\n")
    specs = [
        TokenizeSpec(tmp_path / f"{n}.jsonl", tmp_path / "x.bin", tokenizer.path, on_error="skip") for n in range(300)
    ]
    calls: list[int] = []
    with ThreadPoolExecutor(2) as executor:
        monkeypatch.setattr(executor, "submit", _counted(executor.submit, calls))
        result = tokenize_together(specs, tmp_path / "out" / "all.bin", executor=executor)
    assert 20 < len(calls) < 100
    expected = [[*tokenizer.encode(f"{ENGLISH} {n}", bos=True, eos=True)] for n in range(300) if n != 7]
    assert read_bin(tmp_path / "out" / "all.bin") == expected
    assert (result.documents, result.skipped) == (299, 1)
    assert "7.jsonl:1: not JSON" in (result.first_error or "")
    assert left(tmp_path / "out") == ["all.bin", "all.bin.meta"]


def _counted(submit: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return submit(*arguments)

    return counting


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_stopping_a_split_file_leaves_nothing(
    tmp_path: Path, raw: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)
    monkeypatch.setattr("evo_core.data.tokenize.tokenize_file._BATCH_CHARACTERS", 100)
    raw.write_bytes(raw.read_bytes() * 20)
    stop = threading.Event()

    def tell(share: float, tokens: int) -> None:
        if tokens:
            stop.set()

    spec = TokenizeSpec(raw, tmp_path / "out" / "a.bin", tokenizer.path)
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(2)) if how == "threads" else None
        began = time.monotonic()
        with pytest.raises(Interrupted):
            tokenize_files([spec], workers=2, executor=executor, on_progress=tell, stop=stop)
        assert time.monotonic() - began < 60
    assert left(tmp_path / "out") == []


def test_progress_is_told_within_a_file(
    tmp_path: Path, raw: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evo_core.data.tokenize.tokenize_file._BATCH_CHARACTERS", 4000)
    monkeypatch.setattr("evo_core.data.raw.bytes.CHUNK", 5000)
    packed = tmp_path / "raw.jsonl.gz"
    packed.write_bytes(gzip.compress(raw.read_bytes()))
    told: list[tuple[float, int]] = []
    spec = TokenizeSpec(packed, tmp_path / "a.bin", tokenizer.path)
    [result] = tokenize_files([spec], on_progress=lambda share, tokens: told.append((share, tokens)))
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == (1.0, result.tokens)


@pytest.mark.faults
def test_a_killed_worker_is_one_clear_error(tmp_path: Path, raw: Path, tokenizer: Tokenizer) -> None:
    raw.write_bytes(raw.read_bytes() * 20)
    specs = [TokenizeSpec(raw, tmp_path / "out" / f"{n}.bin", tokenizer.path) for n in range(4)]

    def kill(share: float, tokens: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(DataError, match=r"ended from outside; .* memory runs out \(use fewer workers\)"):
        tokenize_files(specs, workers=2, on_progress=kill)
    assert not [name for name in left(tmp_path / "out") if name.startswith(".")]


def test_nothing_to_do() -> None:
    assert tokenize_files([]) == []
