"""Model types by name: the shipped families and a user's own (no torch here).

A type of one's own is a class: its ``Config`` is a pydantic model of the keys that its `model` block may hold, and it
is made as ``MyModel(model_cfg, device=..., dtype=...)``. A configuration names it by import path::

    model_type: my_package.my_module:MyModel

A package may give it a short name by an entry point in the group ``evo_core.model_types`` (``MINE =
"my_package.my_module:MyModel"``), and code by `register_model_type`. docs/models.md has a whole example, and what the
class must be able to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from evo_core.config.families import SHIPPED
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

ENTRY_POINT_GROUP = "evo_core.model_types"
_SHIPPED_BUILDER = "evo_core.model.build:build_decoder"


@dataclass(frozen=True)
class ModelType:
    """A name, what builds it and what its `model` block may hold.

    ``builder(model_cfg, *, device, dtype) -> nn.Module``, or "package.module:function" to import when used.
    ``config_model`` None stands for the schema of the shipped families.
    """

    name: str
    builder: Callable[..., Any] | str
    config_model: type[BaseModel] | None = None

    def load_builder(self) -> Callable[..., Any]:
        """The builder itself."""
        if not isinstance(self.builder, str):
            return self.builder
        module, _, function = self.builder.partition(":")
        return getattr(import_module(module), function)


_TYPES = {name: ModelType(name, _SHIPPED_BUILDER) for name in SHIPPED}


def register_model_type(
    name: str,
    builder: Callable[..., Any] | str,
    config_model: type[BaseModel] | None = None,
    *,
    replace: bool = False,
) -> None:
    """Make ``model_type: <name>`` build a model of one's own.

    Args:
        name: as written in a configuration.
        builder: ``(model_cfg, *, device, dtype) -> nn.Module``, a class or a function, or the import path
            "package.module:name" of one.
        config_model: a pydantic model of its `model` keys; an unknown key is refused by it. None takes the
            builder's ``Config``.
        replace: allow a name that is taken.

    Raises:
        ConfigError: the name is taken, or there is no such pydantic model.
    """
    if name in _TYPES and not replace:
        raise ConfigError(f"model type {name!r} is already registered", key="model_type", hint="pass replace=True")
    if config_model is None:
        if isinstance(builder, str):
            builder = _imported(builder)
        config_model = getattr(builder, "Config", None)
    _TYPES[name] = ModelType(name, builder, _checked(name, config_model))


def known_model_types() -> tuple[str, ...]:
    """Names registered so far, those of installed packages included."""
    return tuple(sorted({*_TYPES, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))}))


def model_type(name: str) -> ModelType:
    """The type of that name, or at that import path.

    Raises:
        ConfigError: no such type, where the nearest name is suggested; or it cannot be imported, or is no model type.
    """
    if name not in _TYPES and ":" in name:
        register_model_type(name, name)
    if name not in _TYPES:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            loaded = point.load()
            if name not in _TYPES:  # the module may have registered it while it was imported
                register_model_type(name, loaded)
    if name not in _TYPES:
        from evo_core.config.suggest import suggest

        known = known_model_types()
        raise ConfigError(
            f"unknown model type {name!r}{suggest(name, known)}",
            key="model_type",
            hint=f"known: {', '.join(known)}; one of your own: package.module:Class",
        )
    return _TYPES[name]


def _imported(path: str) -> Any:
    """What is at "package.module:name"."""
    name, _, attribute = path.partition(":")
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        hint = "install the package, or name its folder in PYTHONPATH"
        raise ConfigError(f"{path}: {error}", key="model_type", hint=hint) from error
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ConfigError(f"{path}: importing it fails: {error!r}", key="model_type") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{path}: the module {name} has no {attribute!r}", key="model_type")
    return getattr(module, attribute)


def _checked(name: str, config_model: Any) -> type[BaseModel]:
    from pydantic import BaseModel

    if not (isinstance(config_model, type) and issubclass(config_model, BaseModel)):
        hint = "give the class a pydantic model `Config`"
        raise ConfigError(f"{name} does not say which keys its model block may hold", key="model_type", hint=hint)
    if "vocab_size" not in config_model.model_fields:
        message = f"{name}: its keys lack vocab_size, which data and tokenizer are checked against"
        raise ConfigError(message, key="model_type", hint="declare `vocab_size: int`")
    return config_model
