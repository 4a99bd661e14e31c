"""Arithmetic in configuration values: ``"8/3"``, ``"512*1024*1024"``, ``"2**16"``, ``".inf"``.

The text is parsed, never evaluated by Python: numbers, brackets and ``+ - * / // **`` are all there is.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

Number = int | float

LONGEST_TEXT = 200
"""Characters an expression may have; a longer one is no number a person wrote."""
LARGEST_BITS = 1024
"""Bits a power may have, which is what a float can hold: ``9**9**9`` must not stop the program."""

_INFINITIES = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf}
_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(text: str) -> Number:
    """The value of an expression of numbers, as Python would compute it.

    Raises:
        ValueError: the text is anything else than numbers and ``+ - * / // **``, or has no finite value.
    """
    stripped = text.strip()
    if stripped.lower() in _INFINITIES:
        return _INFINITIES[stripped.lower()]
    if len(stripped) > LONGEST_TEXT:
        raise ValueError(f"an expression of {len(stripped)} characters is too long for a number")
    try:
        value = _value(ast.parse(stripped, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f'"{stripped}" is not a number') from None
    except ZeroDivisionError:
        raise ValueError(f'"{stripped}" divides by zero') from None
    except OverflowError:
        raise ValueError(f'"{stripped}" is too large') from None
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise ValueError(f'"{stripped}" is too large')
    if not math.isfinite(value):
        raise ValueError(f'"{stripped}" is not finite (write .inf where infinity is meant)')
    return value


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
    raise ValueError(f'"{ast.unparse(node)}" is not a number (numbers and + - * / // ** only)')


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) * math.log2(max(abs(base), 2)) > LARGEST_BITS:
        raise OverflowError
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError(f"{base}**{exponent} is not a real number")
    return result
