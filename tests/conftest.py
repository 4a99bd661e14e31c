"""What every test may ask for."""

import gc
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.browser", "tests.s3_server", "tests.slurm_cluster"]

# What tests start inherits what is ignored here: under `nohup` the signal of a closed terminal, in the background of a
# script Ctrl-C.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("evo", deadline=None)
settings.load_profile("evo")


def pytest_configure(config: pytest.Config) -> None:
    """Workers and what they start share the cores: threads of each that wait for those of others only burn time."""
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import torch

        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Thousands of tests are no garbage: nobody who collects need look at them again."""
    gc.collect()
    gc.freeze()


SHARED = (
    ("tests/endtoend/", "tests/tasks/launch/test_slurm.py", "tests/flows/doctor/test_doctor_services.py"),
    ("tests/tasks/launch/test_accounting.py", "tests/tasks/launch/test_lost_node.py"),
    ("tests/flows/orchestration/",),
)
"""Files whose tests share what takes longest to start: a Slurm cluster and a whole run; a Prefect server."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling | None":
    """With `--dist loadfile` what shares a server goes to one worker too, and first: whoever ends last ends soon."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((files[0] for files in SHARED if nodeid.startswith(files)), nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(sum(SHARED, ())))
