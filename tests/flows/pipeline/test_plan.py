"""Keys, reuse, and the reasons that `plan` and `why` give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.plan import make_plan
from flows.pipeline.reasons import reasons
from flows.pipeline.schema import load_pipeline
from tasks.store import open_store
from tasks.store.artifact import read_manifest
from tests.flows.pipeline.conftest import Bench


def keys(bench: Bench, *overrides: str) -> dict[str, str]:
    return {step.name: step.key for step in bench.plan(*overrides).steps}


def test_where_and_how_a_step_runs_is_not_in_its_key(bench: Bench, tmp_path: Path) -> None:
    before = keys(bench)
    assert keys(bench, "steps.first.runtime.seconds=3", "steps.second.runtime.fail=true") == before
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("sums.yaml", "start.txt"):
        shutil.copy(tmp_path / name, moved)
    other = make_plan(load_pipeline(moved / "sums.yaml"), open_store(tmp_path / "another store"))
    assert {step.name: step.key for step in other.steps} == before


def test_a_parameter_changes_its_step_and_what_follows(bench: Bench) -> None:
    before, now = keys(bench), keys(bench, "vars.amount=3")
    assert now["start"] == before["start"]
    assert now["first"] != before["first"]
    assert now["second"] != before["second"]


def test_a_parameter_at_the_value_it_was_introduced_with_is_not_in_the_key(bench: Bench) -> None:
    assert keys(bench, "steps.first.params.late=as before") == keys(bench)
    assert keys(bench, "steps.first.params.late=new") != keys(bench)


def test_changed_raw_data_changes_everything_after_it(bench: Bench) -> None:
    before = keys(bench)
    (bench.folder / "start.txt").write_text("41")
    assert all(before[name] != key for name, key in keys(bench).items())


def test_plan_says_what_will_be_done(bench: Bench) -> None:
    assert bench.actions() == {"start": "run", "first": "run", "second": "run"}
    bench.run()
    assert bench.actions() == {"start": "reuse", "first": "reuse", "second": "reuse"}
    assert bench.actions("vars.amount=3") == {"start": "reuse", "first": "run", "second": "run"}
    assert bench.actions("steps.second.params.amount=5") == {"start": "reuse", "first": "reuse", "second": "run"}


def test_plan_changes_nothing_but_remembered_digests(bench: Bench) -> None:
    bench.plan()
    assert [p.relative_to(bench.store.root).as_posix() for p in bench.store.root.rglob("*") if p.is_file()] == [
        "state/inventory.parquet"
    ]


def test_why_names_the_field_and_the_input_that_changed(bench: Bench) -> None:
    bench.run()
    plan = bench.plan("vars.amount=7")
    assert plan.step("first").why == "amount: 2 -> 7"
    assert plan.step("second").why == "the input to changed"
    found = reasons(plan, "second", bench.store)
    assert [entry["step"] for entry in found] == ["second", "first"]
    assert found[1]["differences"] == ["amount: 2 -> 7"]
    (bench.folder / "start.txt").write_text("41")
    assert bench.plan().step("start").why == "the raw data changed"


def test_targets_and_force(bench: Bench) -> None:
    bench.run()
    assert [step.name for step in bench.plan(targets=["first"]).steps] == ["start", "first"]
    forced = bench.plan(force=["first"])
    assert [(s.name, s.action) for s in forced.steps] == [("start", "reuse"), ("first", "run"), ("second", "run")]
    assert "follows first" in forced.step("second").why
    with pytest.raises(ConfigError, match='did you mean "second"'):
        bench.plan(targets=["secnod"])
    with pytest.raises(ConfigError, match="--force"):
        bench.plan(force=["nothing"])


def test_a_kinds_own_check_is_placed_in_the_file(bench: Bench) -> None:
    (bench.folder / "start.txt").write_text("13")
    with pytest.raises(ConfigError, match=r"sums.yaml:10: steps.first.params.amount: 13 brings bad luck"):
        bench.plan()


def test_a_missing_source_is_placed_in_the_file(bench: Bench) -> None:
    (bench.folder / "start.txt").unlink()
    with pytest.raises(ConfigError, match=r"sums.yaml:6: steps.start.params.file: the file .* does not exist"):
        bench.plan()


def test_refs_are_resolved_when_planned(bench: Bench) -> None:
    other = bench.folder / "after.yaml"
    other.write_text(
        "pipeline: after\nsteps:\n  third: {uses: 'tests.flows.pipeline.kinds:Add', needs: {to: 'ref:sum@latest'}}\n"
    )
    with pytest.raises(ConfigError, match=r"after.yaml:3: steps.third.needs.to: there is no ref:sum@latest"):
        make_plan(load_pipeline(other), bench.store)
    bench.run()
    first = make_plan(load_pipeline(other), bench.store)
    assert first.step("third").needs["to"][1] == bench.plan().step("second").key
    bench.run("vars.amount=9")
    second = make_plan(load_pipeline(other), bench.store)
    assert second.step("third").key != first.step("third").key
    pinned = first.step("third").needs["to"][0]
    other.write_text(other.read_text().replace("ref:sum@latest", pinned))
    assert make_plan(load_pipeline(other), bench.store).step("third").key == first.step("third").key


def test_changed_code_is_reported_rebuilt_or_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    import tasks.store.provenance as provenance

    now = provenance.code_digests
    monkeypatch.setattr(provenance, "code_digests", lambda kind: now(kind) | {"evo_core/model/new.py": "0" * 12})
    warned = bench.plan().step("first")
    assert warned.action == "reuse"
    assert "evo_core/model/new.py" in warned.why
    rebuilt = bench.plan("steps.first.cache.on_code_change=rebuild")
    assert (rebuilt.step("first").action, rebuilt.step("second").action) == ("run", "run")
    with pytest.raises(ConfigError, match=r"steps.first.cache.on_code_change: the code changed .*model/new.py"):
        bench.plan("steps.first.cache.on_code_change=error")


def test_a_plan_reads_each_earlier_manifest_a_fixed_number_of_times(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = 'uses: "tests.flows.pipeline.kinds:Add", needs: {to: start}'
    steps = [f'  s{i}: {{{add}, params: {{amount: "{i}${{vars.x}}"}}}}' for i in range(12)]
    start = '  start: {uses: "tests.flows.pipeline.kinds:Number", params: {file: start.txt}}'
    bench.file.write_text("\n".join(["pipeline: many", "vars: {x: 0}", "steps:", start, *steps]))
    bench.run()
    reads = list[Path]()
    monkeypatch.setattr("tasks.store.artifact.read_manifest", lambda path: (reads.append(path), read_manifest(path))[1])
    plan = bench.plan("vars.x=1")
    assert [step.why for step in plan.steps][3] == "amount: 20 -> 21"
    assert len(reads) <= 2 * 13
