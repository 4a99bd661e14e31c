"""Functions that torch.compile leaves alone, marked without importing torch's compiler.

``torch.compiler.disable`` imports it (with sympy and torch.onnx, a thousand modules and a second of CPU time) when a
function is marked, and so in every process that imports a model, though few compile one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_marked: list[Callable[..., Any]] = []
_something_is_compiled = False


def uncompiled(function: F) -> F:
    """Mark a function of a module, or a method, as one that compiled code calls as it is.

    It is to be looked up in its module or class at each call, since `leave_uncompiled` puts another in its place.
    """
    if _something_is_compiled:
        return torch.compiler.disable(function)
    _marked.append(function)
    return function


def leave_uncompiled() -> None:
    """Before something is compiled: tell torch's compiler of every function that is marked."""
    global _something_is_compiled
    _something_is_compiled = True
    while _marked:
        function = _marked.pop()
        owner: Any = sys.modules[function.__module__]
        *classes, name = function.__qualname__.split(".")
        for inside in classes:
            owner = getattr(owner, inside)
        setattr(owner, name, torch.compiler.disable(function))
