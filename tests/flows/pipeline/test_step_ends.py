"""However a kind's code ends, its step is made or has failed, and says which."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline.failures import StepFailed
from tasks.store.json_file import read_json
from tests.flows.pipeline.conftest import Bench

TEXT = """\
pipeline: ends
vars: {how: ""}
steps:
  word:
    uses: tests.flows.pipeline.kinds:End
    params: {how: "${vars.how}"}
"""


@pytest.fixture
def ends(bench: Bench) -> Bench:
    bench.file.write_text(TEXT)
    return bench


def statistics(bench: Bench) -> Any:
    (manifest,) = bench.store.root.glob("artifacts/*/manifest.json")
    return read_json(manifest)["statistics"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("returns nothing", {}),
        ("numpy", {"words": 3, "share": 0.5, "nested": {"list": [1, [2, 3]]}}),
    ],
)
def test_statistics_are_plain(ends: Bench, how: str, expected: dict[str, Any]) -> None:
    ends.run(f"vars.how={how}")
    assert statistics(ends) == expected


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("a path", "its statistics cannot be stored: where: PosixPath is no plain value"),
        ("a list", "its statistics are list, not a dict"),
        ("a number for a name", "its statistics have a name that is no text: 3"),
    ],
)
def test_statistics_that_no_manifest_holds_are_named_and_the_work_is_kept(ends: Bench, how: str, why: str) -> None:
    with pytest.raises(StepFailed, match="step word: ") as failed:
        ends.run(f"vars.how={how}")
    assert why in str(failed.value)
    (word,) = ends.store.root.glob("artifacts/*/attempts/1/word")
    assert word.read_text() == "word"
    assert str(word.parent) in str(failed.value)
    assert not list(ends.store.root.glob("artifacts/*/manifest.json"))
    ends.run("vars.how=numpy")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("exits with 0", "its code called sys.exit(0)"),
        ("exits with nothing", "its code called sys.exit()"),
        ("exits with 3", "its code called sys.exit(3)"),
        ("exits with words", "its code called sys.exit('no corpus here')"),
        ("an interrupt", "KeyboardInterrupt"),
        ("a key", "KeyError: 'vocab'"),
        ("nothing to say", "RuntimeError"),
        ("a full disk", "No space left on device (free some room, then run again: what is finished is kept)"),
    ],
)
def test_an_end_of_any_kind_is_the_steps_failure(ends: Bench, how: str, why: str) -> None:
    with pytest.raises(StepFailed) as failed:
        ends.run(f"vars.how={how}")
    assert str(failed.value) == f"step word: {why}"
    assert not list(ends.store.root.glob("artifacts/*"))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system here that nobody may write")
@pytest.mark.parametrize("root", ["/sys/kernel/store", "/dev/null/store", "/proc/store"])
def test_a_store_that_cannot_be_written_is_said_before_work(ends: Bench, root: str) -> None:
    from evo_core.errors import ConfigError
    from tasks.store import open_store

    with pytest.raises(ConfigError, match=r"--root: .*store"):
        ends.store = open_store(root)
        ends.run("vars.how=numpy")


def test_a_file_whose_name_is_not_utf8_is_kept_and_checked_like_others(ends: Bench) -> None:
    how = "vars.how=a file's name that is not UTF-8"
    ends.run(how)
    assert statistics(ends) == {"first": "\udcff"}
    assert ends.run(how).events[-1] == ("reused", "word")
    (odd,) = (path for path in ends.store.root.glob("artifacts/*/attempts/1/*") if not path.name.isascii())
    odd.unlink()
    assert ends.plan(how).step("word").action == "damaged"


def test_a_file_that_has_the_manifests_name_is_refused(ends: Bench) -> None:
    with pytest.raises(StepFailed, match=r"attempt\.json: this name is the manifest's"):
        ends.run("vars.how=a file of the manifest's name")
    assert not list(ends.store.root.glob("artifacts/*/manifest.json"))


OWN = {
    "class Mine(: pass": r"cannot be imported from own_kinds:Mine: SyntaxError: .* \(own_kinds.py line 1\)",
    "import sys; sys.exit(3)": r"cannot be imported from own_kinds:Mine: SystemExit: 3 \(own_kinds.py line 1\)",
    "import no_such_thing": r"ModuleNotFoundError: No module named 'no_such_thing' \(own_kinds.py line 1\)",
    "x = {}['vocab']": r"KeyError: 'vocab' \(own_kinds.py line 1\)",
    "Mein = 3": r"there is no 'Mine' in it; did you mean \"Mein\"\?",
    "Mine = 3": "own_kinds:Mine is not a step kind",
    "from tasks.kind import Kind\nclass Mine(Kind):\n    name = 'm'": "own_kinds:Mine lacks output, run",
    "from tasks.kind import Kind\nclass Mine(Kind):\n    output = 'm'\n    def run(self, ctx): pass": "lacks name",
    "from tasks.kind import Source\nclass Mine(Source):\n    name = output = 'm'\n"
    "    def run(self, ctx): pass": "lacks digest",
    "from tasks.kind import Kind\nclass Mine(Kind):\n    name = output = 'm'\n    def run(self, ctx): pass\n"
    "    def __init__(self): self.x = 1 / 0": r"cannot be made: ZeroDivisionError: .* \(own_kinds.py line 5\)",
    "from tasks.kind import Kind\nclass Mine(Kind):\n    name = output = 'm'\n    def run(self, ctx): pass\n"
    "    def __init__(self): raise SystemExit": r"cannot be made: SystemExit: .* \(own_kinds.py line 5\)",
    "from tasks.kind import Kind\nclass Mine(Kind):\n    name = output = 'm'\n    def run(self, ctx): pass\n"
    "    def check(self, *given): raise SystemExit(0)": r"steps\.a: its code called sys\.exit\(0\)",
    "from tasks.kind import Kind\nclass Mine(Kind):\n    name = output = 'm'\n    params_type = dict\n"
    "    def run(self, ctx): pass": "lacks params_type",
}


@pytest.mark.parametrize(("code", "why"), OWN.items())
def test_a_kind_of_ones_own_that_cannot_be_used_is_one_line(
    ends: Bench, monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    import importlib
    import sys

    from evo_core.errors import ConfigError
    from tasks import registry

    (ends.folder / "own_kinds.py").write_text(code + "\n")
    ends.file.write_text("pipeline: own\nsteps:\n  a: {uses: 'own_kinds:Mine'}\n")
    monkeypatch.syspath_prepend(ends.folder)
    monkeypatch.delitem(sys.modules, "own_kinds", raising=False)
    registry.kind.cache_clear()
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=why) as refused:
        ends.plan()
    assert os.fspath(ends.file) in str(refused.value) and "\n" not in str(refused.value)
