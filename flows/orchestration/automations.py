"""Automations of a Prefect server from a file, as often as one likes: each is known by its name.

Prefect's own command makes another one at every call, and knows no web hook by its address.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evo_core.config.resolve import Document, read_document
from evo_core.errors import ConfigError, UserError
from flows.orchestration.address import checked_api

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

WEBHOOK = "evo-notify"
"""The name of the Webhook block that holds the file's address."""
CALL = "call-webhook"

Change = Literal["made", "replaced", "left out"]


class AutomationsFile(BaseModel):
    """A file of automations, in the form of Prefect's own files but for the web hook."""

    model_config = ConfigDict(extra="forbid")

    webhook: str | None = Field(None, description="the address that `call-webhook` actions without a block call")
    automations: list[dict[str, Any]] = Field(min_length=1)


def apply(file: Path, api: str) -> dict[str, Change]:
    """Give a server the automations of a file, in place of those it has under the same names.

    Args:
        api: address of the server's API.

    Returns:
        What was done with each, by name. One that calls a web hook is left out where the file names none.

    Raises:
        ConfigError: something in the file is wrong.
        UserError: the server is not there.
    """
    document = read_document(file)
    wanted = _read(document)
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    done: dict[str, Change] = {}
    with temporary_settings({PREFECT_API_URL: checked_api(api)}), get_client(sync_client=True) as client:
        block = _save_webhook(wanted.webhook) if wanted.webhook else None
        for number, raw in enumerate(wanted.automations):
            name = str(raw.get("name", number))
            if _calls(raw) and block is None:
                done[name] = "left out"
                continue
            done[name] = _put(client, _automation(document, number, raw, block))
    return done


def _read(document: Document) -> AutomationsFile:
    try:
        return AutomationsFile.model_validate(document.values())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        file, line = document.place(key)
        raise ConfigError(first["msg"], file=file, line=line, key=key) from None


def _calls(raw: dict[str, Any]) -> bool:
    """Whether an automation calls the file's web hook."""
    return any(
        isinstance(action, dict) and action.get("type") == CALL and "block_document_id" not in action
        for action in raw.get("actions") or []
    )


def _automation(document: Document, number: int, raw: dict[str, Any], block: UUID | None) -> AutomationCore:
    from prefect.events.schemas.automations import AutomationCore

    actions = [
        {**action, "block_document_id": str(block)} if _calls({"actions": [action]}) else action
        for action in raw.get("actions") or []
    ]
    try:
        return AutomationCore.model_validate({**raw, "actions": actions})
    except ValidationError as error:
        first = error.errors()[0]
        file, line = document.place(f"automations.{number}")
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}", file=file, line=line, key=f"automations.{number}") from None


def _save_webhook(address: str) -> UUID:
    from prefect.blocks.webhook import Webhook
    from pydantic import SecretStr

    block = Webhook(method="POST", url=SecretStr(address)).save(WEBHOOK, overwrite=True)
    assert isinstance(block, UUID)
    return block


def _put(client: SyncPrefectClient, automation: AutomationCore) -> Change:
    from prefect.exceptions import PrefectHTTPStatusError

    known = client.request(
        "POST", "/automations/filter", json={"automations": {"name": {"any_": [automation.name]}}}
    ).json()
    body = automation.model_dump(mode="json", exclude_unset=True)
    try:
        if known:
            client.request("PUT", "/automations/{id}", path_params={"id": known[0]["id"]}, json=body)
            return "replaced"
        client.request("POST", "/automations/", json=body)
    except PrefectHTTPStatusError as error:
        raise UserError(f"the server refuses {automation.name!r}: {error.response.text[:300]}") from None
    return "made"
