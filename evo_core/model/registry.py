"""Model types by name: the shipped families and a user's own (no torch here).

A type of one's own is registered before the configuration is read, either in the `.py` configuration itself
or by a package that declares the entry point group ``evo_core.model_types``, whose values are imported when
a name is not known:

    from pydantic import BaseModel
    from evo_core.model import register_model_type

    class MambaConfig(BaseModel):          # the keys its `model` block may hold, with their defaults
        hidden_size: int
        vocab_size: int

    def build_mamba(model_cfg, *, device, dtype):
        ...                                # an nn.Module with Decoder.forward's arguments and result

    register_model_type("MAMBA", build_mamba, MambaConfig)

The module takes ``(input_ids, positions, cu_seqlens, labels, max_seqlen, label_smoothing)`` and returns a
`ModelOutput`; its method ``init_weights(seed)`` draws its first weights. Generation and checkpoints of other
systems need more than that and work with the shipped families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

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


_TYPES = {name: ModelType(name, _SHIPPED_BUILDER) for name in ("INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2")}


def register_model_type(
    name: str, builder: Callable[..., Any] | str, config_model: type[BaseModel], *, replace: bool = False
) -> None:
    """Make ``model_type: <name>`` build a model of one's own.

    Args:
        name: as written in a configuration.
        builder: ``(model_cfg, *, device, dtype) -> nn.Module``, or "package.module:function".
        config_model: a pydantic model of its `model` keys; an unknown key is refused by it.
        replace: allow a name that is taken.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _TYPES and not replace:
        raise ConfigError(f"model type {name!r} is already registered", key="model_type", hint="pass replace=True")
    _TYPES[name] = ModelType(name, builder, config_model)


def known_model_types() -> tuple[str, ...]:
    """Names registered so far, those of installed packages included."""
    return tuple(sorted({*_TYPES, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))}))


def model_type(name: str) -> ModelType:
    """The type of that name.

    Raises:
        ConfigError: no such type; the nearest name is suggested.
    """
    if name not in _TYPES:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            point.load()  # importing it registers the type
    if name not in _TYPES:
        from evo_core.config.suggest import suggest

        known = known_model_types()
        raise ConfigError(
            f"unknown model type {name!r}{suggest(name, known)}",
            key="model_type",
            hint=f"known: {', '.join(known)}",
        )
    return _TYPES[name]
