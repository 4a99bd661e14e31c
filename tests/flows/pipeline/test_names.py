"""An artifact is found by its key: what its step is called, now or then, and in which pipeline, changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from flows.orchestration.request import Request
from flows.pipeline.engine import run_plan
from flows.pipeline.plan import make_plan
from flows.pipeline.reasons import reasons
from flows.pipeline.schema import load_pipeline
from flows.pipeline.status import live
from tasks.launch.launcher import Stopped
from tasks.store import Store
from tests.flows.pipeline.conftest import Bench, Recorder


def rename(bench: Bench, old: str, new: str) -> None:
    bench.file.write_text(bench.file.read_text().replace(old, new))


def homes(bench: Bench) -> list[str]:
    return sorted(path.name for path in (bench.store.root / "artifacts").iterdir())


def older_form(bench: Bench) -> None:
    """Name every folder by its step, as Evo 0.1 did."""
    for step in bench.plan().steps:
        home = bench.store.home(step.kind.name, step.key)
        if home.exists():
            home.rename(home.with_name(f"{step.name}-{step.key[:12]}"))


def stopped_in_first(bench: Bench) -> None:
    """A run that ends while the step `first` works, and leaves something in its work folder."""
    stop, recorder = threading.Event(), Recorder()
    plan = bench.plan("steps.first.runtime.seconds=30")
    threading.Thread(target=lambda: recorder.started.wait() and stop.set()).start()
    with pytest.raises(Stopped):
        run_plan(plan, bench.store, recorder, stop)


def test_a_folder_is_named_by_kind_and_key(bench: Bench) -> None:
    bench.run()
    assert homes(bench) == sorted(f"{step.kind.name}-{step.key[:12]}" for step in bench.plan().steps)


@pytest.mark.parametrize("name", ["module:Kind", "../up", "a/b", "/abs", "语料", "a b", "", ".", "x" * 300, "-"])
def test_whatever_a_kind_is_called_its_folder_lies_in_the_store(tmp_path: Path, name: str) -> None:
    home = Store(tmp_path).home(name, "0" * 64)
    assert home.parent == tmp_path / "artifacts"
    assert home.name.isascii() and home.name.endswith("-" + "0" * 12) and len(home.name) < 100
    home.mkdir(parents=True)


@pytest.mark.parametrize("older", [False, True])
def test_a_step_renamed_between_two_runs_keeps_its_work(bench: Bench, older: bool) -> None:
    stopped_in_first(bench)
    if older:
        older_form(bench)
    rename(bench, "first", "foremost")
    bench.run()
    planned = bench.plan().step("foremost")
    home = bench.store.artifact(planned.kind.name, planned.key).home
    assert len((home / "work" / "starts").read_text().split()) == 2
    assert len(homes(bench)) == 3


def test_why_compares_a_renamed_step_with_what_it_made_before(bench: Bench) -> None:
    bench.run()
    rename(bench, "first", "foremost")
    plan = bench.plan("vars.amount=7")
    assert plan.step("foremost").why == "amount: 2 -> 7"
    found = {entry["step"]: entry["nearest"] for entry in reasons(plan, "foremost", bench.store)}
    assert found["foremost"] == f"first-{bench.plan().step('foremost').key[:12]}"


def test_committed_folders_of_the_older_form_are_found_and_not_made_again(bench: Bench) -> None:
    bench.run()
    older_form(bench)
    before = homes(bench)
    rename(bench, "first", "foremost")
    assert set(bench.actions().values()) == {"reuse"}
    bench.run(force=["foremost"])
    assert homes(bench) == before


def test_two_steps_with_one_key_make_it_once(bench: Bench) -> None:
    bench.file.write_text(
        bench.file.read_text().replace(
            "  second:",
            "  twin: {uses: 'tests.flows.pipeline.kinds:Add', needs: {to: start}, params: {amount: 2}}\n  second:",
        )
    )
    plan = bench.plan()
    assert plan.step("twin").key == plan.step("first").key
    twins = {plan.step(name).action: plan.step(name).why for name in ("first", "twin")}
    assert set(twins) == {"run", "attach"} and twins["attach"].startswith("the same as ")
    for force in ([], ["first", "twin"], ["first"]):
        events = bench.run("steps.first.runtime.seconds=0.3", force=force).events
        made = [name for what, name in events if what == "made" and name in ("first", "twin")]
        assert len(made) == 1, events
    planned = bench.plan().step("first")
    starts = bench.store.artifact(planned.kind.name, planned.key).home / "work" / "starts"
    assert len(starts.read_text().split()) == 1  # --force begins with an empty work folder


def test_forcing_a_step_begins_with_an_empty_work_folder(bench: Bench) -> None:
    stopped_in_first(bench)
    bench.run(force=["first"])
    planned = bench.plan().step("first")
    home = bench.store.artifact(planned.kind.name, planned.key).home
    assert len((home / "work" / "starts").read_text().split()) == 1


def test_what_is_being_made_is_called_as_the_newest_run_calls_it(bench: Bench) -> None:
    seen: list[str] = []
    recorder, stop = Recorder(), threading.Event()
    rename(bench, "first", "foremost")
    plan = bench.plan("steps.foremost.runtime.seconds=30")

    def look() -> None:
        recorder.started.wait()
        seen.extend(entry["step"] for entry in live(bench.store))
        stop.set()

    threading.Thread(target=look).start()
    with pytest.raises(Stopped):
        run_plan(plan, bench.store, recorder, stop)
    assert seen == ["foremost"]


def test_a_kind_beside_the_pipeline_is_found_and_is_that_pipelines_own(tmp_path: Path) -> None:
    for folder, version in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside.py").write_text(
            "from tests.flows.pipeline.kinds import Word\n\nclass Mine(Word):\n"
            f'    name = "my.word"\n    version = {version}\n'
        )
        (tmp_path / folder / "p.yaml").write_text("pipeline: p\nsteps:\n  word: {uses: 'beside:Mine'}\n")
    for folder, version in (("one", 1), ("two", 2), ("one", 1)):
        plan = make_plan(load_pipeline(tmp_path / folder / "p.yaml"), Store(tmp_path / "store"))
        assert plan.step("word").kind.version == version


def test_a_module_beside_the_pipeline_hides_none_that_is_installed(bench: Bench) -> None:
    (bench.folder / "json.py").write_text("raise RuntimeError('not the one that is meant')")
    (bench.folder / "own.py").write_text("import json\nfrom tests.flows.pipeline.kinds import Word as Mine\n")
    bench.file.write_text("pipeline: p\nsteps:\n  word: {uses: 'own:Mine'}\n")
    bench.run()


COMPOSED, DECOMPOSED = "\u00e9t\u00e9", "e\u0301te\u0301"


@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("asked", [COMPOSED, DECOMPOSED])
def test_a_name_is_one_however_its_accents_are_written(bench: Bench, written: str, asked: str) -> None:
    bench.file.write_text(f"pipeline: p\nsteps:\n  {written}: {{uses: tests.flows.pipeline.kinds:Echo}}\n")
    request = Request(pipeline=str(bench.file), set=[f"steps.{asked}.params.value=3"], targets=[asked], force=[asked])
    (step,) = request.plan(bench.store).steps
    assert (step.name, step.params.value, step.force) == (COMPOSED, 3, True)


@pytest.mark.parametrize("other", [COMPOSED, "e\u0301t\u00e9"])
def test_two_names_that_look_the_same_are_refused(bench: Bench, other: str) -> None:
    steps = "".join(f"  {name}: {{uses: tests.flows.pipeline.kinds:Echo}}\n" for name in (other, DECOMPOSED))
    bench.file.write_text(f"pipeline: p\nsteps:\n{steps}")
    with pytest.raises(ConfigError, match=f"two of its names are '{COMPOSED}'"):
        bench.plan()
