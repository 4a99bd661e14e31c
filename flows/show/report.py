"""The report of a run: one HTML file that needs no network, and its short form for the terminal."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evo_core.storage.files import replacing, write_file
from flows.pipeline.events import ArtifactRef
from flows.pipeline.plan import Plan, PlannedStep
from flows.show import humanize, results, terminal
from flows.show.charts import line_chart, themed
from flows.show.score_tables import ScoreTable, score_tables
from tasks.store import Artifact, Store

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("report.html.j2")


def report_path(plan: Plan, store: Store) -> Path:
    """Where the report of a run lies."""
    return store.root / "runs" / f"{plan.run_id}.html"


def write_report(plan: Plan, refs: Mapping[str, ArtifactRef], store: Store, error: str | None = None) -> Path:
    """Write the report of a run, finished or not, and let ``<root>/report.html`` lead to it.

    Args:
        refs: the steps that have their artifact.
        error: why the run ended early, if it did.
    """
    path = report_path(plan, store)
    write_file(path, _template().render(**_content(plan, refs, store, error)))
    link = store.root / "report.html"
    with replacing(link, durable=False) as draft:
        draft.symlink_to(path.relative_to(store.root))
    return path


def print_report(plan: Plan, refs: Mapping[str, ArtifactRef], store: Store, console: Console | None = None) -> None:
    """What came of a run, in a screenful: scores, one sample per type, and where to look."""
    console = console or terminal.console()
    made = sum(ref.action != "reused" for ref in refs.values())
    console.print(f"\n[bold]{escape(plan.pipeline.name)}[/]: {made} steps made, {len(refs) - made} reused\n")
    for table in score_tables(plan, refs, store):
        console.print(_score_table(table))
        console.print()
    for artifact in _artifacts(plan, refs, store, "samples"):
        for sample in results.one_of_each_type(results.samples(artifact)):
            text = (
                f"[bold]{escape(sample.type)}[/]  [underline]{escape(sample.prompt)}[/]{escape(sample.text.rstrip())}"
            )
            console.print(text, soft_wrap=True)
        console.print()
    places = {"report": str(report_path(plan, store))}
    places |= {
        step.name: refs[step.name].uri for step in plan.steps if step.name in refs and step.kind.output == "model"
    }
    root = "" if store.root == Path.cwd() / "evo_runs" else f" --root {store.root}"
    places["pages and curves"] = f"evo ui{root}"
    width = max(map(len, places))
    for name, place in places.items():
        console.print(f"{escape(f'{name:<{width}}')}  {escape(place)}", soft_wrap=True)


def _score_table(scores: ScoreTable) -> Table:
    """A row for each type, a column for each model and baseline."""
    table = Table(title="held-out loss in nats a token (perplexity)", title_justify="left", box=None, pad_edge=False)
    table.add_column("type")
    for name in scores.columns:
        table.add_column(escape(name), justify="right", style="bold" if name in scores.models else "")
    table.add_column("tokens", justify="right")
    for type_, by in scores.rows.items():
        cells = [f"{by[name].loss:.3f} ({by[name].perplexity:.1f})" if name in by else "" for name in scores.columns]
        table.add_row(escape(type_), *cells, humanize.count(scores.tokens(type_)))
    return table


def _artifacts(plan: Plan, refs: Mapping[str, ArtifactRef], store: Store, type_: str) -> list[Artifact]:
    """The artifacts of one type that the run has, in the plan's order."""
    return [
        store.artifact(step.kind.name, step.key)
        for step in plan.steps
        if step.name in refs and step.kind.output == type_
    ]


def _content(plan: Plan, refs: Mapping[str, ArtifactRef], store: Store, error: str | None) -> dict[str, Any]:
    """All that the template shows."""
    steps = [_step(plan, step, refs.get(step.name), store) for step in plan.steps]
    done = [step for step in steps if step["made"]]
    longest = max((step["seconds"] for step in done), default=0) or 1
    for step in done:
        step["share"] = round(100 * step["seconds"] / longest, 1)
    newest = max(done, key=lambda step: step["ended"], default=None)
    return {
        "plan": plan,
        "set": plan.pipeline.overrides,
        "error": error,
        "complete": len(done) == len(steps),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "steps": steps,
        "charts": [charts for a in _artifacts(plan, refs, store, "model") if (charts := _charts(a))],
        "scores": score_tables(plan, refs, store),
        "samples": [_samples_by_type(a) for a in _artifacts(plan, refs, store, "samples")],
        "provenance": newest["provenance"] if newest else {},
        "root": str(store.root),
        "ui": f"evo ui --root {store.root}",
    }


def _step(plan: Plan, step: PlannedStep, ref: ArtifactRef | None, store: Store) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": step.name,
        "kind": step.kind.name,
        "key": step.key[:12],
        "type": step.kind.output,
        "action": ref.action if ref else "not made",
        "why": step.why,
        "needs": [(name, origin, key[:12]) for name, (origin, key) in step.needs.items()],
        "made": ref is not None,
    }
    if ref is not None:
        artifact = store.artifact(step.kind.name, step.key)
        provenance = artifact.manifest["provenance"]
        row |= {
            "numbers": results.headline(artifact),
            "seconds": provenance["seconds"],
            "took": humanize.duration(provenance["seconds"]),
            "ended": provenance["ended"],
            "ranks": provenance["ranks"],
            "bytes": humanize.size(sum(file["size"] for file in artifact.manifest["files"])),
            "path": str(artifact.path),
            "provenance": provenance,
        }
    return row


def _charts(artifact: Artifact) -> list[str]:
    """The loss, large; learning rate and gradient norm, small."""
    rows = results.metrics(artifact)
    if len(rows) < 2:
        return []
    charts = [line_chart(results.loss_curves(rows), x_label="step", y_label="training loss", size=(10.4, 3.6))]
    for name, title in (("lr", "learning rate"), ("grad_norm", "gradient norm")):
        x, y = results.curve(rows, name)
        if len(x) > 1:
            charts.append(line_chart({title: (x, y)}, x_label="step", y_label=title, size=(5.0, 2.6)))
    return [themed(chart) for chart in charts]


def _samples_by_type(artifact: Artifact) -> dict[str, list[results.Sample]]:
    found: dict[str, list[results.Sample]] = {}
    for sample in results.samples(artifact):
        found.setdefault(sample.type, []).append(sample)
    return found


@cache
def _template() -> Template:
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text("utf-8"))
