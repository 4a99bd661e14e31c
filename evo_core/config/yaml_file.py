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


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


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
