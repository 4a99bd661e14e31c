"""Mistakes on the command line are told by the names of its flags: what finds them knows the names of settings."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from evo_core.errors import UserError


class DataCommand(TyperCommand):
    """A command whose errors name its flags: ``--split-ratio`` and not ``split_ratio``."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            key, hint = self._flag(error)
            raise type(error)(error.message, file=error.file, line=error.line, key=key, hint=hint) from error

    def _flag(self, error: UserError) -> tuple[str | None, str | None]:
        """Key and hint as this command spells them."""
        flag = f"--{(error.key or '').replace('_', '-')}"
        option = next((param for param in self.params if flag in param.opts), None)
        if option is None:
            return error.key, error.hint
        off = error.hint == f"set {error.key}: false" and option.secondary_opts
        return flag, f"give {option.secondary_opts[0]}" if off else error.hint
