"""YAML as Evo reads it: YAML 1.2's plain values, no key twice, and the line of every key.

PyYAML alone follows YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``12:30:00`` is 45000 and
``2026-11-20`` is a date. Configurations mean none of that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evo_core.errors import ConfigError


class YamlText(NamedTuple):
    """A parsed file: its data and the line (from 1) of every dotted key."""

    data: Any
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such file", file=path) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a file", file=path) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from None
    return parse_yaml(text, path)


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
        lines: dict[str, int] = {}
        _note_lines(node, "", lines, file)
        return YamlText(loader.construct_document(node), lines)
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


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], file: str | Path | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines.setdefault(f"{prefix}{index}", item.start_mark.line + 1)
            _note_lines(item, f"{prefix}{index}.", lines, file)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            name, line = str(key_node.value), key_node.start_mark.line + 1
            if name in seen:
                first = f"the first is on line {seen[name]}"
                raise ConfigError("this key is here twice", file=file, line=line, key=f"{prefix}{name}", hint=first)
            seen[name] = line
            lines[f"{prefix}{name}"] = line
            _note_lines(value_node, f"{prefix}{name}.", lines, file)
