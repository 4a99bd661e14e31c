"""What every test may ask for."""

pytest_plugins = ["tests.s3_server", "tests.slurm_cluster"]
