"""Finding, starting and ending Prefect servers; `evo ui`."""

from __future__ import annotations

import re
import signal
import sqlite3
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from evo_core.errors import UserError
from evo_core.storage.lock import locked
from flows.orchestration import server
from tasks.launch.launcher import Stopped
from tasks.store import open_store
from tests.flows.orchestration.conftest import Api, clean_environment, evo, processes_with, read_until, settled, start
from tests.flows.orchestration.small import Small


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_no_setting_is_found_without_importing_prefect() -> None:
    assert server.configured_api_url() is None


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://here/api")
    assert server.configured_api_url() == "http://here/api"


@pytest.mark.parametrize(
    ("file", "text", "asks"),
    [
        ("home/profiles.toml", '[profiles.x]\nPREFECT_API_URL = "http://there/api"\n', True),
        ("prefect.toml", '[api]\nurl = "http://there/api"\n', True),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://there/api"\n', True),
        (".env", "PREFECT_API_URL=http://there/api\n", True),
        ("prefect.toml", "[plugins]\nenabled = true\n", False),
        ("pyproject.toml", '[project]\nname = "x"\n', False),
    ],
)
def test_prefect_is_asked_when_a_file_of_its_may_name_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, asks: bool
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    asked = []
    monkeypatch.setattr("prefect.settings.get_current_settings", lambda: asked.append(1) or _Settings)
    server.configured_api_url()
    assert bool(asked) is asks


class _Settings:
    class api:
        url = None


def test_a_server_that_was_set_but_is_silent_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.free_port()}/api")
    with pytest.raises(UserError, match="no Prefect server answers") as caught, server.ensure_server(tmp_path):
        pass
    assert "--no-server" in str(caught.value.hint)


def test_a_record_of_a_dead_server_counts_for_nothing(tmp_path: Path) -> None:
    server.write_json(tmp_path / "server.json", {"api": f"http://127.0.0.1:{server.free_port()}/api", "pid": 1})
    assert server.recorded_api_url(tmp_path) is None


def test_a_taken_port_is_not_taken_again() -> None:
    import socket

    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert server.free_port(taken) != taken


def test_a_process_that_ends_at_once_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = server._spawn(["sh", "-c", "echo the port burns; exit 3"], log, {"PATH": "/bin:/usr/bin"})
    with pytest.raises(UserError, match=r"the thing did not start: it ended with status 3\nthe port burns"):
        server._wait_until(lambda: False, process, log, "the thing")


def test_waiting_for_another_server_to_start_hears_a_stop(tmp_path: Path) -> None:
    home, stop = server.prefect_home(open_store(tmp_path)), threading.Event()
    home.mkdir(parents=True)
    threading.Timer(0.5, stop.set).start()
    begun = time.monotonic()
    with (
        locked(home / "starting.lock"),
        pytest.raises(Stopped, match="another server was starting"),
        server.ensure_server(tmp_path, stop=stop),
    ):
        pass
    assert time.monotonic() - begun < 20
    assert not (home / "server.log").exists()


def test_a_second_ui_leaves_the_first_alone(tmp_path: Path) -> None:
    environment, home = clean_environment(tmp_path), tmp_path / "store" / "prefect"
    home.mkdir(parents=True)
    with locked(home / "starting.lock"):  # the first stays where its server would start
        first = start("evo", "ui", "--root", str(tmp_path / "store"), environment=environment)
        read_until(first, "opening")
        second = evo("ui", "--root", str(tmp_path / "store"), environment=environment)
        assert second.returncode == 2 and f"already starting for {tmp_path / 'store'}" in second.stderr
        assert first.poll() is None
        first.terminate()
        said, _ = first.communicate(timeout=60)
        assert first.returncode == 0 and "ended" in said
    assert not list(home.glob("server.*"))


@pytest.mark.ui
def test_a_server_that_was_set_is_used_and_left_alone(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api.url)
    with server.ensure_server(tmp_path) as found:
        assert (found.api, found.started, found.page) == (api.url, False, api.page)
    assert server.answers(api.url)


@pytest.mark.ui
@pytest.mark.faults
def test_a_killed_run_takes_its_server_with_it_and_the_next_one_reports_it_dead(
    small: Small, api: Api, prefect_home: Path, tmp_path: Path
) -> None:
    seeded(small, prefect_home)
    environment = clean_environment(tmp_path)
    words = ["run", str(small.file), "--root", str(small.root), "--set"]
    running = start("evo", *words, "vars.seconds=100", environment=environment)
    read_until(running, "model: tflops")
    port = re.search(r"127\.0\.0\.1:(\d+)", (small.root / "prefect" / "server.log").read_text())
    assert port is not None
    own = f"http://127.0.0.1:{port[1]}/api"
    dead = Api(own).flow_runs(small.root)[0]["name"]
    running.kill()
    running.communicate()
    assert not settled(lambda: server.answers(own, 0.5), lambda alive: not alive, 10)
    assert recorded_states(small)[dead] == ("Running", {"model": "Running"})

    done = evo(*words, "vars.seconds=0", environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting a Prefect server for this run" in done.stdout
    assert re.search(r"page of this run: http://127\.0\.0\.1:\d+/runs/flow-run/[0-9a-f-]{36}", done.stdout)
    states = recorded_states(small)
    assert states.pop(dead) == ("Crashed", {"model": "Crashed"})
    assert list(states.values()) == [("Completed", {"model": "Completed"})]
    assert not processes_with(str(tmp_path))
    assert not list((small.root / "prefect" / "alive").iterdir())
    assert not (tmp_path / "client" / "prefect.db").exists()


@pytest.mark.ui
def test_evo_ui_shows_the_store_serves_later_runs_and_leaves_no_process(
    small: Small, api: Api, prefect_home: Path, tmp_path: Path
) -> None:
    seeded(small, prefect_home)
    environment = clean_environment(tmp_path)
    ui = start("evo", "ui", "--root", str(small.root), environment=environment)
    said = read_until(ui, "end with Ctrl-C")
    pages = dict(re.findall(r"^(\w+) +(http://127\.0\.0\.1:\d+)$", said, re.MULTILINE))
    assert set(pages) == {"Prefect", "TensorBoard"}

    begun = time.monotonic()
    done = evo("run", str(small.file), "--root", str(small.root), environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begun < 60
    assert len(Api(f"{pages['Prefect']}/api").flow_runs(small.root)) == 1
    model = f"model-{small.plan().step('model').key[:12]}"

    def runs() -> str:
        with urllib.request.urlopen(f"{pages['TensorBoard']}/data/logdir", timeout=10) as answer:
            return answer.read().decode() if (small.root / "tensorboard" / model).exists() else ""

    assert str(small.root / "tensorboard") in settled(runs, bool, 15)

    second = evo("ui", "--root", str(small.root), environment=environment)
    assert second.returncode == 2 and f"already running for {small.root}" in second.stderr

    ui.send_signal(signal.SIGINT)
    out, _ = ui.communicate(timeout=30)
    assert ui.returncode == 0, out
    assert not any(server.answers(page, 0.5) for page in pages.values())
    assert not (small.root / "prefect" / "server.json").exists()
    assert not processes_with(str(tmp_path))


def seeded(small: Small, prefect_home: Path) -> None:
    """Give a store the database of the tests' server: making one takes ten seconds and is tested by that server."""
    home = small.root / "prefect"
    home.mkdir(parents=True)
    with (
        closing(sqlite3.connect(prefect_home / "prefect.db")) as source,
        closing(sqlite3.connect(home / "prefect.db")) as copy,
    ):
        source.backup(copy)


def recorded_states(small: Small) -> dict[str, tuple[str, dict[str, str]]]:
    """From a store's database, without a server: name of a flow run to its state and that of its model."""
    tasks = "SELECT substr(name, 1, 5), state_name FROM task_run WHERE flow_run_id = ? AND name LIKE 'model %'"
    with closing(sqlite3.connect(small.root / "prefect" / "prefect.db")) as database:
        runs = database.execute("SELECT id, name, state_name FROM flow_run WHERE labels LIKE ?", (f"%{small.root}%",))
        return {name: (state, dict(database.execute(tasks, (id_,)))) for id_, name, state in runs.fetchall()}
