"""Canonical JSON: one text for one meaning, and an error for anything that is not plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.pipeline.identity import canonical_json, identity, key

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
