"""A Prefect plugin: `prefect deployment run pretrain-7b` without the flow's name before it.

Prefect names a deployment FLOW/DEPLOYMENT. This completes a bare name when only one deployment has it. Prefect loads
it in folders whose prefect.toml allows it, as this checkout's does.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.plugins import HookContext, register_hook


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Called by Prefect when it starts."""
    prefects_own = PrefectClient.read_deployment_by_name
    if getattr(prefects_own, "completes_bare_names", False):
        return

    @functools.wraps(prefects_own)
    async def read_deployment_by_name(self: PrefectClient, name: str) -> DeploymentResponse:
        try:
            return await prefects_own(self, await full_name(self, name))
        except AmbiguousName as error:
            if Path(sys.argv[0]).name == "prefect":
                sys.exit(f"prefect: {error}")  # the command would print a traceback
            raise

    read_deployment_by_name.completes_bare_names = True  # type: ignore[attr-defined]
    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[assignment,method-assign]


class AmbiguousName(ValueError):
    """Several deployments have the name."""


async def full_name(client: PrefectClient, name: str) -> str:
    """FLOW/DEPLOYMENT for a bare name that only one deployment has; anything else unchanged, for Prefect to judge.

    Raises:
        AmbiguousName: the message lists those that have it.
    """
    if "/" in name:
        return name
    wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    found = await client.read_deployments(deployment_filter=wanted)
    if not found:
        return name
    flows = await _flow_names(client, {deployment.flow_id for deployment in found})
    names = sorted(f"{flows[deployment.flow_id]}/{deployment.name}" for deployment in found)
    if len(names) > 1:
        raise AmbiguousName(f"{len(names)} deployments are named {name!r}; say which: {', '.join(names)}")
    return names[0]


async def _flow_names(client: PrefectClient, ids: set[UUID]) -> dict[UUID, Any]:
    flows = await client.read_flows(flow_filter=FlowFilter(id=FlowFilterId(any_=list(ids))))
    return {flow.id: flow.name for flow in flows}
