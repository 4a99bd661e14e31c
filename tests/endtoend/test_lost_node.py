"""A node that is cut off in the middle of a training on two nodes: it goes on on others, with the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endtoend.conftest import HERE, Evo
from tests.endtoend.test_kill import in_the_middle_of, wait_until
from tests.endtoend.test_slurm import TWO_NODES, SlurmEvo
from tests.slurm_cluster import missing_programs, require, slurm_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.slow]

TINY = str(HERE / "tiny.yaml")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launch", ["torchrun", "srun"])
def test_training_goes_on_on_other_nodes(whole: Evo, tmp_path: Path, launch: str) -> None:
    require(missing_programs())
    with slurm_cluster(3, slurmd_timeout=5) as cluster:
        evo = SlurmEvo(tmp_path, cluster)
        file = tmp_path / "test_slurm.yaml"
        file.write_text(file.read_text() + f"launch: {launch}\n")
        try:
            run = evo.start("run", TINY, "--no-server", "--targets", "model", *TWO_NODES)
            wait_until(lambda: in_the_middle_of(evo, "model") or run.poll() is not None)
            cluster.kill_node("node2")
            printed, _ = run.communicate(timeout=400)
            assert run.returncode == 0, printed
            assert "node failure on node2" in printed and "left out from now on: node2" in printed
            assert "on node[1,3]" in printed, printed
            assert [loss for _, loss in evo.curve()] == pytest.approx([loss for _, loss in whole.curve()], rel=1e-5)
        finally:
            evo.close()
