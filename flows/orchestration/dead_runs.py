"""Flow runs whose process died without a word (``kill -9``, a power cut): Prefect would show them as running for ever.

Each flow run holds a lock on a file of its own for as long as it lives, and the kernel lets go of it when the process
dies. Who starts next finds the files that nobody holds, and tells Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from evo_core.storage.lock import is_held, sign_of_life

MESSAGE = "its process died"


@contextmanager
def living(home: Path, flow_run_id: str) -> Iterator[None]:
    """Mark a flow run as alive for the block, after reporting those that are not.

    Args:
        home: Prefect's folder in the store.
    """
    report_dead_runs(home)
    with sign_of_life(_folder(home) / flow_run_id):
        yield


def report_dead_runs(home: Path) -> list[str]:
    """Set flow runs of this store whose process is gone to Crashed; returns their ids."""
    dead = dead_runs(home)
    if dead:
        with get_client(sync_client=True) as client:
            for path in dead:
                _crash(client, UUID(path.name))
                path.unlink(missing_ok=True)
    return [path.name for path in dead]


def dead_runs(home: Path) -> list[Path]:
    """The files of flow runs whose process is gone, each named by the run's id."""
    return [path for path in sorted(_folder(home).glob("[0-9a-f]*")) if not is_held(path)]


def _crash(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    try:
        state = client.read_flow_run(flow_run_id).state
    except ObjectNotFound:
        return  # another server's
    if state is None or state.is_final():
        return
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))):
        if task_run.state is None or not task_run.state.is_final():
            client.set_task_run_state(task_run.id, Crashed(message=MESSAGE), force=True)
    client.set_flow_run_state(flow_run_id, Crashed(message=MESSAGE), force=True)


def _folder(home: Path) -> Path:
    return home / "alive"
