"""Modules whose children are read by their role and registered under their family's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class RoleModule(nn.Module):
    """``module.qkv`` reads, sets and deletes the child that the family calls ``wqkv``.

    So the forward pass is written once in the field's terms, and ``named_parameters``, ``state_dict``, the
    optimizer and every checkpoint hold the family's names. Replacing a child by its role replaces it under
    its name too.

    Args:
        names: role -> registered name; a name that is not a role stands for itself.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.__dict__["_registered_as"] = dict(names)

    def __getattr__(self, role: str) -> Any:
        return super().__getattr__(self.__dict__.get("_registered_as", {}).get(role, role))

    def __setattr__(self, role: str, value: Any) -> None:
        super().__setattr__(self.__dict__.get("_registered_as", {}).get(role, role), value)

    def __delattr__(self, role: str) -> None:
        super().__delattr__(self.__dict__.get("_registered_as", {}).get(role, role))
