"""Tokenizing on many cores: the same bytes whoever does it, and nothing left where it fails."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evo_core.data import fan_out
from evo_core.data.document_types import read_types
from evo_core.data.fan_out import Interrupted, dask_executor, tokenize_files, tokenize_together
from evo_core.data.tokenize import TokenizeSpec, tokenize_file
from evo_core.data.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, ENGLISH


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
    monkeypatch.setattr(fan_out, "PART_BYTES", 30_000)
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
    monkeypatch.setattr(fan_out, "PART_BYTES", 60_000)
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
    monkeypatch.setattr(fan_out, "PART_BYTES", 30_000)
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
