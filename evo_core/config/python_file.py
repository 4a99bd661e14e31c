"""InternEvo's configurations: a ``.py`` file whose top-level names are the blocks and keys.

Such a file is code, and is executed. Names without a lower-case letter (``SEQ_LEN``) are the user's own constants,
but for ``JOB_NAME``; names that start with an underscore, modules, functions and classes are left alone.
"""

from __future__ import annotations

import ast
import inspect
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from evo_core.config.plain_data import check_plain, read_text
from evo_core.errors import ConfigError

CONSTANTS_WITH_MEANING = frozenset({"JOB_NAME"})


def run_python_config(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Executes the file; returns its keys and the line of every dotted key.

    Raises:
        ConfigError: the file is missing, is no Python, or fails.
    """
    source = read_text(path)
    module = types.ModuleType("evo_config")
    module.__file__ = str(path)
    try:
        tree = ast.parse(source, str(path))
        exec(compile(tree, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise ConfigError(f"not valid Python: {error.msg}", file=path, line=error.lineno) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: the file ends itself, not the command
        frames = traceback.extract_tb(sys.exc_info()[2])
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(told, file=path, line=line) from None
    lines = _lines(tree)

    def refuse(key: str, problem: str) -> ConfigError:
        name = key.partition(".")[0]
        hint = "a name that begins with _ is left alone" if key == name else None
        return ConfigError(problem, file=path, line=lines.get(key) or lines.get(name), key=key, hint=hint)

    # A copy, because blocks may share a dict that is then changed for one of them.
    data = {name: value for name, value in vars(module).items() if _is_setting(name, value)}
    return check_plain(data, refuse, also="torch.dtype"), lines


def _is_setting(name: str, value: object) -> bool:
    if name in CONSTANTS_WITH_MEANING:
        return True
    if name.startswith("_") or not any(letter.islower() for letter in name):
        return False
    return not (inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value))


def _lines(tree: ast.Module) -> dict[str, int]:
    lines: dict[str, int] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=targets, value=value):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                names = [name]
            case _:
                continue
        for name in names:
            _note(name, value, statement.lineno, lines)
    return lines


def _note(key: str, value: ast.expr, line: int, lines: dict[str, int]) -> None:
    lines[key] = line
    match value:
        case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
            for keyword in keywords:
                if keyword.arg:
                    _note(f"{key}.{keyword.arg}", keyword.value, keyword.lineno, lines)
        case ast.Dict(keys=keys, values=values):
            for name, inner in zip(keys, values, strict=True):
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    _note(f"{key}.{name.value}", inner, name.lineno, lines)
