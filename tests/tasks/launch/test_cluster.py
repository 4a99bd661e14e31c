"""Cluster files and what a runtime may ask of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from evo_core.errors import ConfigError
from tasks.launch import launcher_for
from tasks.launch.cluster import LocalCluster, SlurmCluster, cluster_names, load_cluster
from tasks.launch.launcher import LaunchRuntime
from tasks.launch.local import LocalLauncher
from tasks.launch.slurm import SlurmLauncher


def write(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_shipped_files() -> None:
    assert isinstance(load_cluster("local"), LocalCluster)
    assert isinstance(load_cluster("slurm"), SlurmCluster)
    assert {"local", "slurm"} <= set(cluster_names())
    assert isinstance(launcher_for(LaunchRuntime()), LocalLauncher)
    assert isinstance(launcher_for(LaunchRuntime(cluster="slurm", nodes=2)), SlurmLauncher)


def test_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = tmp_path / "configs" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "slurm.yaml").write_text("kind: slurm\npartition: here\n")
    monkeypatch.chdir(tmp_path)
    cluster = load_cluster("slurm")
    assert isinstance(cluster, SlurmCluster) and cluster.partition == "here"
    assert isinstance(load_cluster("local"), LocalCluster)  # from the repository


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind: slrum",
            r"mine.yaml:1: kind: 'slrum' is no kind of cluster; did you mean \"slurm\"\? \(local or slurm\)",
        ),
        ("partition: x", r"mine.yaml: kind: a cluster file says its kind"),
        ("kind: slurm\npartiton: x", r"mine.yaml:2: partiton: unknown key; did you mean \"partition\""),
        ("kind: slurm\nlaunch: mpirun", r"mine.yaml:2: launch: .*'torchrun' or 'srun'"),
        ("kind: slurm\nsbatch_args: [--time=1h]", r"mine.yaml:2: sbatch_args: .*write it as the key runtime.time"),
        ("kind: slurm\nsbatch_args: [-o x]", r"sbatch_args: .*set by Evo itself"),
        ("kind: slurm\nsbatch_args: [mem=0]", r"is no option; write each as one item"),
        ("kind: slurm\nenvironment: {A B: c}", r"'A B' is no name of a variable"),
        ("kind: slurm\nenvironment: {A: true}", r"A has to be text or a number; quote it"),
        ("kind: slurm\nsetup: ['echo ${oc.env:KEY}']", r"mine.yaml:2: setup.0: .* under environment: only"),
        ("kind: slurm\nenvironment: {é: 1}", r"mine.yaml:2: environment.é: .*'é' is no name of a variable"),
        ("kind: slurm\nenvironment: {1A: 1}", r"environment.1A: .*is no name of a variable"),
        ("kind: local\nenvironment: {UID: 1}", r"mine.yaml:2: environment.UID: .*cannot be set in bash"),
        ("kind: slurm\nenvironment: {state: x}", r"environment.state: .*set by Evo itself"),
        ("kind: slurm\nenvironment: {RANK: 1}", r"environment.RANK: .*set by Evo itself"),
        ("kind: slurm\nsbatch_args: [--wra=id]", r"mine.yaml:2: sbatch_args: '--wra=id' is set by Evo itself"),
        ("kind: slurm\nsbatch_args: [--part=x]", r"write it as the key partition"),
        ("kind: slurm\nsbatch_args: [-HJx]", r"'-HJx' is set by Evo itself"),
        ("kind: slurm\nsbatch_args: [-J x]", r"'-J x' is set by Evo itself"),
        ("kind: slurm\nsbatch_args: [--job-name x]", r"is set by Evo itself"),
        ("kind: slurm\nsbatch_args: [--test-only]", r"is set by Evo itself and cannot be passed"),
        ("kind: slurm\nsbatch_args: [--]", r"'--' is no option"),
        ("kind: slurm\nsbatch_args: ['--=x']", r"sbatch_args: '--=x'"),
        ("kind: slurm\nsbatch_args: ['']", r"'' is no option"),
        ("kind: slurm\nsbatch_args: [--constraint a100]", r"an option and its value are one word"),
        ("kind: slurm\nsetup: ['echo \"hello']", r"mine.yaml:2: setup: these lines are no complete shell script"),
        ('kind: slurm\nsetup: ["echo \'it is"]', r"setup: these lines are no complete shell script"),
        ("kind: slurm\nsetup: ['cat <<END', 'a']", r"setup: .*here-document"),
        ("kind: slurm\nsetup: ['if true; then']", r"setup: .*syntax error"),
        ("kind: slurm\nsetup: ['}']", r"setup: .*syntax error"),
        ("kind: slurm\nsetup: ['module load x \\']", r"setup: .*carried on by a backslash"),
        ("kind: slurm\nsetup: ['echo $(date']", r"setup: these lines are no complete shell script"),
        ("kind: slurm\ncontainer: 'apptainer \"exec'", r"container: .*[Nn]o closing quotation"),
        ("kind: local\npartition: x", r"partition: unknown key"),
        ("kind: local\ngrace_seconds: 0", r"grace_seconds: "),
        ("[1, 2]", r"a configuration is a map of keys"),
    ],
)
def test_mistakes_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_cluster(write(tmp_path, text))


def test_options_and_lines_of_every_day_are_taken(tmp_path: Path) -> None:
    text = """\
kind: slurm
sbatch_args: [--constraint=a100, -Ca100, --mem=0, --exclusive, --nodelist=n1, --time-min=1, --comment=a b, -H, --gres=a]
setup: ["if true; then", "  module load 'a b'", fi, "cat <<END", "it's", END, "f() { echo $((1 << 2)); }", "# it's"]
environment: {http_proxy: x, NCCL_DEBUG: INFO, _x: 1}
"""
    assert isinstance(load_cluster(write(tmp_path, text)), SlurmCluster)


def test_a_check_of_shell_lines_runs_none_of_them(tmp_path: Path) -> None:
    load_cluster(write(tmp_path, f"kind: slurm\nsetup: ['touch {tmp_path}/ran', 'echo $(touch {tmp_path}/ran)']"))
    assert not (tmp_path / "ran").exists()


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"runtime.cluster: there is no cluster 'slrum'; did you mean \"slurm\""):
        load_cluster("slrum")
    with pytest.raises(ConfigError, match=r"there is no cluster file nowhere/x\.yaml"):
        load_cluster("nowhere/x.yaml")


def test_environment_is_text_and_references_stay_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "kind: slurm\nenvironment: {A: 1, B: '${oc.env:KEY}', C: 'x ${oc.env:KEY}'}")
    cluster = load_cluster(file)
    assert cluster.environment == {"A": "1", "B": "${oc.env:KEY}", "C": "x ${oc.env:KEY}"}
    assert cluster.references() == {"B", "C"}
    with pytest.raises(ConfigError, match=r"mine.yaml:2: environment.B: the environment variable KEY is not set"):
        cluster.variables()
    monkeypatch.setenv("KEY", "v")
    assert cluster.variables() == {"A": "1", "B": "v", "C": "x v"}


@pytest.mark.parametrize("time", ["48h", "30m", "2-00:00:00", "01:30:00", None])
def test_wall_times(time: str | None) -> None:
    assert LaunchRuntime(time=time).time == time


@pytest.mark.parametrize("time", ["60", "soon", "10s", "1-12"])
def test_wall_times_that_are_refused(time: str) -> None:
    with pytest.raises(ValidationError):
        LaunchRuntime(time=time)


def test_gpus_per_task_are_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "kind: slurm\nlaunch: srun\ngpus: gpus_per_task")
    with pytest.raises(ConfigError, match=r"mine.yaml:3: gpus: 8 GPUs a node cannot be dealt out to 3 ranks"):
        launcher_for(LaunchRuntime(cluster=file, gpus_per_node=8, ranks_per_node=3))
