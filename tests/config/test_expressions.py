"""Numbers written as expressions: right where they are numbers, harmless where they are not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.config.expressions import evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/3", 8 / 3),
        ("512*1024*1024", 512 * 1024 * 1024),
        ("2**16", 65536),
        (" -(1 + 2) * 3 ", -9),
        ("7 // 2", 3),
        ("1e-4", 1e-4),
        ("1_000", 1000),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("+4", 4),
    ],
)
def test_values(text: str, value: float) -> None:
    assert evaluate(text) == value
    assert type(evaluate(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1 +",
        "True",
        "'a'*9",
        "2j",
        "1 if 1 else 2",
        "(1, 2)",
        "[1]",
        "a.b",
        "f(1)",
        "__import__('os').system('true')",
        "1 < 2",
        "5 % 2",
        "1 | 2",
        "~1",
        "lambda: 1",
        "9**9**9",
        "2**(2**99)",
        "1/0",
        "1//0",
        "0**-1",
        "(-1)**0.5",
        "1e999",
        "1e308*1e308",
        "(" * 500 + "1" + ")" * 500,
        "-" * 150 + "x",
        "1" * 201,
        "nan",
        "inf",
        "010",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        evaluate(text)


@given(st.text(max_size=60))
def test_no_text_does_more_than_raise_value_error(text: str) -> None:
    try:
        assert isinstance(evaluate(text), int | float)
    except ValueError:
        pass


_numbers = st.integers(0, 99).map(str) | st.floats(0, 1e6, allow_nan=False).map(repr)
_expressions = st.recursive(
    _numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | inner.map(lambda text: f"(-{text})")
    ),
    max_leaves=6,
)


@given(_expressions)
def test_agrees_with_python(text: str) -> None:
    try:
        expected = eval(text)
    except ZeroDivisionError:
        return
    if len(text) <= 200 and math.isfinite(expected):
        assert evaluate(text) == expected
