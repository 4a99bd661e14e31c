"""Output that cannot be written, encoded or shown costs no work, and ends in no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.pipeline.dag import FORMATS
from flows.pipeline.plan import make_plan
from flows.pipeline.schema import load_pipeline
from flows.show import markdown
from tasks.store import open_store

ROOT = Path(__file__).parents[3]
TEXT = """\
pipeline: 语料
steps:
  原料: {uses: "tests.flows.pipeline.kinds:Word"}
  end: {uses: "tests.flows.pipeline.kinds:Echo"}
publish: {名字: 原料}
"""


def evo(folder: Path, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    (folder / "p.yaml").write_text(TEXT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}  # type: ignore[dict-item]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, text=True, timeout=120, **settings)  # type: ignore[call-overload]


def test_a_full_disk_under_the_output_ends_no_run(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = evo(tmp_path, "run", "p.yaml", "--root", "store", "--no-server", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "evo: nothing can be printed: No space left on device\n"
    assert open_store(tmp_path / "store").refs.names() == ["名字"]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_plan_that_cannot_be_printed_is_one_line(tmp_path: Path, more: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = evo(tmp_path, "plan", "p.yaml", "--root", "store", *more, stdout=full)
    assert (done.returncode, done.stderr) == (1, "evo: nothing can be printed: No space left on device\n")


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = evo(tmp_path, "plan", "p.yaml", "--root", "store", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", [("plan", "p.yaml", "--root", "s"), ("plan", "p.yaml", "--json"), ("dag", "p.yaml")])
def test_what_the_encoding_lacks_is_escaped(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = evo(tmp_path, *words, environment={"PYTHONIOENCODING": "ascii", "COLUMNS": "0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u539f\u6599" in done.stdout


def test_markup_in_names_and_folders_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "[/x] :smile:"
    folder.mkdir(parents=True)
    for words in (("run", "--no-server"), ("plan",), ("status",), ("why",), ("trace",)):
        more = {"status": (), "why": ("p.yaml", "end"), "trace": ("end",)}.get(words[0], ("p.yaml",))
        done = evo(folder, words[0], *more, *words[1:], "--root", f"{folder}/[bold]", environment={"COLUMNS": "300"})
        assert done.returncode == 0, done.stderr
        assert words[0] == "why" or "[/x] :smile:/[bold]" in done.stdout


def test_names_of_any_script_on_pages_and_in_graphs(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT, encoding="utf-8")
    pipeline = load_pipeline(tmp_path / "p.yaml")
    plan = make_plan(pipeline, open_store(tmp_path / "store"))
    keys = {markdown.page_key(plan, step.name) for step in plan.steps}
    assert len(keys) == 2 and all(key.isascii() and key.strip("-") == key for key in keys)
    mermaid = FORMATS["mermaid"](pipeline)
    assert '["原料<br/>test.word"]' in mermaid and "\n  end[" not in mermaid
    assert markdown.plain("[x](y)<b>") == r"\[x\](y)\<b\>"
