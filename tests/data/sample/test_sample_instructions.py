"""Instructions that are on this machine already: Alpaca records, the same each time, none with its answer in it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from evo_core.data.sample.sample_instructions import sample_instructions_digest, write_sample_instructions
from evo_core.errors import DataError

SIZES = {"cn": 40_000, "code": 40_000}


def records(folder: Path, type_: str) -> list[dict[str, str]]:
    return [json.loads(line) for file in sorted((folder / type_).iterdir()) for line in file.read_text().splitlines()]


def test_records_are_questions_with_an_answer_that_they_do_not_hold(tmp_path: Path) -> None:
    written = write_sample_instructions(tmp_path, SIZES)
    assert all(0.9 * SIZES[type_] < size <= SIZES[type_] for type_, size in written.items())
    for type_ in SIZES:
        found = records(tmp_path, type_)
        assert len(found) > 50
        assert all(set(record) == {"instruction", "input", "output"} for record in found)
        assert not [record for record in found if record["output"] in record["input"]]
    for record in records(tmp_path, "code"):
        ast.parse(record["input"])
    answers = [record["output"] for record in records(tmp_path, "code")]
    assert len(answers) == len(set(answers))  # no held-out answer was trained on


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_sample_instructions(tmp_path / name, SIZES)
    assert records(tmp_path / "one", "code") == records(tmp_path / "two", "code")
    assert sample_instructions_digest(SIZES) == sample_instructions_digest(SIZES)
    assert sample_instructions_digest(SIZES) != sample_instructions_digest({"code": 40_000})


@pytest.mark.parametrize("sizes", [{"en": 1000}, {"code": 0}])
def test_what_there_is_not(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(DataError):
        write_sample_instructions(tmp_path, sizes)
