"""From pydantic's findings to sentences for the user: what is wrong with which key, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from evo_core.config.addresses import may_hold_address
from evo_core.config.fields import Block, block_type, leaves
from evo_core.config.suggest import suggest
from evo_core.config.types import describe
from evo_core.errors import ConfigError


def errors_of(error: ValidationError, root: type[BaseModel], references: Mapping[str, str]) -> list[ConfigError]:
    """A ConfigError for each wrong key; the values of keys in ``references`` are not shown."""
    found: dict[str, ConfigError] = {}
    for detail in error.errors(include_url=False):
        owner, key, name = _locate(detail["loc"], root)
        if key not in found:  # a union reports each of its members
            if key in references and detail["type"] != "extra_forbidden":
                found[key] = ConfigError(f"the value of {references[key]} does not fit here", key=key)
            else:
                found[key] = _explain(dict(detail), owner, key, name, root)
    return list(found.values())


def _locate(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[type[BaseModel], str, str]:
    """The block that a location ends in, the dotted key, and the key's last part.

    Locations also name the members of unions, which are no keys.
    """
    owner, parts = root, []
    for part in location:
        parts.append(str(part))
        field = owner.model_fields.get(str(part))
        inner = block_type(field) if field is not None else None
        if inner is None:
            break
        owner = inner
    return owner, ".".join(parts), parts[-1] if parts else ""


def _explain(detail: dict[str, Any], owner: type[BaseModel], key: str, name: str, root: type[BaseModel]) -> ConfigError:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "extra_forbidden":
        if issubclass(owner, Block) and name in owner.renamed:
            return ConfigError("unknown key", key=key, hint=owner.renamed[name])
        return ConfigError(f"unknown key{_nearest(name, owner, root)}", key=key)
    if kind == "missing":
        return ConfigError("is required", key=key)
    if kind == "value_error":
        return ConfigError(str(context["error"]), key=key)
    wrong = f"not {_sort_of(value)}" if may_hold_address(key) else f"not {describe(value)}"
    if kind == "literal_error":
        known = context["expected"].replace("'", '"')
        near = (
            suggest(value, known.replace('"', "").replace(" or ", ", ").split(", ")) if isinstance(value, str) else ""
        )
        return ConfigError(f"must be {known}, {wrong}{near}", key=key)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return ConfigError(f"must be a block of keys, {wrong}", key=key)
    bounds = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    for bound, words in bounds.items():
        if bound in context:
            return ConfigError(f"must be {words} {context[bound]:g}, {wrong}", key=key)
    expected = {
        "bool": "true or false",
        "string": "text",
        "list": "a list",
        "tuple": "a list",
        "int": "a whole number",
    }.get(kind.split("_")[0])
    if expected:
        return ConfigError(f"must be {expected}, {wrong}", key=key)
    return ConfigError(f"{detail['msg']}, {wrong}", key=key)


def _sort_of(value: Any) -> str:
    """What a value is, where it is not to be shown."""
    sorts: dict[type, str] = {str: "text", dict: "a block of keys", list: "a list"}
    return sorts.get(type(value), "a value of another type")


def _nearest(name: str, owner: type[BaseModel], root: type[BaseModel]) -> str:
    near = suggest(name, owner.model_fields)
    if near:
        return near
    for leaf in leaves(root):
        if leaf.key.rpartition(".")[2] == name:
            return f'; did you mean "{leaf.key}"?'
    return ""
