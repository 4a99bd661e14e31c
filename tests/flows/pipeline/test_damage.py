"""What is damaged in a store is named, with what makes it anew; everything else goes on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed
from flows.pipeline.lineage import ancestors, start_of
from flows.pipeline.plan import make_plan
from flows.pipeline.schema import load_pipeline
from flows.pipeline.status import damaged, live, runs
from tasks.store import Artifact
from tests.flows.pipeline.conftest import Bench, Recorder

DEEP = "[" * 100_000
NO_MANIFESTS = ["", "{", "[]", "null", "{}", DEEP, '{"key": 5}', "\ufffe", '{"files": [{}]}']


def artifact(bench: Bench, step: str) -> Artifact:
    planned = bench.plan().step(step)
    return bench.store.artifact(planned.kind.name, planned.key)


def other_pipeline(bench: Bench, text: str) -> Path:
    path = bench.folder / "other.yaml"
    path.write_text(f"pipeline: other\nsteps:\n{text}\n")
    return path


def edit(path: Path, content: str | bytes) -> None:
    """Give a file new content, and leave files that share its bytes as they are."""
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (Path.unlink, "number is missing"),
    "emptied": (lambda path: path.write_bytes(b""), "number has 0 bytes in place of 2"),
    "grown": (lambda path: path.write_text("42\n\n"), "number has 4 bytes in place of 2"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "number has"),
    "a link to nowhere": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "number is missing"),
    "with its attempt": (lambda path: shutil.rmtree(path.parent), "number is missing"),
}


def test_a_size_that_is_none_is_damage(bench: Bench) -> None:
    bench.run()
    home = artifact(bench, "first").home
    edit(home / "manifest.json", (home / "manifest.json").read_text().replace('"size": 2', '"size": 1e999'))
    assert bench.plan().step("first").action == "damaged"


@pytest.mark.parametrize("how", FILES)
@pytest.mark.parametrize("overrides", [[], ["steps.second.params.amount=9"]], ids=["reused", "used"])
def test_a_damaged_file_is_named_with_what_makes_it_anew(bench: Bench, how: str, overrides: list[str]) -> None:
    bench.run()
    damage, words = FILES[how]
    damage(artifact(bench, "first").path / "number")
    planned = bench.plan(*overrides).step("first")
    assert planned.action == "damaged"
    assert words in planned.why and "--force first" in planned.why
    with pytest.raises(StepFailed, match=rf"step first: .*damaged: {words}.*--force first"):
        bench.run(*overrides)
    bench.run(*overrides, force=["first"])
    assert bench.actions(*overrides)["first"] == "reuse"


@pytest.mark.parametrize("content", NO_MANIFESTS)
def test_a_damaged_manifest_stops_nobody_else(bench: Bench, content: str) -> None:
    bench.run()
    home = artifact(bench, "second").home
    edit(home / "manifest.json", content)
    other = other_pipeline(bench, "  start: {uses: 'tests.flows.pipeline.kinds:Number', params: {file: start.txt}}")
    assert make_plan(load_pipeline(other), bench.store).step("start").action == "reuse"
    bench.run("steps.second.params.amount=9")  # looks for the nearest artifact among all of them
    assert live(bench.store) == []
    assert len(runs(bench.store)) == 2
    found, _ = start_of(bench.store, "first")
    assert [a.artifact.manifest["step"] for a in ancestors(bench.store, found)] == ["first", "start"]
    assert [entry["folder"] for entry in damaged(bench.store)] == [str(home)]

    planned = bench.plan().step("second")
    assert planned.action == "damaged" and "--force second" in planned.why
    with pytest.raises(StepFailed, match=r"step second: .*--force second"):
        bench.run()
    bench.run(force=["second"])
    assert bench.number("second") == 83
    assert damaged(bench.store) == []


def test_a_manifest_of_another_key_is_damaged(bench: Bench) -> None:
    bench.run()
    edit(
        artifact(bench, "second").home / "manifest.json", (artifact(bench, "first").home / "manifest.json").read_bytes()
    )
    assert "another key" in bench.plan().step("second").why


def test_a_manifest_that_is_a_folder(bench: Bench) -> None:
    bench.run()
    path = artifact(bench, "second").home / "manifest.json"
    path.unlink()
    path.mkdir()
    assert bench.plan().step("second").action == "damaged"


def test_a_damaged_sealed_attempt_is_passed_over(bench: Bench) -> None:
    bench.run()
    home = artifact(bench, "second").home
    (home / "manifest.json").unlink()
    edit(home / "attempts" / "1" / "attempt.json", "{")
    bench.run()
    assert bench.number("second") == 83


@pytest.mark.parametrize("name", ["job.json", "progress.json", "claim.json", "error.json", "exit-1.json", "local.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "5", DEEP, '{"version": 9}', '{"done": "x", "attempt": "y"}'])
def test_damaged_state_is_as_none(bench: Bench, name: str, content: str) -> None:
    for step in bench.plan().steps:
        state = bench.store.state(step.key)
        state.mkdir(parents=True)
        (state / name).write_text(content)
    assert live(bench.store) == []
    assert set(bench.actions().values()) == {"run"}
    bench.run()
    assert bench.number("second") == 83


@pytest.mark.parametrize("content", ["", "{", "[]", DEEP, '{"run": 5}', '{"run": "a", "steps": [1]}'])
def test_a_damaged_record_of_a_run_is_passed_over(bench: Bench, content: str) -> None:
    bench.run()
    (bench.store.root / "runs" / "broken.json").write_text(content)
    assert len(runs(bench.store)) == 1


def test_a_ref_to_what_is_damaged_is_refused_before_work_where_it_is_used(bench: Bench) -> None:
    bench.run()
    other = other_pipeline(bench, "  third: {uses: 'tests.flows.pipeline.kinds:Add', needs: {to: 'ref:sum'}}")
    second = artifact(bench, "second")
    shutil.copytree(second.home, bench.folder / "copy")
    (second.path / "number").unlink()
    with pytest.raises(
        ConfigError, match=r"other.yaml:3: steps.third.needs.to: ref:sum@.* number is missing.*--force second"
    ):
        make_plan(load_pipeline(other), bench.store)
    shutil.rmtree(second.home)
    shutil.copytree(bench.folder / "copy", second.home)
    plan = make_plan(load_pipeline(other), bench.store)
    run_plan(plan, bench.store, Recorder(), threading.Event())
    (second.path / "number").unlink()
    assert make_plan(load_pipeline(other), bench.store).step("third").action == "reuse"  # it is not used any more
    edit(second.home / "manifest.json", "{")
    with pytest.raises(ConfigError, match=r"steps.third.needs.to: ref:sum names .* damaged.*--force second"):
        make_plan(load_pipeline(other), bench.store)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "x"}', DEEP])
def test_a_damaged_ref_is_named_and_published_anew(bench: Bench, content: str) -> None:
    bench.run()
    latest = bench.store.refs.folder / "sum" / "latest.json"
    latest.write_text(content)
    with pytest.raises(ConfigError, match=r"latest.json is damaged \(versions of sum: "):
        bench.store.refs.resolve("ref:sum")
    version = bench.store.refs.versions("sum")[0]
    assert bench.store.refs.resolve(f"ref:sum@{version}")["key"] == bench.plan().step("second").key
    bench.run()
    assert bench.store.refs.resolve("ref:sum")["key"] == bench.plan().step("second").key


def test_an_older_manifest_without_later_fields_is_whole(bench: Bench) -> None:
    bench.run()
    path = artifact(bench, "second").home / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(path, json.dumps({k: v for k, v in manifest.items() if k not in ("facts", "provenance", "objects")}))
    assert bench.plan().step("second").action == "reuse"
    assert artifact(bench, "second").objects is None  # not "uses none"
    bench.run()


def test_a_step_that_is_forced_must_be_among_the_targets(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"--force: 'second' is not made here.*--targets second"):
        bench.plan(targets=["first"], force=["second"])
    assert bench.plan(targets=["first"], force=["start"]).step("first").force
