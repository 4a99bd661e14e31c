"""What finished artifacts hold, read for tables and charts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evo_core.evaluate.perplexity import perplexity
from flows.show.humanize import statistics_line
from tasks.evaluate import SCORES
from tasks.generate import SAMPLES
from tasks.store import Artifact
from tasks.store.json_file import read_json
from tasks.train import METRICS


@dataclass(frozen=True)
class Score:
    """One predictor on the held-out tokens of one type. `loss` is in nats a token."""

    predictor: str
    type: str
    loss: float
    tokens: int
    accuracy: float | None = None

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return perplexity(self.loss)


@dataclass(frozen=True)
class Sample:
    """A prompt and what a model wrote after it."""

    type: str
    prompt: str
    text: str


BASELINES = ("unigram", "bigram")
PREDICTORS = ("model", *BASELINES)


def scores(artifact: Artifact) -> list[Score]:
    """The rows of a scores artifact: for each type the model, then the baselines that were measured."""
    content = read_json(artifact.path / SCORES) or {}
    return list(_scores(content))


def _scores(content: Mapping[str, Any]) -> Iterator[Score]:
    of = {"model": content.get("model", {}), **content.get("baselines", {})}
    for type_ in of["model"]:
        for predictor in PREDICTORS:
            found = of.get(predictor, {}).get(type_)
            if found is not None:
                yield Score(predictor, type_, found["loss"], found["tokens"], found.get("acc"))


def task_rows(artifact: Artifact) -> list[dict[str, str]]:
    """The rows of a task_scores artifact: one for each metric of each task, then of each group."""
    content = read_json(artifact.path / SCORES) or {}
    table = []
    for name, task in {**content.get("tasks", {}), **content.get("groups", {})}.items():
        for metric, found in task["metrics"].items():
            error = "" if found["stderr"] is None else f" ± {found['stderr']:.4f}"
            documents = str(task.get("documents", ""))
            table.append(
                {"task": name, "documents": documents, "metric": metric, "value": f"{found['value']:.4f}{error}"}
            )
    return table


def samples(artifact: Artifact) -> list[Sample]:
    """The rows of a samples artifact."""
    lines = (artifact.path / SAMPLES).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Sample(row.get("type", "samples"), row["prompt"], row["text"]) for row in rows]


def one_of_each_type(found: list[Sample]) -> list[Sample]:
    """The first sample of each type."""
    return list({sample.type: sample for sample in reversed(found)}.values())[::-1]


def metrics(artifact: Artifact) -> list[dict[str, Any]]:
    """The training steps of a model artifact, one row each."""
    path = artifact.path / METRICS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_curves(rows: list[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """The training loss over all tokens and, where there are several, that of each data type."""
    types = sorted({name for row in rows for name in row if name.startswith("loss/")})
    names = ["loss", *types] if len(types) > 1 else ["loss"]
    return {name.replace("loss/", "") if name != "loss" else "all": curve(rows, name) for name in names}


def curve(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, where it was logged."""
    kept = [row for row in rows if row.get(name) is not None]
    return [row["step"] for row in kept], [row[name] for row in kept]


def headline(artifact: Artifact) -> str:
    """An artifact in one line of numbers: the model's loss per type for scores, else its plain statistics."""
    if artifact.type == "scores":
        model = [row for row in scores(artifact) if row.predictor == "model"]
        return " · ".join(f"{row.type} loss {row.loss:.3f}" for row in model)
    return statistics_line(artifact.statistics)
