"""`evo doctor` beside a real Slurm cluster and a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.doctor import s3, slurm
from flows.doctor.examine import examine
from flows.doctor.finding import Asked, Check, Finding
from tests.s3_server import READER_KEY, READER_SECRET, S3Server
from tests.slurm_cluster import SlurmCluster


def told(findings: list[Finding], subject: str) -> list[tuple[str, str]]:
    return [(finding.verdict, finding.message) for finding in findings if finding.subject == subject]


@pytest.mark.slurm
def test_slurm_and_the_cluster_files(slurm_cluster_here: SlurmCluster, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    bad.write_text(
        "kind: slurm\npartition: debug,gpu\nshared_root: /no/such/disk\ncontainer: apptainer-of-mine exec x.sif\n"
        "environment: {A: '${oc.env:NOT_SET_ANYWHERE}'}\n"
    )
    good.write_text(f"kind: slurm\npartition: debug\nshared_root: {tmp_path}\n")
    found = examine(Asked(clusters=(str(bad), str(good))), [Check("slurm", slurm.look, 60)])
    ((verdict, message),) = told(found, "slurm")
    assert verdict == "ok" and message.endswith("the controller answers; partitions: debug, urgent")
    assert told(found, f"cluster {good}") == [("ok", f"{good}: debug")]
    faults = told(found, f"cluster {bad}")
    assert [verdict for verdict, _ in faults] == ["problem"] * 4
    assert "NOT_SET_ANYWHERE is not set" in faults[0][1]
    assert [message for _, message in faults[1:]] == [
        "this Slurm has no partition 'gpu'",
        "shared_root /no/such/disk is not there",
        "container: apptainer-of-mine is not here",
    ]
    assert told(found, "accounting")[0][0] in ("ok", "warning")


@pytest.mark.slurm
def test_a_controller_that_is_away_is_a_problem_soon(
    slurm_cluster_here: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = slurm_cluster_here.conf.read_text()
    port = next(line for line in text.splitlines() if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text(text.replace(port, "SlurmctldPort=1"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    found = examine(Asked(), [Check("slurm", slurm.look, 60)])
    ((verdict, message),) = told(found, "slurm")
    assert verdict == "problem" and message.startswith("the controller does not answer: ")


@pytest.fixture
def slurm_cluster_here(request: pytest.FixtureRequest) -> SlurmCluster:
    """The session's cluster, under a name that the module `slurm` leaves free."""
    return request.getfixturevalue("slurm")


@pytest.mark.s3
@pytest.mark.slow  # the server takes ten seconds to start
def test_a_place_in_s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    server: S3Server = request.getfixturevalue("s3")
    client = server.client()
    client.create_bucket(Bucket="doctor")
    checks = [Check("s3", s3.look, 40)]
    found = examine(Asked(root="s3://doctor/runs"), checks)
    assert told(found, "s3") == [("ok", f"s3://doctor/runs can be listed; server: {server.endpoint}")]
    assert told(found, "s3 commits")[0][0] == "ok"
    assert "Contents" not in client.list_objects_v2(Bucket="doctor")
    assert told(examine(Asked(root="s3://no-such-bucket/x"), checks), "s3")[0][0] == "problem"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    ((_, _), (verdict, message)) = told(found := examine(Asked(root="s3://doctor/runs"), checks), "s3")
    assert verdict == "problem" and "may not be written with these credentials" in message
    assert READER_SECRET not in str(found)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("EVO_S3_PATIENCE", "0.5")
    ((verdict, message),) = told(examine(Asked(root="s3://doctor/runs"), checks), "s3")
    assert verdict == "problem" and "no good answer for 0.5 s" in message
