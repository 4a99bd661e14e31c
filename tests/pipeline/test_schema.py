"""Every mistake that a pipeline file alone can hold is found before anything runs, with file, line and key."""

from __future__ import annotations

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.schema import load_pipeline
from tests.pipeline.conftest import TEXT, Bench

MISTAKES = {
    "unknown step": (
        ("to: start", "to: strat"),
        "steps.first.needs.to: there is no step 'strat'; did you mean \"start\"?",
        9,
    ),
    "unknown kind": (
        ("tests.pipeline.kinds:Number", "source.file"),
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
        ("tests.pipeline.kinds:Number\n    params: {file: start.txt}", "tests.pipeline.kinds:Word"),
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
  second: {uses: "tests.pipeline.kinds:Add", needs: {to: first}}
  first: {uses: "tests.pipeline.kinds:Add", needs: {to: start}}
  start: {uses: "tests.pipeline.kinds:Number", params: {file: start.txt}}
""")
    assert [step.name for step in load_pipeline(bench.file).steps] == ["start", "first", "second"]
