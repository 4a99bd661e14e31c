"""The address of a web hook is in nothing that a run writes or prints, however the run ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evo_core.checkpoint import newest_complete
from evo_core.checkpoint.saved_config import saved_config
from tests.train.jobs import write_job
from tests.train.processes import Command

SECRETS = ("w0rd-0f-the-hook", "w0rd-0f-the-file", "w0rd-0f-the-beat")


class Receiver(BaseHTTPRequestHandler):
    """Notes the path of each message, and refuses those of one hook."""

    heard: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append(self.path)
        self.send_response(500 if SECRETS[1] in self.path else 200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of a receiver, and the paths that it has heard of."""
    handler = type("Handler", (Receiver,), {"heard": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.heard
        server.shutdown()
        thread.join()


def crash(step: int) -> None:
    """No mistake of the user's."""
    raise RuntimeError("boom")


@pytest.mark.parametrize(("end", "status"), [("finishes", 0), ("is refused", 2), ("crashes", 1)])
def test_it_is_written_nowhere(
    end: str, status: int, tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, heard = server
    monkeypatch.setenv("HOOK", f"{at}/{SECRETS[0]}")
    alert = {"webhooks": ["${oc.env:HOOK}", f"{at}/{SECRETS[1]}"], "light_monitor_address": f"{at}/{SECRETS[2]}"}
    given = tmp_path / "given"
    given.mkdir()
    changes = {"data__train_folder": "/nowhere"} if end == "is refused" else {}
    write_job(given, enable_tb=True, monitor={"alert": alert}, data__total_steps=3, **changes)
    made = tmp_path / "made"
    (made / "state").mkdir(parents=True)
    command = Command(
        [
            *("--config", str(given / "job.yaml"), "--folder", str(made / "run")),
            *("--set", f"ckpt.save_ckpt_folder=local:{made / 'ckpt'}"),
        ],
        made / "log",
        each_step=crash if end == "crashes" else None,
        environment={"EVO_JOB_FOLDER": str(made / "state")},
    )
    assert command.wait() == [status], (made / "log").read_text()
    assert {f"/{SECRETS[0]}", f"/{SECRETS[1]}"} <= set(heard)
    files = [path for path in made.rglob("*") if path.is_file()]
    found = [(path, secret) for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]
    assert found == []
    if end == "finishes":
        assert b"(not shown)" in b"".join(p.read_bytes() for p in files if p.name.startswith("events.out"))
        said = next(line for line in (made / "log").read_text().splitlines() if "an address is a secret" in line)
        assert "monitor.alert.webhooks.1" in said and "monitor.alert.light_monitor_address" in said
        monkeypatch.delenv("HOOK")
        newest = newest_complete(made / "ckpt")
        assert newest is not None
        assert saved_config(Path(newest)).monitor.alert.webhooks == ("${oc.env:HOOK}", "(not shown)")
    else:
        assert json.loads((made / "state" / "error.json").read_text())["user_error"] == (end == "is refused")
