"""YAML as Evo reads it: YAML 1.2's plain values, no key twice, and the line of every key.

PyYAML alone follows YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``12:30:00`` is 45000 and
``2026-11-20`` is a date. Configurations mean none of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evo_core.config.plain_data import DEEPEST, MOST_DIGITS, MOST_VALUES, check_plain, read_text
from evo_core.errors import ConfigError


class YamlText(NamedTuple):
    """A parsed file: its data and the line (from 1) of every dotted key."""

    data: Any
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}
    # None stands for every other tag, of which PyYAML says that it has no constructor: no dates, sets or binaries.
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > 2 * DEEPEST:  # a level less than it could be: `check_plain` names the key
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    # A copy of YAML 1.1's, so that what only other readers take for a number or a date is quoted as well.
    yaml_implicit_resolvers = {first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML folds these line breaks of Unicode's into blanks unless the text is in double quotes.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)

_PLAIN_VALUES = {
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    "float": (
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    "merge": (r"^<<$", ["<"]),
}
for _name, (_pattern, _first) in _PLAIN_VALUES.items():
    for _either in (_Loader, _Dumper):
        _either.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text that ``parse_yaml`` reads back to equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: str | Path) -> YamlText:
    """Reads a YAML file.

    Raises:
        ConfigError: the file is missing or unreadable, is no YAML, or holds a key twice.
    """
    path = Path(path)
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, file: str | Path | None = None) -> YamlText:
    """Parses YAML text; ``file`` is what errors name.

    Raises:
        ConfigError: it is no YAML, or holds a key twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlText(None, {})
        _check_aliases(node, file)
        lines: dict[str, int] = {}
        _note_lines(node, "", lines, file)
        data = loader.construct_document(node)
        checked = check_plain(data, lambda key, problem: _refused(key, problem, lines, file))
        return YamlText(checked, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not valid YAML: {why}", file=file, line=mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", file=file) from None
    except ValueError as error:  # a constructor's, for instance for a key that cannot be one
        raise ConfigError(f"not valid YAML: {error}", file=file) from None
    finally:
        loader.dispose()


def _refused(key: str, problem: str, lines: Mapping[str, int], file: str | Path | None) -> ConfigError:
    at = key
    while at and at not in lines:
        at = at.rpartition(".")[0]
    return ConfigError(problem, file=file, line=lines.get(at), key=key or None)


def _check_aliases(root: yaml.Node, file: str | Path | None) -> None:
    """Refuses anchors that hold themselves, and aliases that come to more values than a configuration has."""
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in inside:
            raise ConfigError("this anchor holds itself", file=file, line=node.start_mark.line + 1)
        if id(node) not in sizes:
            inside.add(id(node))
            sizes[id(node)] = 1 + sum(size(part) for part in _parts(node))
            inside.discard(id(node))
        return sizes[id(node)]

    if size(root) > 3 * MOST_VALUES:  # keys count as well
        raise ConfigError(f"its aliases come to more than {MOST_VALUES} values", file=file)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], file: str | Path | None) -> None:
    if isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("int", "float"):
        _check_number(node, prefix.removesuffix("."), file)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines.setdefault(f"{prefix}{index}", item.start_mark.line + 1)
            _note_lines(item, f"{prefix}{index}.", lines, file)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            name, line = str(key_node.value), key_node.start_mark.line + 1
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                what = "not valid YAML: this key is no text"
                if isinstance(key_node, yaml.ScalarNode):
                    what = f"the key {name or '(nothing)'} is no text"
                at = prefix.removesuffix(".") or None
                raise ConfigError(what, file=file, line=line, key=at, hint="write it in quotes")
            if name in seen:
                first = f"the first is on line {seen[name]}"
                raise ConfigError("this key is here twice", file=file, line=line, key=f"{prefix}{name}", hint=first)
            seen[name] = line
            lines[f"{prefix}{name}"] = line
            _note_lines(value_node, f"{prefix}{name}.", lines, file)


def _check_number(node: yaml.ScalarNode, key: str, file: str | Path | None) -> None:
    """Python's own conversion refuses a long number, or a text with the tag of one, without saying where it is."""
    pattern = _PLAIN_VALUES["int"][0], _PLAIN_VALUES["float"][0]
    problem = None
    if len(node.value) > MOST_DIGITS:
        problem = f"is a number of {len(node.value)} characters (at most {MOST_DIGITS})"
    elif not any(re.match(one, node.value) for one in pattern):
        problem = f'"{node.value}" is no number'
    if problem:
        raise ConfigError(problem, file=file, line=node.start_mark.line + 1, key=key or None)
