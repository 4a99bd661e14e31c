"""Addresses of web hooks: whoever has one can post, so each is a secret, however it was written."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evo_core.config.fields import value_at
from evo_core.config.secrets import Secrets

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

NOT_SHOWN = "(not shown)"
"""What stands for an address where a configuration is only shown."""

_REFERENCE = re.compile(r"(?<!\\)\$\{\s*oc\.env\s*:")
_NAME = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]+)")
_DEFAULT = re.compile(r"\$\{\s*oc\.env\s*:[^}]*,")

_BLOCK = "monitor.alert"
ADDRESSES = tuple(f"{_BLOCK}.{name}" for name in ("feishu_alert_address", "webhooks", "light_monitor_address"))


def may_hold_address(key: str) -> bool:
    """Whether a value that somebody wrote at a dotted key, right or wrong, may be an address or hold one."""
    return key in ("monitor", _BLOCK) or any(key == known or key.startswith(f"{known}.") for known in ADDRESSES)


def concealed(data: dict[str, Any]) -> dict[str, Any]:
    """Nested plain data of a configuration without the addresses in it; what is a reference stays one."""
    return {name: _concealed(value, name) for name, value in data.items()}


def _concealed(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _concealed(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_concealed(item, f"{key}.{number}") for number, item in enumerate(value)]
    return NOT_SHOWN if isinstance(value, str) and may_hold_address(key) and not is_reference(value) else value


def is_reference(text: str) -> bool:
    """Whether a text leaves its secret to the environment: it holds references there, and none with a default."""
    return bool(_REFERENCE.search(text)) and not _DEFAULT.search(text)


def fault(address: str) -> str | None:
    """What is wrong with an address, in words without it; None where a message can be posted to it."""
    if address == NOT_SHOWN:
        return "the address was left out of this file"
    if not address.isascii() or not address.isprintable() or " " in address:
        return "is no URL: it holds a space, or a character that is none of a URL's"
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - read to learn whether it is one
    except ValueError:
        return "is no URL: its host or port is none"
    if parts.scheme not in ("http", "https"):
        return "is no URL of http:// or https://"
    if not parts.hostname:
        return "is a URL without a host"
    return "is a URL with a user's name, which is not sent" if "@" in parts.netloc else None


def written_out(config: TrainConfig) -> list[str]:
    """The keys of addresses that a job writes out instead of a reference to the environment."""
    environment = config.environment
    return [key for key in _given(config) if not is_reference(environment.get(key, ""))]


def secrets_of(config: TrainConfig) -> Secrets:
    """What words about a job must not hold: its addresses, and what it has from the environment."""
    environment = config.environment
    texts = {str(value_at(config, key)): reference for key, reference in environment.items()}
    for reference in environment.values():
        texts |= {os.environ[name]: f"${{oc.env:{name}}}" for name in _NAME.findall(reference) if name in os.environ}
    for key, address in _given(config).items():
        parts, shown = urlsplit(address), environment.get(key, NOT_SHOWN)
        texts |= {address: shown, parts._replace(scheme="", netloc="").geturl(): shown}
    return Secrets(environment, {text: shown for text, shown in texts.items() if text != "/"})


def _given(config: TrainConfig) -> dict[str, str]:
    """The addresses of a job by their keys."""
    alert = config.monitor.alert.model_dump(include={key.rpartition(".")[2] for key in ADDRESSES})
    numbered = {f"webhooks.{number}": hook for number, hook in enumerate(alert.pop("webhooks"))}
    return {f"{_BLOCK}.{name}": address for name, address in (alert | numbered).items() if address}


def shown_override(text: str) -> str:
    """An override ``KEY=VALUE`` as it may be shown: without an address in it."""
    key, equals, value = text.partition("=")
    _, monitor, rest = f".{key.strip()}".partition(".monitor")
    hides = bool(monitor) and may_hold_address(f"monitor{rest}")
    names = any(address.rpartition(".")[2] in value for address in ADDRESSES)
    return f"{key}={NOT_SHOWN}" if equals and (hides or names) and not is_reference(value.strip()) else text
