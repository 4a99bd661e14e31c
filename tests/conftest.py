"""What every test may ask for."""

import signal

pytest_plugins = ["tests.browser", "tests.s3_server", "tests.slurm_cluster"]

# What tests start inherits what is ignored here, and under `nohup` that is the signal of a closed terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
