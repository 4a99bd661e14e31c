"""Pipelines as Prefect's flow runs, and a run's life in this process: server, signals, jobs."""
