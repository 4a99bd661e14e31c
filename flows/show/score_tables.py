"""Scores as tables: those that one run has on the same held-out data stand side by side."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from flows.pipeline.plan import Plan, PlannedStep
from flows.show import results
from tasks.store import Artifact, Store


@dataclass(frozen=True)
class ScoreTable:
    """Loss per type: a row for each type, a column for each model and each baseline.

    Attributes:
        models: column names of the models; of one alone it is "model", of several their steps' names.
        columns: all column names: the models, then the baselines that were measured.
        rows: type to column to score.
    """

    models: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, results.Score]]

    def accuracy_name(self, model: str) -> str:
        """What the column of a model's accuracy is called."""
        return "accuracy" if len(self.models) == 1 else f"{model}: accuracy"

    def accuracies(self, type_: str) -> dict[str, float]:
        """Column name to accuracy of the models that have one for a type."""
        found = {model: self.rows[type_].get(model) for model in self.models}
        return {
            self.accuracy_name(model): score.accuracy
            for model, score in found.items()
            if score is not None and score.accuracy is not None
        }

    def tokens(self, type_: str) -> int:
        """How many tokens of a type were scored."""
        return next(iter(self.rows[type_].values())).tokens


def score_table(named: Mapping[str, Artifact]) -> ScoreTable:
    """One table of the scores of steps on the same data: step name to artifact."""
    rows: dict[str, dict[str, results.Score]] = {}
    models, baselines = [], set()
    for step, artifact in named.items():
        model = _column(step) if len(named) > 1 else "model"
        models.append(model)
        for row in results.scores(artifact):
            column = model if row.predictor == "model" else row.predictor
            rows.setdefault(row.type, {}).setdefault(column, row)
            baselines |= {column} - {model}
    measured = [name for name in results.BASELINES if name in baselines]
    return ScoreTable(tuple(models), (*models, *measured), rows)


def score_tables(plan: Plan, made: Container[str], store: Store) -> list[ScoreTable]:
    """The tables of a run, in the plan's order.

    Args:
        made: names of the steps that have their artifact.
    """
    groups: dict[object, dict[str, Artifact]] = {}
    for step in plan.steps:
        if step.kind.output == "scores" and step.name in made:
            groups.setdefault(_data(step), {})[step.name] = store.artifact(step.kind.name, step.key)
    return [score_table(named) for named in groups.values()]


def table_with(step: PlannedStep, plan: Plan, made: Container[str], store: Store) -> ScoreTable:
    """The table that a step's scores are in, beside those of the steps made so far."""
    same = {other.name: other for other in plan.steps if other.kind.output == "scores" and _data(other) == _data(step)}
    return score_table(
        {
            name: store.artifact(other.kind.name, other.key)
            for name, other in same.items()
            if name in made or name == step.name
        }
    )


def _data(step: PlannedStep) -> object:
    """What a step's scores are on: the key of its dataset; without one, the scores are compared with no others."""
    return (step.kind.name, step.needs["data"][1]) if "data" in step.needs else step.name


def _column(step: str) -> str:
    return f"step {step}" if step in results.BASELINES else step
