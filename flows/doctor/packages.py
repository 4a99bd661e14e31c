"""Python and the packages: those that Evo asks for, and the versions that are known to break it."""

from __future__ import annotations

import platform
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from flows.doctor.finding import Asked, Finding

NEEDED = ("", "pipeline")
"""What `evo run` needs: the base and this extra."""
EXTRAS = ("s3", "data", "hf", "dask", "serve", "eval", "cuda")
BREAKS = {
    "fastapi": "with a newer one no flow of Prefect starts",
    "sqlalchemy": "with a newer one Prefect's schedules create no runs, and say nothing",
}
_CHECKOUT = Path(__file__).parents[2]


def look(asked: Asked) -> Iterator[Finding]:
    """Python, what has to be installed, what may be, and how it differs from the pinned versions."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    requirements = list(_requirements())
    if not requirements:
        hint = "pip install -e '.[pipeline]' in a checkout"
        yield Finding("packages", "problem", "evo-lm is not installed, and there is no pyproject.toml", hint)
        return
    wrong = [fault for name in NEEDED for fault in _faults(requirements, name)]
    for fault in wrong:
        yield Finding("packages", "problem", fault, "make install, or pip install -c constraints.txt -e '.[pipeline]'")
    if not wrong:
        shown = ", ".join(f"{name} {_version(name)}" for name in ("torch", "prefect", "pydantic", "fastapi"))
        yield Finding("packages", "ok", f"{shown}: all that evo run needs")
    for extra in EXTRAS:
        yield _extra(requirements, extra)
    yield from _pinned()


def _requirements() -> Iterator[Requirement]:
    """What the distribution, or the checkout's pyproject.toml, asks for."""
    try:
        texts = metadata.requires("evo-lm") or []
    except metadata.PackageNotFoundError:
        file = _CHECKOUT / "pyproject.toml"
        if not file.is_file():
            return
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        texts = list(project["dependencies"])
        for extra, more in project["optional-dependencies"].items():
            texts += [f'{text}; extra == "{extra}"' for text in more]
    for text in texts:
        try:
            yield Requirement(text)
        except InvalidRequirement:
            continue


def _of(requirements: Iterable[Requirement], extra: str) -> Iterator[Requirement]:
    for requirement in requirements:
        marker = requirement.marker
        if marker is None:
            if not extra:
                yield requirement
        elif marker.evaluate({"extra": extra}) and not (extra and marker.evaluate({"extra": ""})):
            yield requirement


def _faults(requirements: Iterable[Requirement], extra: str) -> Iterator[str]:
    for requirement in _of(requirements, extra):
        found = _version(requirement.name)
        if found is None:
            yield f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(found, prereleases=True):
            why = f": {BREAKS[requirement.name]}" if requirement.name in BREAKS else ""
            yield f"{requirement.name} {found} is installed, {requirement.name}{requirement.specifier} is needed{why}"


def _extra(requirements: Iterable[Requirement], extra: str) -> Finding:
    requirements = list(requirements)
    asked, faults = [r.name for r in _of(requirements, extra)], list(_faults(requirements, extra))
    install = f"pip install -c constraints.txt -e '.[{extra}]'"
    if extra == "cuda":
        install = "pip install --no-build-isolation flash-attn; without it torch's own kernel runs"
    if not faults:
        return Finding(f"extra {extra}", "ok", ", ".join(f"{name} {_version(name)}" for name in asked))
    if all(fault.endswith("is not installed") for fault in faults):
        return Finding(f"extra {extra}", "not here", ", ".join(faults), install)
    return Finding(f"extra {extra}", "warning", ", ".join(faults), install)


def _pinned() -> Iterator[Finding]:
    file = _CHECKOUT / "constraints.txt"
    if not file.is_file():
        return
    pins = dict(line.strip().split("==", 1) for line in file.read_text("utf-8").splitlines() if "==" in line)
    others = [
        f"{name} {found} (pinned {pin})"
        for name, pin in pins.items()
        if (found := _version(name)) is not None and found.partition("+")[0] != pin.partition("+")[0]
    ]
    told = f"; {', '.join(others[:8])}{' …' if len(others) > 8 else ''}" if others else ""
    yield Finding("constraints", "ok", f"{len(others)} of the installed packages differ from constraints.txt{told}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
