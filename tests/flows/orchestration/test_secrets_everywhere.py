"""A run with a secret in each place that takes one, on Slurm and with a server: the value is found in none of what
it leaves, and in no command line while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.endtoend.conftest import HERE
from tests.flows.orchestration.conftest import REPOSITORY, Api, start
from tests.slurm_cluster import SlurmCluster, slurm

__all__ = ["slurm"]
pytestmark = [pytest.mark.ui, pytest.mark.slurm, pytest.mark.slow]

PLACES = ("VAR", "PARAM", "RUNTIME", "CLUSTER", "JOB_NAME", "FEISHU", "WEBHOOK", "HEARTBEAT", "FAILING", "NOTIFY")
"""A place that takes a secret is a name here and a `${oc.env:SECRET_name}` in one of the files below."""

SOUGHT = (*PLACES, "AWS_ID", "AWS_KEY")

CLUSTER = """\
kind: slurm
poll_seconds: 0.5
environment:
  GLOO_SOCKET_IFNAME: lo
  PYTHONPATH: REPOSITORY
  SERVICE_TOKEN: ${oc.env:SECRET_CLUSTER}
"""
PIPELINE = """\
pipeline: secretive
base: TINY
vars: {token: "${oc.env:SECRET_VAR}"}
notify: {webhook: "http://127.0.0.1:9/${oc.env:SECRET_NOTIFY}", command: "exit 7", on: [failed, completed]}
steps:
  called:
    uses: tests.flows.pipeline.kinds:Call
    params: {token: "${oc.env:SECRET_PARAM}"}
    runtime: {token: "${vars.token} and ${oc.env:SECRET_RUNTIME}"}
  model:
    params:
      config: TRAIN
      job_name: tiny-${oc.env:SECRET_JOB_NAME}
      monitor:
        alert:
          enable_feishu_alert: true
          feishu_alert_address: http://127.0.0.1:9/${oc.env:SECRET_FEISHU}
          webhooks: ["http://127.0.0.1:9/${oc.env:SECRET_WEBHOOK}"]
          light_monitor_address: http://127.0.0.1:9/${oc.env:SECRET_HEARTBEAT}
    runtime: {cluster: CLUSTER}
  failing:
    uses: tests.flows.pipeline.kinds:Call
    params: {what: nothing}
    runtime: {token: "${oc.env:SECRET_FAILING}", fail: true}
"""


def value(place: str) -> str:
    return f"hunter2-{place.lower()}-x7q"


def test_a_secret_is_in_nothing_that_a_run_leaves(
    slurm: SlurmCluster, api: Api, prefect_home: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    cluster, pipeline, root = tmp_path / "cluster.yaml", tmp_path / "secretive.yaml", tmp_path / "store"
    cluster.write_text(CLUSTER.replace("REPOSITORY", str(REPOSITORY)))
    text = PIPELINE.replace("TINY", str(HERE / "tiny.yaml")).replace("TRAIN", str(HERE / "tiny_train.yaml"))
    pipeline.write_text(text.replace("cluster: CLUSTER", f"cluster: {cluster}"))
    secrets = {f"SECRET_{place}": value(place) for place in PLACES}
    keys = {"AWS_ACCESS_KEY_ID": value("AWS_ID"), "AWS_SECRET_ACCESS_KEY": value("AWS_KEY")}  # in the environment alone
    written = cluster.read_text() + pipeline.read_text()
    assert all(f"${{oc.env:{name}}}" in written for name in secrets)
    clients = environment | secrets | keys | {"SLURM_CONF": str(slurm.conf), "OMP_NUM_THREADS": "1"}
    words = ["evo", "run", str(pipeline), "--root", str(root)]
    with command_lines() as seen:
        run = start(*words, "--targets=model", "--targets=called", environment=clients)
        printed, _ = run.communicate(timeout=280)
        assert run.returncode == 0, printed
        failing = start(*words, "--targets=failing", environment=clients)
        complaint, _ = failing.communicate(timeout=60)
    assert failing.returncode == 1, complaint
    assert "no answer to '${oc.env:SECRET_FAILING}'" in complaint
    printed += complaint
    assert list(root.glob("artifacts/train.pretrain-*/manifest.json")), printed
    assert list(root.glob("artifacts/test.call-*/manifest.json")), printed
    flow_run = api.flow_runs(root)[0]
    assert "oc.env:SECRET_FAILING" in api.log(flow_run) + str(flow_run["state"])

    assert printed.count("notify.webhook: the message was not delivered") == 2
    found = [("what it printed", place) for place in SOUGHT if value(place) in printed]
    found += [(line, place) for line in seen for place in SOUGHT if value(place).encode() in line]
    for folder in (root, prefect_home, slurm.folder):  # the last holds the batch scripts and the daemons' logs
        found += [(str(path), place) for path, place in held(folder)]
    assert found == []


def held(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files with a value. Slurm keeps a job's environment, with what travels in it, for its own user alone."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "environment":
            content = path.read_bytes()
            yield from ((path, place) for place in SOUGHT if value(place).encode() in content)


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Every command line of this machine that is seen meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:  # it has just ended
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
