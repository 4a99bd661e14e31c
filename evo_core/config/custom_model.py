"""The ``model`` block of a model type that a user registered: checked against the keys it was registered with."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from evo_core.config.errors import raise_all
from evo_core.config.families import SHIPPED
from evo_core.config.fields import copied, identity
from evo_core.config.messages import errors_of
from evo_core.errors import ConfigError


def is_model_type(name: str) -> str:
    """The name, if there is such a model type.

    Raises:
        ValueError: there is none; the nearest is suggested.
    """
    if name not in SHIPPED:
        from evo_core.model.registry import model_type

        try:
            model_type(name)
        except ConfigError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise ValueError(f"{error.message}{hint}") from None
    return name


def own_model(name: str, data: Any) -> Any:
    """The block of a registered model type; every key of it is part of the identity.

    Raises:
        ConfigError: a key is unknown or has a wrong value.
    """
    from evo_core.model.registry import model_type

    config_model = model_type(name).config_model
    if config_model is None:
        raise ConfigError(f"{name} was registered without a pydantic model of its keys", key="model")
    if isinstance(data, config_model):
        return data
    kind = _strict(config_model)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = errors_of(error, kind, {})
    raise_all(ConfigError(e.message, key=f"model.{e.key}" if e.key else "model", hint=e.hint) for e in found)
    raise AssertionError("pydantic found an error that is none")


@cache
def _strict(config_model: type[BaseModel]) -> type[BaseModel]:
    """The user's model with unknown keys forbidden, and with what every builder is given."""
    given: dict[str, Any] = {
        "model_type": (str, copied("", "The top-level model_type.")),
        "use_fp32_norm": (bool, copied(False, "The top-level use_fp32_norm.")),
        "dtype": (str, identity("torch.bfloat16", "Type of weights and activations.")),
    }
    missing = {name: field for name, field in given.items() if name not in config_model.model_fields}
    config = ConfigDict(extra="forbid", protected_namespaces=())
    base = type(config_model.__name__, (config_model,), {"model_config": config, "__module__": __name__})
    return create_model(config_model.__name__, __base__=base, **missing)
