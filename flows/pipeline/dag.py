"""A pipeline as a picture: text for a terminal, Mermaid for a page, DOT for Graphviz."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from flows.pipeline.schema import Pipeline

_MERMAID_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_MERMAID_WORDS = {
    "end",
    "graph",
    "flowchart",
    "subgraph",
    "style",
    "class",
    "click",
    "default",
    "linkstyle",
    "classdef",
}


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
    # A number where a name is no id of Mermaid's: `end` is a word of its own there, and ids are ASCII.
    ids = {step.name: f"s{number}" for number, step in enumerate(pipeline.steps)}
    ids = {
        name: name if _MERMAID_NAME.fullmatch(name) and name not in _MERMAID_WORDS else id_ for name, id_ in ids.items()
    }
    lines += [f'  {ids[s.name]}["{html.escape(s.name)}<br/>{html.escape(s.kind.name)}"]' for s in pipeline.steps]
    for step in pipeline.steps:
        for name, need in step.needs.items():
            origin = ids.get(need) or f'{ids[step.name]}_{name}["{html.escape(need)}"]'
            lines.append(f"  {origin} --> {ids[step.name]}")
    return "\n".join(lines)


def as_dot(pipeline: Pipeline) -> str:
    """A Graphviz digraph."""
    lines = ["digraph {", "  rankdir=LR; node [shape=box];"]
    lines += [f'  "{_quoted(s.name)}" [label="{_quoted(s.name)}\\n{_quoted(s.kind.name)}"];' for s in pipeline.steps]
    lines += [f'  "{_quoted(need)}" -> "{_quoted(s.name)}";' for s in pipeline.steps for need in s.needs.values()]
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


FORMATS: dict[str, Callable[[Pipeline], str]] = {"text": as_text, "mermaid": as_mermaid, "dot": as_dot}
