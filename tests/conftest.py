"""What every test may ask for."""

import gc
import signal

from hypothesis import settings

pytest_plugins = ["tests.browser", "tests.s3_server", "tests.slurm_cluster"]

# What tests start inherits what is ignored here, and under `nohup` that is the signal of a closed terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says how busy the machine is.
settings.register_profile("evo", deadline=None)
settings.load_profile("evo")


def pytest_collection_finish() -> None:
    """Thousands of tests are no garbage: nobody who collects need look at them again."""
    gc.collect()
    gc.freeze()
