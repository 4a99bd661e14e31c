"""How a setting is declared: its default, what it does, and whether it is part of a run's identity.

*Identity* settings change the trained weights in exact arithmetic; they enter the key of the artifact that
a run makes. *Execution* settings change only where, how fast and with what records a run is made. Every field
of the schema is one or the other, and a test fails on a field that does not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

Mark = Literal["identity", "execution", "copied", "block"]
REQUIRED: Any = ...


class _Never:
    """Stands for "was there from the first version", a value that no setting has."""

    def __repr__(self) -> str:
        return "NEVER"


NEVER = _Never()


def identity(default: Any, doc: str, *, introduced: Any = NEVER, **options: Any) -> Any:
    """A setting that changes the trained weights.

    Args:
        default: its default, or ``REQUIRED``.
        doc: what it does, with units.
        introduced: for a setting that came after the first artifacts were made, the default it came with:
            at that value it is left out of the identity, so that older artifacts keep their keys. A function
            gives it from the block, where it follows from other settings.
        options: passed to pydantic's ``Field``.
    """
    return _field(default, doc, "identity", introduced, options)


def execution(default: Any, doc: str, **options: Any) -> Any:
    """A setting that leaves the trained weights as they are (in exact arithmetic)."""
    return _field(default, doc, "execution", NEVER, options)


def copied(default: Any, doc: str) -> Any:
    """A value, or a block of them, that the schema copies here from elsewhere, for the convenience of a reader."""
    return _field(default, doc, "copied", NEVER, {})


def block(kind: type[Block], doc: str) -> Any:
    """A group of settings that may be left out whole."""
    return Field(default_factory=kind, description=doc, json_schema_extra={"mark": "block"})


def required_block(doc: str) -> Any:
    """A group of settings that must be stated."""
    return Field(default=REQUIRED, description=doc, json_schema_extra={"mark": "block"})


def optional_block(doc: str) -> Any:
    """A group of settings that is None where it is left out."""
    return Field(default=None, description=doc, json_schema_extra={"mark": "block"})


def _field(default: Any, doc: str, mark: Mark, introduced: Any, options: dict[str, Any]) -> Any:
    extra: dict[str, Any] = {"mark": mark}
    if introduced is not NEVER:
        extra["introduced"] = introduced
    return Field(default, description=doc, json_schema_extra=extra, **options)


class Block(BaseModel):
    """A group of settings. It cannot be changed after it was made, and knows no other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    renamed: ClassVar[dict[str, str]] = {}
    """Keys of older configurations, and what to do about them."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_all_defaults(cls, data: Any) -> Any:
        return {} if data is None else data


class Leaf(NamedTuple):
    """One setting of the schema: its dotted key, how it is marked, and its declaration."""

    key: str
    mark: Mark | None
    introduced: Any
    field: FieldInfo


def leaves(block: type[BaseModel] | BaseModel, prefix: str = "") -> Iterator[Leaf]:
    """Every setting below a block, depth first, in the order of declaration.

    Of a configuration (not its class) the blocks as they are: a user's own model type brings its own, whose keys
    are all identity where nothing else is said.
    """
    kind = block if isinstance(block, type) else type(block)
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        unmarked = None if issubclass(kind, Block) else "identity"
        mark = extra.get("mark", unmarked)
        value = None if isinstance(block, type) else getattr(block, name)
        inner = value if isinstance(value, BaseModel) else block_type(field)
        if inner is not None and mark != "copied":
            yield from leaves(inner, f"{key}.")
            continue
        introduced = extra.get("introduced", NEVER)
        if callable(introduced) and not isinstance(block, type):
            introduced = introduced(block)
        yield Leaf(key, mark, introduced, field)


def block_type(field: FieldInfo) -> type[Block] | None:
    """The block a field holds (``Block`` or ``Block | None``), or None where it holds a value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Block):
            return kind
    return None


def value_at(config: BaseModel, key: str) -> Any:
    """The value of a dotted key, which may lead into a list or a map; None below what is not there."""
    value: Any = config
    for name in key.split("."):
        if isinstance(value, list | tuple):
            value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            value = getattr(value, name, None)
    return value


def is_set(config: BaseModel, key: str) -> bool:
    """Whether a dotted key was stated, even at its default."""
    owner, _, name = key.rpartition(".")
    block = value_at(config, owner) if owner else config
    return block is not None and name in block.model_fields_set
