"""The `notify:` block of a pipeline file."""

from __future__ import annotations

import shutil
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Outcome = Literal["failed", "completed"]


class Notify(BaseModel):
    """Whom to tell of a run's end, and of which ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook: str | None = Field(
        None, description="an address that gets the sentence and the facts as JSON; ${oc.env:NAME} keeps it a secret"
    )
    command: list[str] | str | None = Field(
        None, description="a command (a list, or a line for the shell) that gets the facts as JSON on its input"
    )
    on: list[Outcome] = Field(["failed"], min_length=1, description="the ends that are told: failed, completed")

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no address of a web hook: https://HOST/PATH")
        return value

    @field_validator("command")
    @classmethod
    def _is_there(cls, value: list[str] | str | None) -> list[str] | str | None:
        words = [value] if isinstance(value, str) else value
        if words is not None and not "".join(words).strip():
            raise ValueError("is empty")
        if isinstance(value, list) and shutil.which(value[0]) is None:
            raise ValueError(f"there is no command {value[0]!r} here")
        return value

    @model_validator(mode="after")
    def _tells_somebody(self) -> Self:
        if self.webhook is None and self.command is None:
            raise ValueError("names nobody to tell: give it a webhook or a command")
        return self
