"""Which format ``--format`` names: ``alpaca``, ``chat``, ``sharegpt``, or a user's own ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from evo_core.config.suggest import suggest
from evo_core.data.sft.alpaca import alpaca
from evo_core.data.sft.chat import chat
from evo_core.data.sft.pieces import Format, PieceFunction
from evo_core.data.sft.sharegpt import sharegpt
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError, code_error

BY_TEMPLATE = ("chat", "sharegpt")
"""Formats that a chat template writes."""

BUILT_IN = ("alpaca", *BY_TEMPLATE)
_KEY = "format"


def find_format(name: str, tokenizer: Tokenizer, chat_template: Path | None = None) -> Format:
    """The format of a name.

    Raises:
        DataError: there is no such format, or it does not work with this tokenizer.
    """
    if chat_template is not None and name not in BY_TEMPLATE:
        raise DataError(
            f"a chat template is for the format chat, not {name}",
            file=chat_template,
            hint=f"{' and '.join(BY_TEMPLATE)} take one",
        )
    if name == "alpaca":
        return alpaca(tokenizer)
    if name == "chat":
        return chat(tokenizer, chat_template)
    if name == "sharegpt":
        return sharegpt(tokenizer, chat_template)
    function, _ = own_function(name)
    return Format(name, function)


def own_function(name: str) -> tuple[PieceFunction, Path | None]:
    """A user's function and the file it is in; modules in the current folder are found.

    Raises:
        DataError: nothing of this name can be imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise DataError(
            f"there is no format {name!r}{suggest(name, BUILT_IN)}",
            key=_KEY,
            hint=f"{', '.join(BUILT_IN)}, or a function of yours as package.module:function",
        )
    module = _import(module_name, name)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise DataError(
            f"there is no function {attribute!r} in {module_name}{suggest(attribute, vars(module))}",
            file=module.__file__,
            key=_KEY,
        )
    return function, Path(module.__file__) if module.__file__ else None


def _import(module_name: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} cannot be imported: {error}", key=_KEY, hint="modules in the current folder are found"
        ) from None
    except Exception as error:
        raise DataError(f"{name} cannot be imported: {code_error(error)}", key=_KEY) from error
