"""Every mistake that a pipeline file alone can hold is found before anything runs, with file, line and key."""

from __future__ import annotations

import unicodedata

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.schema import load_pipeline
from tests.flows.pipeline.conftest import TEXT, Bench

MISTAKES = {
    "unknown step": (
        ("to: start", "to: strat"),
        "steps.first.needs.to: there is no step 'strat'; did you mean \"start\"?",
        9,
    ),
    "unknown kind": (
        ("tests.flows.pipeline.kinds:Number", "source.file"),
        "no step kind 'source.file'; did you mean \"source.files\"?",
        5,
    ),
    "import path": (("kinds:Number", "kinds:Numbers"), "cannot be imported", 5),
    "no kind at all": (("kinds:Number", "kinds:NumberParams"), "is not a step kind", 5),
    "unknown key": (("params: {amount", "parms: {amount"), "unknown key 'parms'; did you mean \"params\"?", 10),
    "unknown param": (("params: {amount:", "params: {amonut:"), "unknown key 'amonut'; did you mean \"amount\"?", 10),
    "unknown top level key": (("publish:", "publsh:"), "unknown key 'publsh'; did you mean \"publish\"?", 14),
    "value out of range": (('"${vars.amount}"', "-1"), "greater than or equal to 0 (got -1)", 10),
    "wrong type of value": (('"${vars.amount}"', "many"), "valid integer", 10),
    "unknown input": (("to: start", "onto: start"), "unknown input 'onto'", 9),
    "missing input": (("    needs: {to: start}\n", ""), "the input 'to' (number) is missing", 7),
    "input of another type": (
        ("tests.flows.pipeline.kinds:Number\n    params: {file: start.txt}", "tests.flows.pipeline.kinds:Word"),
        "takes a number here, but 'start' makes a word",
        8,
    ),
    "a circle": (("needs: {to: start}", "needs: {to: second}"), "in a circle: ", 13),
    "unknown step to publish": (
        ("sum: second", "sum: secnd"),
        "publish.sum: there is no step 'secnd'; did you mean \"second\"?",
        14,
    ),
    "step name": (("  start:", "  Start:"), "'Start' is no step name", 4),
    "reference": (("vars.amount", "vars.amonut"), "vars.amonut", 10),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_line_and_key(bench: Bench, mistake: str) -> None:
    (old, new), message, line = MISTAKES[mistake]
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if mistake == "step name":
        text = text.replace("start}", "Start}")
    bench.file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_pipeline(bench.file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{bench.file}:{line}: ")


def test_a_mistake_in_an_override_is_placed_there(bench: Bench) -> None:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(bench.file, ["steps.first.params.amount=-3"])
    assert "--set" in str(caught.value)
    assert "steps.first.params.amount" in str(caught.value)


def test_steps_come_after_what_they_need(bench: Bench) -> None:
    bench.file.write_text("""\
pipeline: sums
steps:
  second: {uses: "tests.flows.pipeline.kinds:Add", needs: {to: first}}
  first: {uses: "tests.flows.pipeline.kinds:Add", needs: {to: start}}
  start: {uses: "tests.flows.pipeline.kinds:Number", params: {file: start.txt}}
""")
    assert [step.name for step in load_pipeline(bench.file).steps] == ["start", "first", "second"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("vars.amonut=1", r"there is no var 'amonut'; did you mean \"amount\"\?"),
        ("steps.frist.params.amount=1", r"there is no step 'frist'; did you mean \"first\"\?"),
        ("steps.first.params.amonut=1", r"unknown key 'amonut'; did you mean \"amount\"\?"),
        ("steps.first.runtime.secnds=1", r"unknown key 'secnds'; did you mean \"seconds\"\?"),
        ("steps.first.parms.amount=1", r"unknown key 'parms'; did you mean \"params\"\?"),
        ("stpes.first=1", r"unknown key 'stpes'; did you mean \"steps\"\?"),
        ("steps.first.uses.x=1", r"steps.first.uses is a value, not a block of keys"),
    ],
)
def test_an_override_of_what_is_not_there_is_refused(bench: Bench, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_pipeline(bench.file, [override])


NOT_NAMES = [
    "../x", "/abs", "a/b", "..", ".", "", "[/]x", "a b", "x.", "<b>", 'a"b', "x" * 240, "语" * 61, "a\\nb", "\\0", "-x",
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_NAMES)
@pytest.mark.parametrize("place", ["pipeline: sums", "publish: {sum:", "  second:", "vars: {amount: 2"])
def test_what_cannot_be_a_name_is_refused_when_read(bench: Bench, name: str, place: str) -> None:
    quoted = '"' + name.replace('"', '\\"') + '"'
    new = {
        "pipeline: sums": f"pipeline: {quoted}",
        "publish: {sum:": f"publish: {{{quoted}:",
        "  second:": f"  {quoted}:",
        "vars: {amount: 2": f"vars: {{amount: 2, {quoted}: 1",
    }[place]
    bench.file.write_text(TEXT.replace(place, new))
    with pytest.raises(ConfigError, match=r"is no .*name|NUL") as caught:
        load_pipeline(bench.file)
    assert str(caught.value).startswith(f"{bench.file}:")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["语料", "corpus-7b", "é", "हिन्दी", "corpus.v2", "7b"])
def test_names_of_any_script_are_published_and_found(bench: Bench, name: str) -> None:
    text = TEXT.replace("pipeline: sums", f"pipeline: {name}").replace("sum: second", f"{name}: second")
    bench.file.write_text(text, encoding="utf-8")
    bench.run()
    assert bench.store.refs.resolve(f"ref:{name}")["step"] == "second"
    assert bench.store.refs.resolve(f"ref:{unicodedata.normalize('NFD', name)}@latest")["step"] == "second"
    bench.file.write_text(text.replace("to: start", f"to: ref:{name}"), encoding="utf-8")
    assert bench.plan().step("first").needs["to"][0].startswith("ref:")


def test_a_step_of_any_script_is_one_step_however_it_is_composed(bench: Bench) -> None:
    decomposed = unicodedata.normalize("NFD", "schlüssel")
    text = TEXT.replace("  first:", f"  {decomposed}:").replace("to: first", "to: schlüssel")
    bench.file.write_text(text, encoding="utf-8")
    assert bench.plan(targets=["schlüssel"]).step("schlüssel").action == "run"
    bench.run()
    assert bench.number("schlüssel") == 42


@pytest.mark.parametrize(
    "ref", ["ref:../x", "ref:x@../../y", "ref:", "ref:/etc", "ref:a/b", "ref:x@", "ref:x@a@b", "ref:x@.."]
)
def test_a_ref_leads_nowhere_but_into_refs(bench: Bench, ref: str) -> None:
    bench.file.write_text(TEXT.replace("to: start", f'to: "{ref}"'))
    with pytest.raises(ConfigError, match=r"sums.yaml:9: steps.first.needs.to: .* is no ref"):
        bench.plan()
