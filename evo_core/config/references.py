"""References inside a configuration: ``${vars.seq_len}`` to another value, ``${oc.env:NAME}`` to the environment.

A value from the environment may be a secret. So references are resolved in two steps: first everything but the
environment, which leaves each value either plain or as a text with ``${oc.env:NAME}`` in it. That form may be
written anywhere. Only then are the environment's values put in, for the program itself.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from evo_core.config.types import describe
from evo_core.errors import ConfigError

# What stands for an environment reference while others resolve: its arguments as JSON, between private-use characters,
# and a number that no text which somebody wrote can have guessed.
_OPEN, _CLOSE = f"\ue000{secrets.token_hex(8)}", "\ue001"
_MARKER = re.compile(f"{_OPEN}(\\[[^\ue000\ue001]*\\]){_CLOSE}")
# An odd number of backslashes before ${ makes it plain text.
_UNESCAPED = r"(?<!\\)((?:\\\\)*)\$\{"
_ENVIRONMENT = re.compile(_UNESCAPED + r"\s*oc\.env\s*:")
_OTHER_RESOLVER = re.compile(_UNESCAPED + r"\s*(?!evo_environment:)([A-Za-z_][\w.]*)\s*:")

LONGEST_WRITTEN = 10_000
"""Characters that a text with references in it may have."""
MOST_REFERENCES = 100
"""In one text."""
LARGEST_RESOLVED = 1_000_000
"""Characters that all references of a document may come to."""

_noted = threading.local()
_NAMED = re.compile(r"\$\{\s*([^\s:${}]+)\s*\}")
_NESTED = re.compile(r"\$\{(?!\s*oc\.env)[^{}]*\$\{")
_VARIABLE = re.compile(r"^[^=\0\s]+$")

Place = Callable[[str], tuple[Any, int | None]]
"""Where a dotted key is written: (file, line)."""
Needed = Callable[[str], bool]


def resolve_values(data: dict[str, Any], place: Place) -> dict[str, Any]:
    """``data`` with every reference to another value replaced; the environment's are left as markers.

    Raises:
        ConfigError: a reference to something that is not there, to itself, or that cannot be read.
    """
    texts = {key: text for key, text in strings(data) if "${" in text}
    if not texts:
        return data
    from omegaconf import OmegaConf

    _register_resolvers()
    for key, text in texts.items():
        if len(text) > LONGEST_WRITTEN:
            raise _error(key, f"is a text of {len(text)} characters with references in it", place)
        if text.count("${") > MOST_REFERENCES:
            raise _error(key, f"holds more than {MOST_REFERENCES} references", place)
        texts[key] = _ENVIRONMENT.sub(r"\1${evo_environment:", text)
        if other := _OTHER_RESOLVER.search(texts[key]):
            raise _error(key, f"${{{other[2]}:…}} is not known (there are ${{a.b}} and ${{oc.env:NAME}})", place)
        _check_grammar(key, texts[key], place)
    renamed = replace_texts(data, lambda key, text: texts.get(key, text))
    tree = OmegaConf.create(renamed, flags={"allow_objects": True})
    with _noting_values() as values:
        _InOrder(tree, texts, values, place).settle_all()
        return _walk(tree, "", place)


def named(data: Any) -> list[str]:
    """The dotted keys that references in ``data`` name."""
    return [name for _, text in strings(data) for name in _NAMED.findall(text)]


def name_by_value(data: Any) -> bool:
    """Whether a reference's name is made of another's value, ``${vars.${vars.name}}``: it may be any."""
    return any(_NESTED.search(text) for _, text in strings(data))


def environment_references(data: Any) -> dict[str, str]:
    """The dotted keys whose value needs the environment, with that value as it may be written to a file."""
    return {key: _as_reference(text) for key, text in strings(data) if _OPEN in text}


def without_environment(data: Any) -> Any:
    """``data`` with the environment's values as ``${oc.env:NAME}``: fit to be written."""
    return replace_texts(data, lambda _, text: _as_reference(text))


def with_environment(data: Any, place: Place, needed: Needed = lambda key: True) -> Any:
    """``data`` with the environment's values put in: for the program, never for a file.

    Args:
        needed: whether the value of a dotted key is; of another one a variable that is not set stays a reference.

    Raises:
        ConfigError: a variable is needed, is not set and has no default.
    """
    return replace_texts(data, lambda key, text: _from_environment(key, text, place, needed))


def environment_texts(data: Any) -> dict[str, str]:
    """What the environment puts into ``data``: each text as the program sees it, to the reference it was written as.

    Of a text with a reference in its middle both the whole and the variable's own value. A default, which stands in
    the file, is none.
    """
    texts: dict[str, str] = {}
    for key, text in strings(data):
        for marked in [text, *(match[0] for match in _MARKER.finditer(text))]:
            if any(name in os.environ for name in _variables(marked)):
                texts[str(_from_environment(key, marked, _nowhere, lambda key: False))] = _as_reference(marked)
    return texts


def _variables(text: str) -> Iterator[str]:
    """The variables that a text with markers names, those in defaults included."""
    for match in _MARKER.finditer(text):
        name, *default = json.loads(match[1])
        yield name
        yield from _variables(default[0]) if default and isinstance(default[0], str) else ()


def _nowhere(key: str) -> tuple[Any, int | None]:
    return None, None


def _register_resolvers() -> None:
    import omegaconf

    # omegaconf 2.4 renamed the function; 2.3 has another, older one under the new name.
    version = tuple(int(part) for part in omegaconf.__version__.split(".")[:2])
    renamed = version >= (2, 4)
    register: Any = getattr(omegaconf.OmegaConf, "register_resolver" if renamed else "register_new_resolver")
    register("evo_environment", _mark, replace=True)
    register("evo_value", lambda number: _noted.values[number], replace=True)


@contextmanager
def _noting_values() -> Iterator[list[Any]]:
    """Values that ``${evo_value:NUMBER}`` stands for, in this thread and block."""
    _noted.values = []
    try:
        yield _noted.values
    finally:
        _noted.values = []


class _InOrder:
    """Resolves each text once, after those it refers to, and notes what it came to.

    OmegaConf alone resolves a text anew wherever it is referred to: thirty vars of two references each to the one
    before would be a thousand million of them.
    """

    def __init__(self, tree: Any, texts: dict[str, str], values: list[Any], place: Place) -> None:
        self.tree, self.texts, self.values, self.place = tree, texts, values, place
        self.begun: set[str] = set()
        self.size = 0

    def settle_all(self) -> None:
        for key in self.texts:
            try:
                self._settle(key)
            except RecursionError:
                raise _error(key, "leads through too many references", self.place) from None

    def _settle(self, key: str) -> None:
        if key in self.begun:
            return  # a circle is found by OmegaConf
        self.begun.add(key)
        text = self.texts[key]
        while (reference := _NAMED.search(text)) is not None:
            name = _absolute(reference[1], key)
            for needed in self._needed(name):
                self._settle(needed)
            text = text[: reference.start()] + self._part_of_a_name(name) + text[reference.end() :]
        self._note(key)

    def _needed(self, name: str) -> list[str]:
        """The texts at, above and below a dotted key."""
        parts = name.split(".")
        above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        below = [key for key in self.texts if key.startswith(f"{name}.")] if name not in self.texts else []
        return [key for key in above if key in self.texts] + below

    def _part_of_a_name(self, name: str) -> str:
        """A value as ``${vars.${vars.name}}`` has it inside; nothing where it cannot be one."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            value = OmegaConf.select(self.tree, name)
        except OmegaConfBaseException:
            return ""
        return str(value) if isinstance(value, str | int) and re.fullmatch(r"[\w.-]{1,200}", str(value)) else ""

    def _note(self, key: str) -> None:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        *path, last = key.split(".")
        here = self.tree
        try:
            for part in path:
                here = here[_index_in(here, part)]
            name = _index_in(here, last)
            value = here[name]
        except (OmegaConfBaseException, LookupError, TypeError, ValueError):
            return  # `_walk` says what is wrong
        if OmegaConf.is_config(value):
            written = OmegaConf.to_container(value, resolve=False)
            self.size += 200 * _count(written)  # a copied value takes OmegaConf as long as many characters
            here[name] = written
        else:
            self.size += len(value) if isinstance(value, str) else 1
            self.values.append(value)
            here[name] = f"${{evo_value:{len(self.values) - 1}}}"
        if self.size > LARGEST_RESOLVED:
            raise _error(key, f"its references come to more than {LARGEST_RESOLVED} characters", self.place)


def _count(data: Any) -> int:
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return 1 + sum(map(_count, items))


def _index_in(here: Any, part: str) -> Any:
    from omegaconf import ListConfig

    return int(part) if isinstance(here, ListConfig) else part


def _absolute(name: str, key: str) -> str:
    """A reference's name without brackets and leading dots: ``a[0].b`` is ``a.0.b``, ``.n`` lies beside ``key``."""
    name = re.sub(r"\[([^\]]*)\]", r".\1", name)
    dots = len(name) - len(name.lstrip("."))
    return ".".join([*key.split(".")[:-dots], name[dots:]]) if dots else name


def as_literal(value: Any) -> Any:
    """Plain data whose texts are meant as they are: written so, ``${`` in them is no reference when read again."""
    return replace_texts(value, lambda _, text: _escape(text))


def _escape(text: str) -> str:
    if "${" not in text:
        return text
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _mark(*arguments: Any) -> str:
    if not arguments or not isinstance(arguments[0], str) or not _VARIABLE.match(arguments[0]):
        raise ValueError("${oc.env:NAME} names no variable of the environment")
    if len(arguments) > 2:
        raise ValueError("${oc.env:NAME,DEFAULT} takes one default")
    return f"{_OPEN}{json.dumps(arguments)}{_CLOSE}"


def _as_reference(text: str) -> str:
    if _OPEN not in text:
        return _escape(text)

    def write(match: re.Match[str]) -> str:
        name, *default = json.loads(match[1])
        return "${oc.env:" + ",".join([str(name), *map(_quoted, default)]) + "}"

    parts, end = [], 0
    for match in _MARKER.finditer(text):
        before = re.sub(r"(\\+)$", r"\1\1", _escape(text[end : match.start()]))  # or it would escape the reference
        parts += [before, write(match)]
        end = match.end()
    return "".join([*parts, _escape(text[end:])])


def _quoted(default: Any) -> str:
    if not isinstance(default, str):
        return json.dumps(default)
    return _as_reference(default) if _OPEN in default else "'" + default.replace("'", "\\'") + "'"


def _from_environment(key: str, text: str, place: Place, needed: Needed) -> Any:
    def look_up(match: re.Match[str]) -> Any:
        name, *default = json.loads(match[1])
        if name in os.environ:
            return os.environ[name]
        if default:
            return _from_environment(key, default[0], place, needed) if isinstance(default[0], str) else default[0]
        if not needed(key):
            return _as_reference(match[0])
        raise _error(key, f"the environment variable {name} is not set", place)

    whole = _MARKER.fullmatch(text)
    if whole:
        return look_up(whole)
    return _MARKER.sub(lambda match: str(look_up(match)), text)


def _check_grammar(key: str, text: str, place: Place) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.create({"value": text})
    except (OmegaConfBaseException, RecursionError):
        raise _error(key, f"{describe(text)} is no reference (they look like ${{vars.name}})", place) from None


def _walk(node: Any, prefix: str, place: Place) -> Any:
    from omegaconf import DictConfig, ListConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(node, DictConfig | ListConfig):
        return node
    names: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    here: Any = node
    values: dict[Any, Any] = {}
    for name in names:
        key = f"{prefix}{name}"
        try:
            value = here[name]
            if OmegaConf.is_interpolation(here, name) and OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)  # a whole block taken over from elsewhere
        except (OmegaConfBaseException, RecursionError) as error:
            written: Any = OmegaConf.to_container(here, resolve=False)
            raise _error(key, _why(str(written[name]), error), place) from None
        values[name] = _walk(value, f"{key}.", place)
    return values if isinstance(node, DictConfig) else list(values.values())


def _why(written: str, error: BaseException) -> str:
    from omegaconf.errors import InterpolationKeyError

    written = describe(written)
    if own := str(error).partition("ValueError raised while resolving interpolation: ")[2]:
        return own.splitlines()[0]
    if isinstance(error, RecursionError) or "recursive" in str(error).lower():
        return f"{written} refers to itself"
    if isinstance(error, InterpolationKeyError):
        return f"{written} refers to a value that is not there"
    return f"{written} cannot be resolved: {str(error).splitlines()[0]}"


def _error(key: str, message: str, place: Place) -> ConfigError:
    file, line = place(key)
    return ConfigError(message.replace("${evo_environment:", "${oc.env:"), file=file, line=line, key=key)


def strings(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested data, with its dotted key."""
    if isinstance(data, str):
        yield prefix[:-1], data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from strings(value, f"{prefix}{name}.")
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from strings(value, f"{prefix}{index}.")


def replace_texts(data: Any, text_at: Callable[[str, str], Any], prefix: str = "") -> Any:
    """A copy of nested data in which ``text_at(dotted key, text)`` stands for every text."""
    if isinstance(data, str):
        return text_at(prefix[:-1], data)
    if isinstance(data, dict):
        return {name: replace_texts(value, text_at, f"{prefix}{name}.") for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [replace_texts(value, text_at, f"{prefix}{index}.") for index, value in enumerate(data)]
    return data
