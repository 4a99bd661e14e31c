"""Flow runs whose process died without a word (``kill -9``, a power cut): Prefect would show them as running for ever.

Each flow run holds a lock on a file of its own for as long as it lives, and the kernel lets go of it when the process
dies. Who starts next finds the files that nobody holds, and tells Prefect.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

MESSAGE = "its process died"


@contextmanager
def living(home: Path, flow_run_id: str) -> Iterator[None]:
    """Mark a flow run as alive for the block, after reporting those that are not.

    Args:
        home: Prefect's folder in the store.
    """
    report_dead_runs(home)
    folder = _folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / flow_run_id
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def report_dead_runs(home: Path) -> list[str]:
    """Set flow runs of this store whose process is gone to Crashed; returns their ids."""
    dead = [path for path in sorted(_folder(home).glob("*")) if not _held(path)]
    if dead:
        with get_client(sync_client=True) as client:
            for path in dead:
                _crash(client, UUID(path.name))
                path.unlink(missing_ok=True)
    return [path.name for path in dead]


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


def _held(path: Path) -> bool:
    """Whether a living process holds the lock of a flow run."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it ended just now, in good order
        return True
    return False


def _folder(home: Path) -> Path:
    return home / "alive"
