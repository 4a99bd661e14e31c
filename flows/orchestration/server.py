"""A local Prefect server (and tensorboard): found, started, and gone when nobody needs it any more.

The server keeps its SQLite file in ``<root>/prefect``, beside what it shows. `evo run` starts one for as long as the
run takes and stops it; `evo ui` starts one that stays, and leaves its address in ``<root>/prefect/server.json`` so
that later runs on the same root report to it. Both listen on the loopback interface only and call nobody.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evo_core.errors import UserError
from evo_core.process import die_with_parent, stop_signals
from evo_core.storage.lock import locked
from flows.orchestration.address import answers, around_proxies, checked_api, is_loopback, serves
from flows.show.tensorboard import link_models
from tasks.launch.launcher import Stopped
from tasks.store import Store, open_store
from tasks.store.json_file import read_object, write_json
from tasks.store.trouble import store_must_take

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""A first start makes the database: 14 s on two free cores, more on busy ones. Later starts take 4 s."""
STOP_SECONDS = 10.0
PREFECT_PORT, TENSORBOARD_PORT = 4200, 6006
"""Where `evo ui` listens, if nobody else does."""

_MAY_SET_A_SERVER = re.compile(r"prefect_api_url|prefect_profiles_path|\bprofiles_path|[\[.]api[\].]", re.IGNORECASE)


@dataclass(frozen=True)
class Server:
    """A Prefect server that answers. `started` tells whether it was started for the caller and ends with it."""

    api: str
    started: bool

    @property
    def page(self) -> str:
        """The address for a browser."""
        return self.api.removesuffix("/api")


@contextmanager
def ensure_server(
    root: str | Path | None = None,
    meanwhile: Callable[[], object] = bool,
    stop: threading.Event | None = None,
) -> Iterator[Server]:
    """A server for runs on `root`: the one the user set (PREFECT_API_URL, in the environment or in a Prefect
    profile), else the one that `evo ui` keeps for this root, else a new one that ends with the block.

    Args:
        meanwhile: called while a new server starts (to import what the run needs).
        stop: ends the wait for a new server.

    Raises:
        Stopped: `stop` was set.
        UserError: what the user set is no address of a Prefect API that answers, or a new server does not start.
    """
    home = prefect_home(open_store(root))
    if (url := configured_api_url()) is not None:
        yield Server(checked_api(url), started=False)
    elif (url := recorded_api_url(home)) is not None:
        yield Server(url, started=False)
    else:
        with running_server(home, free_port(), meanwhile, stop) as url:
            yield Server(url, started=True)


def prefect_home(store: Store) -> Path:
    """The folder of Prefect's files for a store."""
    return store.root / "prefect"


def configured_api_url() -> str | None:
    """The server that the user set, by any of the ways Prefect knows.

    Importing Prefect takes more than a second, so it is asked only if one of the files it reads may say something.

    Raises:
        UserError: what Prefect reads is wrong.
    """
    if url := os.environ.get("PREFECT_API_URL", "").strip():
        return url
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    files = [profiles, *map(Path, (".env", "prefect.toml", "pyproject.toml"))]
    if not any(file.is_file() and _MAY_SET_A_SERVER.search(file.read_text(errors="replace")) for file in files):
        return None
    from prefect.settings import get_current_settings

    try:
        return get_current_settings().api.url
    except Exception as error:  # TOML's, pydantic's, Prefect's own
        why = " ".join(str(error).split())
        raise UserError(f"Prefect's own settings cannot be read: {why}", hint="prefect config validate") from error


def recorded_api_url(home: Path) -> str | None:
    """The server that an `evo ui` keeps for this root, if it is there.

    The record may be older than the last power cut, and its port another root's or another program's by now: what
    answers must say that its files are this root's.
    """
    api = (read_object(home / "server.json") or {}).get("api")
    return api if isinstance(api, str) and is_loopback(api) and serves(api, home) else None


@contextmanager
def running_server(
    home: Path, port: int, meanwhile: Callable[[], object] = bool, stop: threading.Event | None = None
) -> Iterator[str]:
    """A new server on `port` for as long as the block runs; gives its API's address."""
    api = f"http://{HOST}:{port}/api"
    with store_must_take(home):
        home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    stopped = Stopped("stopped while another server was starting")
    # two that make the same database at once break it: the second waits until the first has made it
    with locked(home / "starting.lock", give_up=bool if stop is None else stop.is_set, given_up=stopped, must=False):
        process = _spawn(command, home / "server.log", server_environment(home, api))
        try:
            meanwhile()
            _wait_until(lambda: serves(api, home), process, home / "server.log", "the Prefect server", stop)
        except BaseException:
            _end(process)
            raise
    try:
        yield api
    finally:
        _end(process)


def server_environment(home: Path, api: str) -> dict[str, str]:
    """What the server's process is told."""
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the second form of the page asks another host for settings
        "DO_NOT_TRACK": "1",
    }
    theirs = {k: v for k, v in os.environ.items() if k != "PREFECT_PROFILE"}
    return theirs | around_proxies() | own


def serve_ui(root: str | Path | None = None) -> None:
    """Keep a Prefect server and tensorboard on what a root recorded, until Ctrl-C, SIGTERM or a closed terminal.

    Raises:
        UserError: one is running for this root already, or a server does not start.
    """
    store = open_store(root)
    home, runs = prefect_home(store), store.root / "tensorboard"
    if (running := recorded_api_url(home)) is not None:
        page = running.removesuffix("/api")
        raise UserError(f"evo ui is already running for {store.root}: {page}", hint="end that one first")
    with store_must_take(home):
        home.mkdir(parents=True, exist_ok=True)
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    starting = UserError(f"evo ui is already starting for {store.root}", hint="end that one first")
    # a second one would share the database of the first, and take its record away at its own end
    with locked(home / "ui.lock", give_up=lambda: True, given_up=starting, must=False):
        _serve_ui(store, home, runs)


def _serve_ui(store: Store, home: Path, runs: Path) -> None:
    try:
        print(f"opening {store.root} ...", flush=True)
        with running_server(home, free_port(PREFECT_PORT)) as api, running_tensorboard(runs) as tensorboard:
            print(f"Prefect      {api.removesuffix('/api')}\nTensorBoard  {tensorboard}\nend with Ctrl-C", flush=True)
            write_json(home / "server.json", {"api": api, "pid": os.getpid()})
            os.environ.update(around_proxies(), PREFECT_API_URL=api)
            from flows.orchestration.dead_runs import report_dead_runs

            while True:
                report_dead_runs(home)
                link_models(store, runs)
                time.sleep(2.0)
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        (home / "server.json").unlink(missing_ok=True)


@contextmanager
def running_tensorboard(folder: Path) -> Iterator[str]:
    """TensorBoard on a folder of runs for as long as the block runs; gives its address."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://{HOST}:{(port := free_port(TENSORBOARD_PORT))}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", HOST, "--port", str(port)]
    log = folder / "tensorboard.log"
    process = _spawn(command, log, dict(os.environ))
    try:
        _wait_until(lambda: answers(url, 1.0), process, log, "tensorboard")
        yield url
    finally:
        _end(process)


def free_port(preferred: int = 0) -> int:
    """The preferred port if nobody listens there, else any free one.

    Raises:
        UserError: no port can be bound.
    """
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise UserError(f"no free port on {HOST}")


def _spawn(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that writes to `log`, ends when this one dies, and does not hear the terminal's Ctrl-C.

    It must outlive that Ctrl-C, so that the run can still report how it ended.
    """
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _wait_until(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes],
    log: Path,
    what: str,
    stop: threading.Event | None = None,
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if stop is not None and stop.is_set():
            raise Stopped(f"stopped while {what} was starting")
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            why = f"ended with status {process.poll()}" if process.poll() is not None else "gave no answer in time"
            database = "its database is the one of PREFECT_SERVER_DATABASE_CONNECTION_URL"
            hint = database if os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL") else None
            raise UserError(f"{what} did not start: it {why}\n{tail}", file=log, hint=hint)
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process gently, then surely."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
