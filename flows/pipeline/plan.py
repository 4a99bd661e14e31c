"""What a run would do: every step's key, whether its artifact is there, and if not, why not."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evo_core.config.identity import enters_the_key
from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError, UserError
from flows.pipeline import identity
from flows.pipeline.failures import reason
from flows.pipeline.schema import Pipeline, Step
from flows.pipeline.why import Earlier
from tasks.kind import Facts, Kind, Source
from tasks.launch import launcher_for
from tasks.launch.launcher import launch_runtime
from tasks.launch.record import read_attempt
from tasks.store import Store
from tasks.store.claim import holder
from tasks.store.provenance import code_drift

Action = Literal["reuse", "run", "attach", "damaged"]


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        needs: input name to the artifact's (step name or ref, key).
        payload: what the key is the digest of.
        key: 64 hex digits.
        action: reuse what is there, run, attach to what another run or step is making, or stop at an artifact that is
            damaged.
        why: the reason, for people.
        force: a committed artifact at this key is replaced.
    """

    name: str
    kind: Kind[Any, Any]
    params: Any
    runtime: Any
    needs: Mapping[str, tuple[str, str]]
    payload: Mapping[str, Any]
    key: str
    action: Action
    why: str
    facts: Facts
    force: bool = False
    drift: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All steps of one run, each after what it needs."""

    pipeline: Pipeline
    steps: tuple[PlannedStep, ...]
    root: str
    run_id: str

    def step(self, name: str) -> PlannedStep:
        """The planned step of that name."""
        return next(step for step in self.steps if step.name == name)

    def runtime_record(self, step: PlannedStep) -> dict[str, Any]:
        """A step's runtime as plain data, fit to be stored and shown."""
        plain = step.runtime.model_dump(mode="json")
        return self.pipeline.secrets.shown(plain, f"steps.{step.name}.runtime")

    def record(self) -> dict[str, Any]:
        """The plan as plain data, for the store and for `--json`. A step of a sweep names it."""
        sweep_of = {step: sweep for sweep, steps in self.pipeline.sweeps.items() for step in steps}
        return {
            "run": self.run_id,
            "pipeline": self.pipeline.name,
            "file": str(self.pipeline.file),
            "set": list(self.pipeline.overrides),
            "root": self.root,
            "steps": [
                {
                    "step": s.name,
                    "uses": s.kind.name,
                    "key": s.key,
                    "action": s.action,
                    "why": s.why,
                    "needs": {name: {"from": origin, "key": key} for name, (origin, key) in s.needs.items()},
                    "runtime": self.runtime_record(s),
                    **({"sweep": sweep_of[s.name]} if s.name in sweep_of else {}),
                }
                for s in self.steps
            ],
        }


def make_plan(
    pipeline: Pipeline,
    store: Store,
    *,
    targets: Sequence[str] = (),
    force: Sequence[str] = (),
    source_digest: str | None = None,
) -> Plan:
    """Plan a run. Reads sources and the store; contacts no cluster and changes nothing but remembered digests.

    Args:
        targets: only these steps and what they need; empty: all.
        force: these steps are made again although their artifact is there, and so is what follows them.
        source_digest: stands in for the digest of every source (tests pin keys with it).

    Raises:
        ConfigError: an unknown target, a step to force that is not among the targets, an empty or missing source, a
            ref that does not exist, or a step that a kind's own check refuses (a vocabulary that does not fit, an
            impossible parallel size).
    """
    targets, force = _steps(pipeline, "--targets", targets), _steps(pipeline, "--force", force)
    wanted = _wanted(pipeline, targets)
    for name in sorted(set(force) - {step.name for step in wanted}):
        raise ConfigError(
            f"{name!r} is not made here: it is neither among the targets nor needed by them",
            file=pipeline.file,
            key="--force",
            hint=f"add --targets {name}, or leave --targets out",
        )
    planned: dict[str, PlannedStep] = {}
    earlier = Earlier(store, [step.name for step in pipeline.steps])
    with pipeline.secrets.kept():
        for step in wanted:
            planned[step.name] = _plan_step(pipeline, step, planned, store, earlier, force, source_digest)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Plan(pipeline, tuple(planned.values()), str(store.root), f"{pipeline.name}-{now}-{uuid.uuid4().hex[:4]}")


def _steps(pipeline: Pipeline, option: str, names: Sequence[str]) -> list[str]:
    """The steps that an option names, those of its sweeps one by one."""
    for name in names:
        if not pipeline.named(name):
            raise ConfigError(
                f"there is no step {name!r}{suggest(name, pipeline.names)}",
                file=pipeline.file,
                key=option,
                hint=f"steps: {', '.join(pipeline.names)}",
            )
    return [step for name in names for step in pipeline.named(name)]


def _wanted(pipeline: Pipeline, targets: Sequence[str]) -> list[Step]:
    if not targets:
        return list(pipeline.steps)
    wanted: set[str] = set()
    queue = list(targets)
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += [need for need in pipeline.step(name).needs.values() if not need.startswith("ref:")]
    return [step for step in pipeline.steps if step.name in wanted]


def _plan_step(
    pipeline: Pipeline,
    step: Step,
    planned: Mapping[str, PlannedStep],
    store: Store,
    earlier: Earlier,
    force: Sequence[str],
    stand_in: str | None,
) -> PlannedStep:
    where = f"steps.{step.name}"
    needs: dict[str, tuple[str, str]] = {}
    known: dict[str, Facts] = {}
    for name, need in step.needs.items():
        if need.startswith("ref:"):
            needs[name], known[name] = _resolve_ref(pipeline, step, name, need, store)
        else:
            needs[name], known[name] = (need, planned[need].key), planned[need].facts
    source: str | None = None
    facts: Facts = {}
    try:
        if isinstance(step.kind, Source):
            source, facts = (stand_in, {}) if stand_in else step.kind.digest(step.params, store.inventory)
        if (asked := launch_runtime(step.runtime)) is not None:
            launcher_for(asked)  # the cluster's file is there and right; nothing is contacted
        step.kind.check(step.params, step.runtime, known, where)
        facts |= step.kind.facts(step.params, step.runtime, known)
        params = {} if source else step.kind.identity(step.params, step.runtime)
        params = params | step.kind.identity_by_facts(step.params, known)
    except ConfigError as error:
        raise _placed(pipeline, error, where) from error
    except SystemExit as error:  # else the command would end with whatever status the kind's code named
        raise pipeline.error(reason(error), where, f"see {type(step.kind).__name__}") from error
    payload = identity.identity(
        step.kind.name, step.kind.version, params, {name: key for name, (_, key) in needs.items()}, source
    )
    _refuse_secrets(pipeline, step, params)
    key = _key(pipeline, payload, where)
    follows = next((n for n in step.needs.values() if n in planned and planned[n].force), None)
    forced = step.name in force or follows is not None
    action, why, drift = _decide(step.name, step.kind, key, payload, store, earlier)
    if drift and step.cache.on_code_change == "error":
        raise pipeline.error(
            f"the code changed since this artifact was made: {', '.join(drift)}",
            f"{where}.cache.on_code_change",
            "raise the kind's version, or set it to warn or rebuild",
        )
    if action == "reuse" and drift and step.cache.on_code_change == "rebuild":
        action, why, forced = "run", f"the code changed: {', '.join(drift)}", True
    elif action in ("reuse", "damaged") and forced:
        action, why = "run", f"follows {follows}, which is made again" if follows else "asked for by --force"
    twin = next((s for s in planned.values() if s.key == key), None)
    if twin is not None and action == "run":
        action, why = "attach", f"the same as {twin.name}"
    if action == "run":
        _check_refs(pipeline, step, needs, store)
    return PlannedStep(
        step.name, step.kind, step.params, step.runtime, needs, payload, key, action, why, facts, forced, drift
    )


def _resolve_ref(pipeline: Pipeline, step: Step, name: str, ref: str, store: Store) -> tuple[tuple[str, str], Facts]:
    where = f"steps.{step.name}.needs.{name}"
    try:
        entry = store.refs.resolve(ref)
    except ConfigError as error:
        raise pipeline.error(error.message, where, error.hint) from error
    wanted = step.kind.inputs[name]
    if not wanted.takes(entry["type"]):
        raise pipeline.error(f"{step.kind.name} takes a {wanted.type} here, but {ref} is a {entry['type']}", where)
    artifact = store.with_key(entry["key"])
    if artifact is None:
        raise pipeline.error(f"{ref} names an artifact that is not in the store {store.root}", where)
    try:
        facts = artifact.manifest["facts"]
    except UserError as error:
        raise pipeline.error(
            f"{ref} names an artifact that is damaged: {error}", where, _anew(entry["step"])
        ) from error
    origin = f"ref:{entry['name']}@{entry['version']}"
    return (origin, entry["key"]), facts


def _check_refs(pipeline: Pipeline, step: Step, needs: Mapping[str, tuple[str, str]], store: Store) -> None:
    """Refuse a step that would start from a damaged artifact of another pipeline; those of this one are its steps'."""
    for name, (origin, key) in needs.items():
        artifact = store.with_key(key) if origin.startswith("ref:") else None
        if artifact is not None and (damage := artifact.damage()) is not None:
            where, made_by = f"steps.{step.name}.needs.{name}", artifact.manifest["step"]
            raise pipeline.error(f"{origin} names an artifact that is damaged: {damage}", where, _anew(made_by))


def _anew(step: str) -> str:
    return f"make it anew: run the pipeline that made it with --force {step}"


def _decide(
    name: str,
    kind: Kind[Any, Any],
    key: str,
    payload: Mapping[str, Any],
    store: Store,
    earlier: Earlier,
) -> tuple[Action, str, tuple[str, ...]]:
    artifact = store.artifact(kind.name, key)
    if artifact.exists:
        if (damage := artifact.damage()) is not None:
            return "damaged", f"{damage}; make it anew with --force {name}", ()
        code = artifact.manifest["provenance"].get("code")
        drift = tuple(code_drift(code, type(kind))) if isinstance(code, dict) else ()
        why = "there already"
        if drift:
            why += f"; the code changed since ({', '.join(drift[:3])}{' …' if len(drift) > 3 else ''})"
        return "reuse", why, drift
    held = holder(store.state(key))
    if held is not None:
        return "attach", f"being made by process {held['pid']} on {held['host']} (run {held['run']})", ()
    if read_attempt(store.state(key)) is not None:
        return "attach", "its job was submitted by a run that has ended", ()
    return "run", earlier.explain(name, kind.name, payload), ()


def _refuse_secrets(pipeline: Pipeline, step: Step, identity: Mapping[str, Any]) -> None:
    """What enters the key is written into plans and manifests; a value from the environment may be a secret."""
    where = f"steps.{step.name}.params"
    for name in type(step.params).model_fields:
        if not pipeline.secrets.hold(f"{where}.{name}"):
            continue
        given = step.params.model_dump(include={name}, mode="json").get(name)
        if name in step.kind.introduced or (name in identity and identity[name] == given):
            error = enters_the_key(f"{where}.{name}", pipeline.secrets)
            raise pipeline.error(error.message, error.key or where, error.hint)


def _key(pipeline: Pipeline, payload: Mapping[str, Any], where: str) -> str:
    try:
        return identity.key(payload)
    except (TypeError, ValueError) as error:
        message = str(error).removeprefix("$.")
        raise pipeline.error(f"no key can be made: {message}", where) from None


def _placed(pipeline: Pipeline, error: ConfigError, where: str) -> ConfigError:
    """An error of a kind, with the pipeline's file and line added where it names only a key of the step."""
    if error.file is not None:
        return error
    key = error.key or where
    if key.startswith("runtime."):
        key = f"{where}.{key}"
    elif not key.startswith("steps."):
        key = f"{where}.params.{key}"
    return pipeline.error(error.message, key, error.hint)
