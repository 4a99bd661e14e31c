"""What answers where a Prefect server should be, asked through and around proxies."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evo_core.errors import UserError
from flows.orchestration import address, server
from tests.flows.orchestration.conftest import Api, clean_environment, evo
from tests.flows.orchestration.small import Small
from tests.flows.orchestration.test_server import seeded

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """A socket that says `answer` to whoever connects, and nothing more; None: not even that. Gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def serve() -> None:
            held = []
            while not over.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    break
                held.append(connection)
                if answer is not None:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)


@contextmanager
def website(pages: dict[str, object]) -> Iterator[str]:
    """An HTTP server with some pages of JSON (or text, where a page is a str); 404 for the rest."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path, pages.get("*"))
            content = page.encode() if isinstance(page, str) else json.dumps(page).encode()
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


STRANGERS = {
    "nothing but 404": {},
    "a page for everything": {"*": "<html>welcome</html>"},
    "another API": {"*": {"status": "ok"}},
    "a list": {"*": [1, 2]},
    "brackets without end": {"*": "[" * 100_000},
}


@pytest.mark.parametrize("pages", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_no_prefect_server(pages: dict[str, object], tmp_path: Path) -> None:
    with website(pages) as url:
        with pytest.raises(UserError, match=r"what answers at .* is no Prefect API") as refused:
            address.checked_api(f"{url}/api")
        assert "--no-server" in str(refused.value)
        server.write_json(tmp_path / "server.json", {"api": f"{url}/api", "pid": os.getpid()})
        assert server.recorded_api_url(tmp_path) is None


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 abc\r\n\r\n", b"\xff\x00\n"])
def test_what_speaks_no_http_is_no_server(said: bytes) -> None:
    with listener(said) as url, pytest.raises(UserError, match="no Prefect server answers at"):
        address.checked_api(f"{url}/api")


def test_a_host_that_no_name_can_be_is_not_reached() -> None:
    with pytest.raises(UserError, match="no Prefect server answers at"):
        address.checked_api("http://here..com/api")


def test_what_never_answers_is_given_up() -> None:
    with listener(None) as url:
        assert not address.is_prefect(f"{url}/api", seconds=0.2)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:4200/api", "localhost", "ftp://here/api", "http://", "http://here:99999/api", "http://[::1/api",
     "http://here:port/api", "http:///api", "/api"],
)  # fmt: skip
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(UserError, match=r"PREFECT_API_URL: .* is no address of a Prefect API"):
        address.checked_api(url)


@pytest.mark.ui
def test_a_servers_address_without_api_is_completed_in_the_message(api: Api) -> None:
    with pytest.raises(UserError) as refused:
        address.checked_api(api.page)
    assert f"set it to {api.url}" in str(refused.value)
    assert address.checked_api(f" {api.url}/ ") == api.url


@pytest.mark.ui
def test_a_server_says_whose_it_is(api: Api, prefect_home: Path, tmp_path: Path) -> None:
    assert address.serves(api.url, prefect_home)
    assert not address.serves(api.url, tmp_path)
    server.write_json(tmp_path / "server.json", {"api": api.url, "pid": os.getpid()})
    assert server.recorded_api_url(tmp_path) is None  # another root's, which has the port by now
    (tmp_path / "again").symlink_to(prefect_home)
    assert address.serves(api.url, tmp_path / "again")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"api": 4200}', '{"pid": 1}', '{"api": "nowhere"}', "\udcff"]
)
def test_a_damaged_record_counts_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_bytes(content.encode(errors="surrogateescape"))
    assert server.recorded_api_url(tmp_path) is None


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("", "127.0.0.1,localhost,::1,0.0.0.0"),
        ("example.com, .lan", "example.com,.lan,127.0.0.1,localhost,::1,0.0.0.0"),
        ("localhost", "localhost,127.0.0.1,::1,0.0.0.0"),
        ("*", "*"),
    ],
)
def test_loopback_joins_what_goes_around_a_proxy(monkeypatch: pytest.MonkeyPatch, stated: str, expected: str) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", stated)
    assert address.around_proxies() == {"no_proxy": expected, "NO_PROXY": expected}


@pytest.mark.ui
@pytest.mark.parametrize(
    "proxy", ["refuses, socks", *(pytest.param(each, marks=pytest.mark.slow) for each in ("refuses", "socks"))]
)
def test_a_run_talks_to_a_server_on_this_machine_around_a_proxy(
    small: Small, environment: dict[str, str], proxy: str
) -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with listener(refusal) as url:
        proxies = dict.fromkeys(PROXIES, url)
        if proxy != "refuses":
            of_all = PROXIES if proxy == "socks" else [name for name in PROXIES if name.lower() == "all_proxy"]
            proxies |= dict.fromkeys(of_all, f"socks5://127.0.0.1:{server.free_port()}")
        done = evo("run", str(small.file), "--root", str(small.root), environment=environment | proxies)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.ui
def test_a_server_of_its_own_is_started_and_used_around_a_proxy(
    small: Small, api: Api, prefect_home: Path, tmp_path: Path
) -> None:
    seeded(small, prefect_home)
    proxies = dict.fromkeys(PROXIES, f"http://127.0.0.1:{server.free_port()}")
    done = evo("run", str(small.file), "--root", str(small.root), environment=clean_environment(tmp_path) | proxies)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "page of this run" in done.stdout
