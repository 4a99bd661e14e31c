"""Canonical JSON: one text for one meaning, and an error for anything that is not plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.config.canonical_json import canonical_json
from evo_core.errors import ConfigError
from flows.pipeline.identity import identity, key
from flows.pipeline.plan import make_plan
from flows.pipeline.schema import load_pipeline
from tasks.kind import Params, plain_params
from tasks.store import open_store

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plain))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(list(value.items())))) == canonical_json(value)


def test_numbers_have_one_spelling() -> None:
    assert canonical_json({"a": 1.0, "b": 3e-4, "c": 1e22}) == '{"a":1,"b":0.0003,"c":1e+22}'
    assert canonical_json(float("inf")) == '".inf"'
    assert canonical_json([True, 1]) == "[true,1]"


@pytest.mark.parametrize("value", [Path("a"), {1: 2}, {"a": {2}}, object(), b"x", {"a": [float("nan")]}])
def test_what_is_not_plain_data_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)


def test_every_part_of_the_payload_counts() -> None:
    base = identity("kind", 1, {"a": 1}, {"in": "k"})
    others = [
        identity("kinds", 1, {"a": 1}, {"in": "k"}),
        identity("kind", 2, {"a": 1}, {"in": "k"}),
        identity("kind", 1, {"a": 2}, {"in": "k"}),
        identity("kind", 1, {"a": 1}, {"in": "l"}),
        identity("kind", 1, {"a": 1}, {"to": "k"}),
        identity("kind", 1, {"a": 1}, {"in": "k"}, source="s"),
    ]
    assert len({key(payload) for payload in [base, *others]}) == 7


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("value: .nan", r"p.yaml:3: steps.a.params.value: .nan cannot be part of a key"),
        ("value: .inf", r"steps.a.params.value: .inf cannot be part of a key"),
        ("value: -1e999", r"steps.a.params.value: "),
        ("values: [1, -.inf]", r"steps.a.params.values.1: -.inf cannot be part of a key"),
        ("table: {x: {y: .nan}}", r"steps.a.params.table.x.y: .nan cannot be part of a key"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_key(params: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        echo(tmp_path, params)


def test_different_parameters_of_any_type_have_different_keys(tmp_path: Path) -> None:
    values = [
        "null",
        '"null"',
        '""',
        "true",
        "1",
        '"1"',
        "false",
        "0",
        "[]",
        "{}",
        "[null]",
        "1.5",
        "[[1], 2]",
        "[1, 2]",
    ]
    assert len({echo(tmp_path, f"value: {value}") for value in values}) == len(values)
    assert echo(tmp_path, "value: 1") == echo(tmp_path, "value: 1.0")
    assert echo(tmp_path, "value: 0") == echo(tmp_path, "value: -0.0")


def test_a_sets_order_is_no_part_of_a_key() -> None:
    class Words(Params):
        words: set[str]

    words = {f"word{i}" for i in range(20)}
    assert plain_params(Words(words=words))["words"] == sorted(words)


def echo(folder: Path, params: str) -> str:
    file = folder / "p.yaml"
    file.write_text(f"pipeline: p\nsteps:\n  a: {{uses: 'tests.flows.pipeline.kinds:Echo', params: {{{params}}}}}\n")
    return make_plan(load_pipeline(file), open_store(folder / "store")).step("a").key
