"""One step that is written, one step for each value: the same keys as by hand, and every mistake with its line."""

from __future__ import annotations

from typing import Any

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.dag import FORMATS
from flows.pipeline.foreach.names import instance_names
from flows.pipeline.foreach.tables import MOST_STEPS
from flows.pipeline.reasons import reasons
from flows.pipeline.schema import load_pipeline
from tests.flows.pipeline.conftest import Bench

TEXT = """\
pipeline: sums
vars: {amounts: [1, 2]}
steps:
  start:
    uses: tests.flows.pipeline.kinds:Number
    params: {file: start.txt}
  first:
    uses: tests.flows.pipeline.kinds:Add
    needs: {to: start}
    foreach: {amount: "${vars.amounts}"}
    params: {amount: "${each.amount}"}
  second:
    uses: tests.flows.pipeline.kinds:Add
    needs: {to: first, more: start}
    params: {amount: "${steps.first.params.amount}", late: "after ${each.amount}"}
publish: {sum: second-amount_2}
"""
BY_HAND = """\
pipeline: sums
steps:
  start: {uses: "tests.flows.pipeline.kinds:Number", params: {file: start.txt}}
  first-amount_1: {uses: "tests.flows.pipeline.kinds:Add", needs: {to: start}, params: {amount: 1}}
  first-amount_2: {uses: "tests.flows.pipeline.kinds:Add", needs: {to: start}, params: {amount: 2}}
  second-amount_1:
    uses: tests.flows.pipeline.kinds:Add
    needs: {to: first-amount_1, more: start}
    params: {amount: 1, late: after 1}
  second-amount_2:
    uses: tests.flows.pipeline.kinds:Add
    needs: {to: first-amount_2, more: start}
    params: {amount: 2, late: after 2}
publish: {sum: second-amount_2}
"""
FIRST = ["first-amount_1", "first-amount_2"]
SECOND = ["second-amount_1", "second-amount_2"]


@pytest.fixture
def sweep(bench: Bench) -> Bench:
    bench.file.write_text(TEXT)
    return bench


def keys(bench: Bench, *overrides: str) -> dict[str, str]:
    return {step.name: step.key for step in bench.plan(*overrides).steps}


def echo(bench: Bench, steps: str) -> dict[str, Any]:
    """The needs and parameters of Echo and Add steps that a block of YAML comes to."""
    bench.file.write_text(f"pipeline: p\nsteps:\n{steps}")
    return {step.name: (dict(step.needs), step.params) for step in load_pipeline(bench.file).steps}


def test_every_step_has_the_key_of_the_same_step_written_by_hand(sweep: Bench) -> None:
    expanded = keys(sweep)
    sweep.file.write_text(BY_HAND)
    assert list(expanded) == ["start", *FIRST, *SECOND]
    assert keys(sweep) == expanded


def test_a_sweep_runs_and_a_longer_one_reuses_what_is_there(sweep: Bench) -> None:
    sweep.run()
    assert [sweep.number(name) for name in SECOND] == [82, 84]
    assert sweep.store.refs.resolve("ref:sum@latest")["step"] == "second-amount_2"
    longer = sweep.actions("steps.first.foreach.amount=[2, 3]")
    assert longer == {
        "start": "reuse", "first-amount_2": "reuse", "first-amount_3": "run",
        "second-amount_2": "reuse", "second-amount_3": "run",
    }  # fmt: skip


def test_targets_force_and_why_take_a_sweep_or_one_of_its_steps(sweep: Bench) -> None:
    sweep.run()
    assert [step.name for step in sweep.plan(targets=["first"]).steps] == ["start", *FIRST]
    assert [step.name for step in sweep.plan(targets=["first-amount_2"]).steps] == ["start", "first-amount_2"]
    forced = {step.name for step in sweep.plan(force=["first-amount_2"]).steps if step.action == "run"}
    assert forced == {"first-amount_2", "second-amount_2"}
    assert {step.name for step in sweep.plan(force=["first"]).steps if step.force} == {*FIRST, *SECOND}
    told = reasons(sweep.plan("steps.first.runtime.seconds=1", targets=["second"]), "second", sweep.store)
    assert [entry["step"] for entry in told] == SECOND
    with pytest.raises(ConfigError, match="there is no step 'secnd'; did you mean \"second\""):
        sweep.plan(targets=["secnd"])


def test_set_reaches_all_of_a_sweep_or_one(sweep: Bench) -> None:
    before, all_, one = (
        keys(sweep, *given) for given in ([], ["steps.first.params.late=x"], ["steps.first-amount_2.params.late=x"])
    )
    assert {name for name in FIRST if all_[name] != before[name]} == set(FIRST)
    assert {name for name in before if one[name] != before[name]} == {"first-amount_2", "second-amount_2"}
    assert all_["first-amount_2"] == one["first-amount_2"]
    for wrong, told in {
        "steps.first-amount_4.params.late=x": "did you mean",
        "steps.first-amount_2.foreach.amount=[3]": "one step of a sweep has no foreach",
        "steps.first-amount_2.params.amonut=3": 'did you mean "amount"',
    }.items():
        with pytest.raises(ConfigError, match=told):
            sweep.plan(wrong)


def test_pictures_and_records_show_the_steps(sweep: Bench) -> None:
    pipeline = load_pipeline(sweep.file)
    assert all(name in draw(pipeline) for draw in FORMATS.values() for name in (*FIRST, *SECOND))
    record = sweep.plan().record()
    assert {step["step"]: step.get("sweep") for step in record["steps"]} == {
        "start": None, **dict.fromkeys(FIRST, "first"), **dict.fromkeys(SECOND, "second")
    }  # fmt: skip
    assert "each" not in record and record["set"] == []


ECHO = "uses: tests.flows.pipeline.kinds:Echo"
ADD = "uses: tests.flows.pipeline.kinds:Add"


def test_values_keep_their_type_and_several_variables_are_a_product(bench: Bench) -> None:
    found = echo(
        bench,
        f"""\
  a:
    {ECHO}
    foreach: {{lr: [1e-3, 0.1], mix: [{{en: 1, code: [2]}}], Text: ["a/B.jsonl", "${{x}}"]}}
    params:
      value: "${{each.lr}}"
      table: "${{each.mix}}"
      values: ["${{each.mix.code}}", "lr ${{each.lr}}", "${{each[Text]}}"]
""".replace('"${x}"', r'"\\${x}"'),
    )
    assert list(found) == [
        "a-lr_1e-3-mix_8f8f2f-text_a_b_jsonl", "a-lr_1e-3-mix_8f8f2f-text_x",
        "a-lr_0_1-mix_8f8f2f-text_a_b_jsonl", "a-lr_0_1-mix_8f8f2f-text_x",
    ]  # fmt: skip
    _, params = found["a-lr_1e-3-mix_8f8f2f-text_x"]
    assert params.value == 0.001 and params.table == {"en": 1, "code": [2]}
    assert params.values == [[2], "lr 0.001", "${x}"]


def test_a_list_of_maps_gives_pairs_and_an_own_foreach_is_joined_with_what_is_followed(bench: Bench) -> None:
    found = echo(
        bench,
        f"""\
  start: {{uses: "tests.flows.pipeline.kinds:Number", params: {{file: start.txt}}}}
  tokens: {{{ADD.replace("tests", '"tests')}", needs: {{to: start}}, foreach: {{seed: [1, 2, 3]}}}}
  model:
    {ADD}
    needs: {{to: tokens}}
    foreach: [{{lr: 0.1, seed: 1}}, {{lr: 0.2, seed: 2}}]
  scores: {{{ADD.replace("tests", '"tests')}", needs: {{to: model, more: tokens}}}}
  samples: {{{ADD.replace("tests", '"tests')}", needs: {{to: model}}, foreach: {{heat: [1]}}}}
  one: {{{ADD.replace("tests", '"tests')}", needs: {{to: model-seed_1-lr_0_1}}}}
""",
    )
    needs = {
        name: needs for name, (needs, _) in found.items() if name.startswith(("model", "scores", "samples", "one"))
    }
    assert needs == {
        "model-seed_1-lr_0_1": {"to": "tokens-seed_1"},
        "model-seed_2-lr_0_2": {"to": "tokens-seed_2"},
        "scores-seed_1-lr_0_1": {"to": "model-seed_1-lr_0_1", "more": "tokens-seed_1"},
        "scores-seed_2-lr_0_2": {"to": "model-seed_2-lr_0_2", "more": "tokens-seed_2"},
        "samples-seed_1-lr_0_1-heat_1": {"to": "model-seed_1-lr_0_1"},
        "samples-seed_2-lr_0_2-heat_1": {"to": "model-seed_2-lr_0_2"},
        "one": {"to": "model-seed_1-lr_0_1"},
    }


MISTAKES = {
    "no list": ('"${vars.amounts}"', "3", "steps.first.foreach.amount: is no list of values", 10),
    "no values": ('"${vars.amounts}"', "[]", "steps.first.foreach.amount: is empty", 10),
    "a list of values": ('{amount: "${vars.amounts}"}', "[1, 2]", "steps.first.foreach: is no map of lists", 10),
    "nothing": ('{amount: "${vars.amounts}"}', "", "steps.first.foreach: is no map of lists", 10),
    "other variables": (
        '{amount: "${vars.amounts}"}', "[{amount: 1}, {amuont: 2}]",
        "steps.first.foreach.1: its variables are amuont, those of the first amount", 10,
    ),
    "a value twice": ('"${vars.amounts}"', "[1, 1.0]", "steps.first.foreach: amount: 1.0 is there twice", 10),
    "too many": (
        '"${vars.amounts}"', f"{list(range(40))}, b: {list(range(40))}",
        f"comes to 1600 steps (at most {MOST_STEPS})", 10,
    ),
    "a name": ("{amount:", "{1st:", "'1st' is no name of a variable", 10),
    "an unknown variable": (
        "${each.amount}\"}\n  second", "${each.amuont}\"}\n  second", "did you mean \"amount\"", 11
    ),
    "no variable": (
        '"${each.amount}"}\n  second', '"${each}"}\n  second', "${each} is no value (its values: ${each.amount})", 11
    ),
    "outside": ("amounts: [1, 2]", 'amounts: [1, 2], x: "${each.amount}"', "it is no part of a step", 2),
    "in a single step": (
        "start.txt", "'${each.amount}.txt'", "steps.start.params.file: ${each.amount} is a value of a", 6
    ),
    "publish": ("second-amount_2", "second", "publish.sum: 'second' is a sweep of 2 steps", 16),
    "a value of a sweep": ("start.txt", "'${steps.first.params.amount}'", "'first' is a sweep of 2 steps", 6),
    "a reference": ("${vars.amounts}", "${vars.amonuts}", "steps.first.foreach.amount: ", 10),
    "from the environment": ("[1, 2]", '["${oc.env:HOME}", 2]', "may be a secret, and steps are named by this", 10),
    "a name that is taken": (
        "  start:", "  first-amount_1: {uses: x}\n  start:", "would be called 'first-amount_1'", 8
    ),
    "the block of values": ("vars:", "each: {a: 1}\nvars:", "this name is taken", 2),
    "a circle": ("{to: start}", "{to: second}", "in a circle: ", 14),
    "a value out of range": ("[1, 2]", "[1, -2]", "steps.first-amount_-2.params.amount: input should be greater", 11),
    "an unknown key": ("foreach:", "forech:", "${each.amount} is a value of a foreach, and no step has a foreach", 11),
    "not a number": ("[1, 2]", "[1, .nan]", "cannot be part of a key", 10),
    "two sweeps": (
        "{to: first, more: start}\n", "{to: first, more: other}\n    foreach: {c: [1]}\n",
        "steps.second.needs: it needs several sweeps, and which of their steps go together is not said "
        "(first: amount; other: b)", 18,
    ),
    "no such value": (
        "{to: first, more: start}\n", "{to: first, more: start}\n    foreach: {amount: [2, 5]}\n",
        "steps.second.foreach: first has no step with amount: 5", 15,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_line_and_key(sweep: Bench, mistake: str) -> None:
    old, new, message, line = MISTAKES[mistake]
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if mistake == "two sweeps":
        other = "  other:\n    uses: tests.flows.pipeline.kinds:Add\n    needs: {to: start}\n    foreach: {b: [1]}\n"
        text = text.replace("  second:", f"{other}  second:")
    sweep.file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_pipeline(sweep.file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{sweep.file}:{line}: ")


def test_sweeps_that_have_not_the_same_values_are_not_cut_in_silence(sweep: Bench) -> None:
    other = (
        "  other:\n    uses: tests.flows.pipeline.kinds:Add\n    needs: {to: start}\n    foreach: {amount: [2, 3]}\n"
    )
    text = TEXT.replace("more: start", "more: other").replace("  second:", f"{other}  second:")
    sweep.file.write_text(text)
    with pytest.raises(ConfigError, match="other has no step with amount: 1"):
        load_pipeline(sweep.file)
    sweep.file.write_text(text.replace("more: other}", "more: other}\n    foreach: {amount: [2]}"))
    assert dict(load_pipeline(sweep.file).step("second-amount_2").needs) == {
        "to": "first-amount_2",
        "more": "other-amount_2",
    }


def test_names_are_valid_and_told_apart() -> None:
    values = ["A", "a", 1, "1", True, None, 2.5e-5, 1e9, -0.0, "", "é" * 90, {"x": 1}, "a b", "文"]
    names = instance_names("s", [{"v": value} for value in values])
    assert len(set(names)) == len(values)
    assert [names[i] for i in (4, 5, 6, 7, 8, 12, 13)] == [
        "s-v_true", "s-v_none", "s-v_2_5e-5", "s-v_1e9", "s-v_-0_0", "s-v_a_b", "s-v_文",
    ]  # fmt: skip
    assert names[0] != names[1] and names[2].startswith("s-v_1-") and len(names[10].encode()) < 120
    assert instance_names("s", [{"v": value} for value in reversed(values)]) == names[::-1]
