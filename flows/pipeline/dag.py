"""A pipeline as a picture: text for a terminal, Mermaid for a page, DOT for Graphviz."""

from __future__ import annotations

from collections.abc import Callable

from flows.pipeline.schema import Pipeline


def as_text(pipeline: Pipeline) -> str:
    """One line a step, with what it needs and what that is taken as."""
    width = max(len(step.name) for step in pipeline.steps)
    kinds = max(len(step.kind.name) for step in pipeline.steps)
    lines = []
    for step in pipeline.steps:
        needs = ", ".join(need if need == name else f"{need} (as {name})" for name, need in step.needs.items())
        arrow = f"  <- {needs}" if needs else ""
        lines.append(f"{step.name:<{width}}  {step.kind.name:<{kinds}}  makes {step.kind.output}{arrow}")
    return "\n".join(lines)


def as_mermaid(pipeline: Pipeline) -> str:
    """A Mermaid flowchart."""
    lines = ["flowchart LR"]
    lines += [f'  {step.name}["{step.name}<br/>{step.kind.name}"]' for step in pipeline.steps]
    for step in pipeline.steps:
        for name, need in step.needs.items():
            origin = need if not need.startswith("ref:") else f'{step.name}_{name}["{need}"]'
            lines.append(f"  {origin} --> {step.name}")
    return "\n".join(lines)


def as_dot(pipeline: Pipeline) -> str:
    """A Graphviz digraph."""
    lines = ["digraph {", "  rankdir=LR; node [shape=box];"]
    lines += [f'  "{step.name}" [label="{step.name}\\n{step.kind.name}"];' for step in pipeline.steps]
    lines += [f'  "{need}" -> "{step.name}";' for step in pipeline.steps for need in step.needs.values()]
    return "\n".join([*lines, "}"])


FORMATS: dict[str, Callable[[Pipeline], str]] = {"text": as_text, "mermaid": as_mermaid, "dot": as_dot}
