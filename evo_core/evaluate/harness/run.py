"""Tasks through lm-eval: results as plain data, with the value of every document for comparisons."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.evaluate.harness.model import HarnessModel

BOOTSTRAPS = 1000
"""Resamples for the standard error of a metric that has no formula for it."""


def require_harness() -> None:
    """See that lm-eval is installed.

    Raises:
        ConfigError: it cannot be imported; says how to install it.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        hint = 'pip install "evo-lm[eval]"'
        raise ConfigError(f"tasks need the package lm-eval, which cannot be imported: {error}", hint=hint) from error


def run_tasks(model: HarnessModel, place: Path) -> dict[str, Any]:
    """Evaluate a model on the tasks of a file or a folder. Every rank of the model must call it.

    Returns:
        ``{"harness": {"lm_eval": version}, "tasks": {name: task}, "groups": {name: {"metrics": …}}}``, a task being

        - ``documents``, ``shots``, ``version``: as the task file has them,
        - ``digest``: of documents, prompts and targets; equal digests mean that the same was asked,
        - ``metrics``: ``{name: {"value", "stderr" (or None), "higher_is_better"}}``,
        - ``values``: ``{name: value of every document}`` of the metrics that are the mean of these.

    Raises:
        ConfigError, DataError: of the task files and their data.
    """
    require_harness()
    # Its bars and log lines are meant for its own command line; what matters comes back as errors or results.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["DISABLE_MULTIPROC"] = "1"  # no pool of processes for a bootstrap
    from lm_eval.evaluator import evaluate

    from evo_core.evaluate.harness.task_files import load_tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    random.seed(0)  # for samplers of one's own; lm-eval's have their own seed
    with redirect_stdout(sys.stderr):
        loaded = load_tasks(place)
        found: Any = evaluate(model, loaded, bootstrap_iters=BOOTSTRAPS)
    tasks = {name: _task(name, found) for name in loaded["tasks"]}
    groups = {name: {"metrics": _metrics(found["results"][name], {})} for name in loaded["groups"]}
    return {"harness": {"lm_eval": version("lm-eval")}, "tasks": tasks, "groups": groups}


def _task(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    samples: Sequence[Mapping[str, Any]] = found["samples"][name]
    metrics = _metrics(found["results"][name], found["higher_is_better"].get(name, {}))
    by_filter: dict[str, list[Mapping[str, Any]]] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        by_filter.setdefault(sample["filter"], []).append(sample)
    values = {}
    for label, metric in metrics.items():
        metric_name, _, of_filter = label.partition(",")
        column = [sample.get(metric_name) for sample in by_filter.get(of_filter or "none", [])]
        if column and all(isinstance(v, int | float) for v in column):
            numbers = [float(v) for v in column if v is not None]
            if math.isclose(sum(numbers) / len(numbers), metric["value"], rel_tol=1e-9, abs_tol=1e-12):
                values[label] = numbers
    digest = hashlib.sha256()
    for sample in next(iter(by_filter.values())):
        digest.update(f"{sample['doc_hash']} {sample['prompt_hash']} {sample['target_hash']}\n".encode())
    return {
        "documents": found["n-samples"][name]["effective"],
        "shots": found["n-shot"].get(name, 0),
        "version": found["versions"].get(name),
        "digest": digest.hexdigest(),
        "metrics": metrics,
        "values": values,
    }


def _metrics(result: Mapping[str, Any], higher_is_better: Mapping[str, bool | None]) -> dict[str, dict[str, Any]]:
    """lm-eval's ``"acc,none"`` and ``"acc_stderr,none"`` as one entry ``acc``; another filter stays in the name."""
    metrics = {}
    for key, value in result.items():
        name, comma, of_filter = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = result.get(f"{name}_stderr,{of_filter}")
        metrics[name if of_filter == "none" else key] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else None,
            "higher_is_better": higher_is_better.get(name),
        }
    return metrics
