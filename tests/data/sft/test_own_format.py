"""A user's own format: a function in a module of theirs."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import write_sft_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of the current folder are found; none of them outlives a test."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(tokenizer: Tokenizer, source: str, *records: object, name: str = "mine:pieces", **settings: object) -> list:
    Path("mine.py").write_text(source)
    Path("records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_sft_file([Path("records.jsonl")], Path("out.bin"), SftSettings(tokenizer.path, name, **settings))  # type: ignore[arg-type]
    return read_bin(Path("out.bin"))


DIALOGUE = """\
def pieces(record):
    return [(f"undo {record['question']}", False), (record["answer"], True), ([7, 8], False), ("</s>", True)]
"""


def test_pieces_are_tokenized_each_by_itself(tokenizer: Tokenizer) -> None:
    record = {"question": "it", "answer": "redo"}
    prompt, answer = tokenizer.encode("undo it"), tokenizer.encode("redo")
    ids = [*(-i for i in prompt), *answer, -7, -8, *tokenizer.encode("</s>")]
    assert tokenizer.eos_id not in ids, "what spells a special token is text"
    assert write(tokenizer, DIALOGUE, record) == [[tokenizer.bos_id, *ids, tokenizer.eos_id]]
    assert write(tokenizer, DIALOGUE, record, bos=False, eos=False) == [ids]


BAD = {
    "pieces = 3": "there is no function 'pieces' in mine",
    "def piece(record): ...": "there is no function 'pieces' in mine; did you mean \"piece\"",
    "def pieces(r):\n    return r['x']": r"records.jsonl:1: mine:pieces failed: KeyError: 'x' \(mine.py line 2\)",
    "def pieces(record):\n    return 'text'": "records.jsonl:1: mine:pieces gave 'text', not a list of",
    "def pieces(record):\n    return ['text']": r"mine:pieces gave 'text', not a pair \(text, trained\)",
    "def pieces(record):\n    return [('text', 1)]": r"mine:pieces gave \('text', 1\), not a pair",
    "def pieces(record):\n    return [('text', False)]": "records.jsonl:1: nothing of it is trained on",
    "def pieces(record):\n    return [('', True)]": "records.jsonl:1: nothing of it is trained on",
    "def pieces(record):\n    return [([600], True)]": "600 is no id of the vocabulary of 600",
    "def pieces(record):\n    return [(['a'], True)]": r"mine:pieces gave \['a'\], not a text or a list of ids",
    "import nowhere_at_all": "mine:pieces cannot be imported: No module named 'nowhere_at_all'",
    "x = 1 / 0": r"mine:pieces cannot be imported: ZeroDivisionError: division by zero \(mine.py line 1\)",
    "def pieces(:": "mine:pieces cannot be imported: SyntaxError",
}


@pytest.mark.parametrize("source", BAD)
def test_what_can_be_wrong(source: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=BAD[source]):
        write(tokenizer, source, {"a": 1})
    assert not Path("out.bin").exists()


def test_a_module_that_is_not_there(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no_such_module:pieces cannot be imported"):
        write(tokenizer, "", {"a": 1}, name="no_such_module:pieces")


def test_worker_processes_find_it_too(tokenizer: Tokenizer) -> None:
    Path("mine.py").write_text("def pieces(record):\n    return [('undo', False), (str(record['n']), True)]\n")
    Path("records.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(600)))
    settings = SftSettings(tokenizer.path, "mine:pieces")
    for workers in (1, 2):
        write_sft_file([Path("records.jsonl")], Path(f"{workers}.bin"), settings, workers=workers)
    assert Path("1.bin").read_bytes() == Path("2.bin").read_bytes()
    assert len(read_bin(Path("2.bin"))) == 600


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_a_function_does_ends_its_own_record_alone(workers: int, tokenizer: Tokenizer) -> None:
    """Also where the record is nested too deeply to be sent to another process."""
    source = """\
    import sys
    def pieces(record):
        if record["n"] % 100 == 7:
            sys.exit(0)
        if record["n"] % 100 == 8:
            return [("undo " + chr(0xD83D), False), ("redo", True)]
        if record["n"] % 100 == 9:
            return pieces(record)
        return [("undo", False), (str(record["n"]), True)]
    """
    Path("mine.py").write_text(textwrap.dedent(source))
    lines = [f'{{"n": {n}, "deep": {"[" * 900 + "]" * 900 if n == 300 else 0}}}\n' for n in range(600)]
    Path("records.jsonl").write_text("".join(lines))
    settings = SftSettings(tokenizer.path, "mine:pieces", on_error="skip")
    result = write_sft_file([Path("records.jsonl")], Path("out.bin"), settings, workers=workers)
    assert (result.splits["train"].samples, result.skipped.count) == (582, 18)
    assert str(result.skipped.first).startswith("records.jsonl:8: mine:pieces failed: SystemExit: 0 (mine.py line 4)")


def test_a_process_that_is_ended(tokenizer: Tokenizer) -> None:
    Path("mine.py").write_text("import os\ndef pieces(record):\n    os._exit(3)\n")
    Path("records.jsonl").write_text('{"n": 1}\n' * 6000)
    with pytest.raises(DataError, match="a process that tokenizes was ended from outside"):
        write_sft_file([Path("records.jsonl")], Path("out.bin"), SftSettings(tokenizer.path, "mine:pieces"), workers=2)
    assert not Path("out.bin").exists()
