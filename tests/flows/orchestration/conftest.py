"""One Prefect server for all tests, and short names for what is asked of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evo_core.process import descendants
from flows.orchestration.local_run import run_with_prefect
from flows.orchestration.server import free_port, running_server
from flows.pipeline.failures import StepFailed
from flows.show.observers import Observers
from tests.flows.orchestration.small import Small

REPOSITORY = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


class Api:
    """A Prefect server's HTTP interface."""

    def __init__(self, url: str) -> None:
        self.url, self.page = url, url.removesuffix("/api")

    def get(self, path: str) -> Any:
        return self._send(urllib.request.Request(f"{self.url}/{path}"))

    def ask(self, path: str, **body: Any) -> Any:
        data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
        return self._send(urllib.request.Request(f"{self.url}/{path}", data, kind, method="POST"))

    def delete(self, path: str) -> None:
        self._send(urllib.request.Request(f"{self.url}/{path}", method="DELETE"))

    def _send(self, request: urllib.request.Request) -> Any:
        """The answer; a server that says it is busy is asked again, as Prefect's own client does."""
        for seconds in (0.2, 0.5, 1.0, 2.0):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            time.sleep(seconds)
        raise AssertionError(f"{request.full_url}: still busy")

    def flow_runs(self, root: Path) -> list[dict[str, Any]]:
        """Runs on a store, the newest first."""
        found = self.ask("flow_runs/filter", sort="START_TIME_DESC")
        return [run for run in found if run["labels"].get("evo.root") == str(root)]

    def tasks(self, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Step name to task run."""
        found = self.ask("task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
        return {task["name"].partition(" ")[0]: task for task in found}

    def artifacts(self, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Key to artifact page."""
        wanted = {"flow_run_id": {"any_": [flow_run["id"]]}}
        return {page["key"]: page for page in self.ask("artifacts/filter", artifacts=wanted)}

    def log(self, flow_run: dict[str, Any]) -> str:
        lines = self.ask("logs/filter", logs={"flow_run_id": {"any_": [flow_run["id"]]}})
        return "\n".join(line["message"] for line in lines)


def settled(read: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 30.0) -> Any:
    """What `read` gives once it is `good`: a server learns of a task's last state a moment later."""
    deadline = time.monotonic() + seconds
    while not good(value := read()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return value


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def api(prefect_home: Path) -> Iterator[Api]:
    with running_server(prefect_home, free_port()) as url:
        yield Api(url)


@pytest.fixture(scope="session")
def environment(api: Api, prefect_home: Path) -> dict[str, str]:
    """For processes that shall talk to the tests' server."""
    return clean_environment(prefect_home) | {"PREFECT_API_URL": api.url}


def clean_environment(home: Path) -> dict[str, str]:
    """This process's environment without what a developer may have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "EVO_"))}
    return kept | {
        "PREFECT_HOME": str(home / "client"),
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "200",
        "DO_NOT_TRACK": "1",
    }


def evo(*words: str, environment: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `evo` to its end."""
    return subprocess.run(
        [str(BIN / "evo"), *words], env=environment, capture_output=True, text=True, timeout=120, **options
    )


def start(*words: str, environment: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    """Start a command of the environment's; it hears SIGINT whatever shell the tests run under."""
    return subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Output of a process up to the line with `word`; fails with that output when there is none."""
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if word in line:
            return "".join(seen)
    raise AssertionError(f"ended with {process.wait()} before it said {word!r}:\n{''.join(seen)}")


def processes_with(word: str) -> list[int]:
    """Living processes with `word` in their command line."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in line.read_bytes() and int(line.parent.name) != os.getpid():
                found.append(int(line.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


@pytest.fixture(scope="session")
def run_here(api: Api, prefect_home: Path) -> Callable[..., dict[str, Any]]:
    """Runs the small pipeline as a flow in this process, which spares an import of Prefect for each; gives its run."""

    def run(small: Small, *overrides: str) -> dict[str, Any]:
        request = small.request(*overrides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", api.url)
            patch.setenv("PREFECT_HOME", str(prefect_home / "client"))
            try:
                run_with_prefect(request, small.plan(*overrides), Observers(), threading.Event())
            except StepFailed as failed:
                return {**api.flow_runs(small.root)[0], "raised": failed}
        return api.flow_runs(small.root)[0]

    return run


@dataclass
class Finished:
    """A pipeline that was run, its flow run, and that run's tasks and pages."""

    small: Small
    run: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    pages: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, api: Api, run_here: Callable[..., dict[str, Any]]) -> Finished:
    """A flow run that made everything, with a progress page for its model."""
    small = Small(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.show.prefect_view.LONG", 0.3)
        patch.setattr("flows.show.prefect_view.EVERY", 0.3)
        run = run_here(small, "vars.seconds=1.5")
    return Finished(small, run, settled(lambda: api.tasks(run), all_over), api.artifacts(run))


def all_over(tasks: dict[str, dict[str, Any]]) -> bool:
    return all(is_over(task) for task in tasks.values())


def is_over(run: dict[str, Any]) -> bool:
    return run["state_type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


def prefect(*words: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "prefect"), *words], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a checkout that Prefect reads. Deploying writes beside prefect.yaml, so not in the real one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("prefect.yaml", "prefect.toml"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("flows", "tasks", "evo_core", "configs", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.fixture(scope="session")
def deployments(api: Api, environment: dict[str, str], checkout: Path) -> dict[str, dict[str, Any]]:
    """All deployments, applied: FLOW/NAME to deployment."""
    api.ask("work_pools/", name="evo", type="process")
    done = prefect("--no-prompt", "deploy", "--all", environment=environment, cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    flows = {flow["id"]: flow["name"] for flow in api.ask("flows/filter")}
    found = api.ask("deployments/filter")
    return {f"{flows[deployment['flow_id']]}/{deployment['name']}": deployment for deployment in found}


@contextmanager
def running_worker(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """A worker of the pool `evo` for the block that looks for work more often than others do."""
    often = environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    running = start("prefect", "worker", "start", "--pool", "evo", environment=often, cwd=folder)
    try:
        yield
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)


def kill_with_its_runs(worker: subprocess.Popen[str]) -> None:
    """`kill -9` of a worker and of the flows that it runs: as if their machine were gone."""
    runs = [pid for pid in descendants(worker.pid) if pid in processes_with("prefect.engine")]
    worker.kill()
    worker.wait()
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run, signal.SIGKILL)


@pytest.fixture(scope="module")
def worker(deployments: object, environment: dict[str, str], checkout: Path) -> Iterator[None]:
    with running_worker(environment, checkout):
        yield


def submit(api: Api, deployments: dict[str, dict[str, Any]], small: Small, *overrides: str) -> str:
    """Ask for a run of the small pipeline by the demo's deployment; gives the id of the flow run."""
    request = small.request(*overrides).model_dump()
    demo = deployments["pretrain/demo"]["id"]
    return str(api.ask(f"deployments/{demo}/create_flow_run", parameters={"request": request})["id"])
