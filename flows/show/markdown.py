"""Markdown for Prefect's pages: one card per step, and the table that links them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from flows.pipeline.events import ArtifactRef
from flows.pipeline.plan import Plan, PlannedStep
from flows.show import humanize, results
from flows.show.charts import data_uri, line_chart
from flows.show.score_tables import ScoreTable, score_table
from tasks.store import Artifact


def page_key(plan: Plan, *parts: str) -> str:
    """The name of an artifact page: lower-case letters, digits and dashes, as Prefect wants it."""
    name = "-".join([plan.pipeline.name, *parts])
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if name.isascii():
        return key
    return f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")  # else two names could be one page


def plan_rows(plan: Plan) -> list[dict[str, str]]:
    """The plan as a table: what each step is, and whether it runs."""
    return [
        {"step": s.name, "kind": s.kind.name, "key": s.key[:12], "action": s.action, "why": s.why} for s in plan.steps
    ]


def score_rows(scores: ScoreTable) -> list[dict[str, str]]:
    """Held-out scores: a row for each type, a column for each model and baseline, ``loss (perplexity)``."""
    accurate = {name for type_ in scores.rows for name in scores.accuracies(type_)}
    table = []
    for type_, by in scores.rows.items():
        row = {"type": type_}
        for name in scores.columns:
            row[f"{name}: loss (perplexity)"] = f"{by[name].loss:.4f} ({by[name].perplexity:.1f})" if name in by else ""
        for name in map(scores.accuracy_name, scores.models):
            if name in accurate:
                found = scores.accuracies(type_).get(name)
                row[name] = "" if found is None else f"{found:.1%}"
        table.append(row | {"tokens": humanize.count(scores.tokens(type_))})
    return table


def card(
    step: PlannedStep,
    ref: ArtifactRef,
    artifact: Artifact,
    pages: Mapping[str, object],
    scores: ScoreTable | None = None,
) -> str:
    """All there is to say of a step's artifact: results first, then numbers, inputs and the place.

    Args:
        pages: step name to the id of its card's page, for links.
        scores: the table that the artifact's scores are in; by themselves without one.
    """
    provenance = artifact.manifest["provenance"]
    parts = [f"# {plain(step.name)}", f"*{plain(step.kind.name)}*, {ref.action}, key `{step.key[:12]}`"]
    parts += _results(artifact, scores)
    numbers = humanize.statistics_line(artifact.statistics)
    inputs = ", ".join(f"{name}: {_link(pages, origin, key)}" for name, (origin, key) in step.needs.items())
    facts = {
        "numbers": numbers,
        "made from": inputs,
        "made": f"{provenance['ended']} on {provenance['host']}, in {humanize.duration(provenance['seconds'])}",
        "folder": f"`{artifact.path}`",
    }
    parts.append(_table(["", ""], [[name, text] for name, text in facts.items() if text]))
    return "\n\n".join(parts)


def lineage(plan: Plan, refs: Mapping[str, ArtifactRef], pages: Mapping[str, object]) -> str:
    """Where everything came from: a row for each artifact, with links to its card and to those of its inputs."""
    rows = []
    for step in plan.steps:
        made_from = [_link(pages, origin, key) for origin, key in step.needs.values()]
        place = f"`{refs[step.name].uri}`" if step.name in refs else "not made"
        rows.append([_link(pages, step.name, step.key), step.kind.output, " · ".join(made_from) or "raw files", place])
    return "# Lineage\n\n" + _table(["artifact", "type", "made from", "folder"], rows)


def _results(artifact: Artifact, scores: ScoreTable | None) -> list[str]:
    if artifact.type == "model" and (rows := results.metrics(artifact)):
        svg = line_chart(results.loss_curves(rows), x_label="step", y_label="training loss")
        return [f"![training loss]({data_uri(svg)})"]
    if artifact.type == "scores":
        table = score_rows(scores or score_table({"model": artifact}))
        return [_table(list(table[0]), [list(row.values()) for row in table])] if table else []
    if artifact.type == "task_scores":
        table = results.task_rows(artifact)
        return [_table(list(table[0]), [list(row.values()) for row in table])] if table else []
    if artifact.type == "samples":
        return [_sample(sample) for sample in results.samples(artifact)]
    return []


def _sample(sample: results.Sample) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", sample.prompt + sample.text)), default=0))
    return f"**{sample.type}**\n\n{fence}text\n{sample.prompt}⟶{sample.text}\n{fence}"


def _link(pages: Mapping[str, object], origin: str, key: str) -> str:
    """A link to the card of a step of this run; what another run made and published as a ref has no card here."""
    name = f"{origin}-{key[:12]}" if not origin.startswith("ref:") else f"{origin} ({key[:12]})"
    return f"[{plain(name)}](/artifacts/artifact/{pages[origin]})" if origin in pages else plain(name)


def plain(text: str) -> str:
    """A text that markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", text) if re.search(r"[^\w .()@:/-]", text) else text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", cell).replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
