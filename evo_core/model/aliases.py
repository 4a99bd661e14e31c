"""Modules whose children are read by one name and registered under another, their family's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class AliasedModule(nn.Module):
    """``module.qkv`` reads, sets and deletes the child that the family calls ``wqkv``.

    So the forward pass is written once in the field's terms, and ``named_parameters``, ``state_dict``, the
    optimizer and every checkpoint hold the family's names. Replacing a child by its alias replaces it under
    its registered name too.

    Args:
        names: alias -> registered name; a name that is no alias stands for itself.

    Raises:
        AttributeError: on reading or deleting a child that there is not.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        # Not by `self.x = ...`, which is what is redefined below.
        self.__dict__["_registered_as"] = dict(names)

    @property
    def aliases(self) -> dict[str, str]:
        """Registered name -> alias."""
        return {registered: alias for alias, registered in self.__dict__["_registered_as"].items()}

    # nn.Module keeps children in a dictionary of their own, so Python comes here for every one of them; a copy or an
    # unpickled module is asked for attributes before it has any.
    def __getattr__(self, alias: str) -> Any:
        return super().__getattr__(self.__dict__.get("_registered_as", {}).get(alias, alias))

    def __setattr__(self, alias: str, value: Any) -> None:
        super().__setattr__(self.__dict__.get("_registered_as", {}).get(alias, alias), value)

    def __delattr__(self, alias: str) -> None:
        super().__delattr__(self.__dict__.get("_registered_as", {}).get(alias, alias))
