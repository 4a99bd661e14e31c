"""What the engine adds to its steps: ``python -m benchmarks.engine [--rounds 5]``.

Whole commands are timed, imports and all: 20 steps that are reused, and 300 trivial ones made and reused, without a
server and with one that is up already; and a plan of 300 steps whose parameters have all changed. The peer is a bare
Prefect flow of as many tasks that do nothing, against the same server, with the same edges.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Row, judged, output_file
from flows.orchestration.server import free_port, running_server

FEW, MANY = 20, 300
QUICK = ("--rounds", "1")
ALONE, BARE_PREFECT = "no server", "bare Prefect"
BAR_SECONDS = 2.0
"""For the whole command with 20 reused steps and no server."""

KIND = """\
from typing import Any, ClassVar
from tasks import kind
from tasks.kind import Input, Kind, StepContext


class Params(kind.Params):
    number: int = 0


class Trivial(Kind[Params, kind.Runtime]):
    name = "bench.trivial"
    inputs: ClassVar = {"before": Input("trivial", optional=True)}
    output = "trivial"
    params_type = Params

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        (ctx.folder / "number.txt").write_text(str(ctx.params.number))
        return {"number": ctx.params.number}
"""

BARE = """\
import sys
from prefect import flow, task
from prefect.cache_policies import NO_CACHE


@task(cache_policy=NO_CACHE, persist_result=False)
def trivial(number, before):
    return number


@flow
def bare():
    futures = []
    for number in range(int(sys.argv[1])):
        futures.append(trivial.submit(number, futures[number - 10] if number >= 10 else None))
    for future in futures:
        future.wait()


bare()
"""


class Bench:
    """A folder with pipelines of trivial steps: each needs the tenth before it."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        (folder / "trivial_kind.py").write_text(KIND)
        (folder / "bare.py").write_text(BARE)
        for steps in (FEW, MANY):
            lines = [f"pipeline: p{steps}", "vars: {more: 0}", "steps:"]
            for number in range(steps):
                needs = f"needs: {{before: s{number - 10}}}, " if number >= 10 else ""
                params = f'params: {{number: "{number}${{vars.more}}"}}'
                lines.append(f'  s{number}: {{uses: "trivial_kind:Trivial", {needs}{params}}}')
            (folder / f"p{steps}.yaml").write_text("\n".join(lines))

    def evo(self, *words: str, root: str, env: Mapping[str, str] = {}) -> float:
        """Seconds of a command of evo on a store."""
        return self._timed(["-m", "flows.cli", *words, "--root", str(self.folder / root)], env)

    def bare(self, steps: int, env: Mapping[str, str]) -> float:
        """Seconds of a bare flow of Prefect's."""
        return self._timed(["bare.py", str(steps)], {**env, "PREFECT_LOGGING_LEVEL": "ERROR"})

    def median(self, seconds: Sequence[float]) -> str:
        """The median of some rounds, and their range."""
        return f"{statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})"

    def _timed(self, words: Sequence[str], env: Mapping[str, str]) -> float:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "EVO_"))}
        own |= {"DO_NOT_TRACK": "1", "PREFECT_HOME": str(self.folder / "client"), **env}
        began = time.monotonic()
        subprocess.run([sys.executable, *words], cwd=self.folder, env=own, stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - began


def without_server(bench: Bench) -> dict[str, float]:
    """Time the engine alone. Returns medians in seconds, by what was done."""
    few, many = ("run", f"p{FEW}.yaml", "--no-server"), ("run", f"p{MANY}.yaml", "--no-server")
    bench.evo(*few, root="alone")
    reused = [bench.evo(*few, root="alone") for _ in range(bench.rounds)]
    print(f"no server     {FEW:4} reused        {bench.median(reused)}  bar {BAR_SECONDS:g} s")
    made = [bench.evo(*many, root=f"alone-{number}") for number in range(bench.rounds)]
    print(f"no server     {MANY:4} made          {bench.median(made)}  {_each(made)}")
    again = [bench.evo(*many, root="alone-0") for _ in range(bench.rounds)]
    print(f"no server     {MANY:4} reused        {bench.median(again)}")
    plans = [bench.evo("plan", many[1], "--set", "vars.more=1", root="alone-0") for _ in range(bench.rounds)]
    print(f"evo plan      {MANY:4} changed       {bench.median(plans)}", flush=True)
    found = {f"{FEW} reused": reused, f"{MANY} made": made, f"{MANY} reused": again, f"{MANY} planned": plans}
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def with_server(bench: Bench) -> dict[str, float]:
    """Time runs that report to a server, beside bare flows that do. Returns medians in seconds, by what was done."""
    found: dict[str, float] = {}
    with running_server(bench.folder / "server", free_port()) as api:
        env = {"PREFECT_API_URL": api}
        bench.bare(FEW, env)
        for steps, rounds in ((FEW, bench.rounds), (MANY, min(3, bench.rounds))):
            file = f"p{steps}.yaml"
            bare, made, reused = list[float](), list[float](), list[float]()
            for number in range(rounds):  # in turns: a server's database grows
                bare.append(bench.bare(steps, env))
                made.append(bench.evo("run", file, root=f"server-{number}", env=env))
                reused.append(bench.evo("run", file, root=f"server-{number}", env=env))
            print(f"bare Prefect  {steps:4} tasks         {bench.median(bare)}")
            found[f"{steps} {BARE_PREFECT}"] = statistics.median(bare)
            for what, seconds in (("made", made), ("reused", reused)):
                ratio = statistics.median(seconds) / statistics.median(bare)
                print(
                    f"with a server {steps:4} {what:<13} {bench.median(seconds)}  ratio to bare {ratio:.2f}", flush=True
                )
                found[f"{steps} {what}"] = statistics.median(seconds)
    return found


def rows(figures: dict[str, dict[str, float]]) -> Iterator[Row]:
    """Of what is written: the engine alone, and with a server beside bare flows."""
    for name, seconds in figures["alone"].items():
        bar = BAR_SECONDS if name == f"{FEW} reused" else None
        yield judged("engine", f"no server, steps: {name}", seconds, "s", bar=bar, at_most=True)
    served = figures.get("served", {})
    for steps in (FEW, MANY):
        for what in ("made", "reused"):
            if (name := f"{steps} {what}") in served:
                more: dict[str, Any] = {"peer": BARE_PREFECT, "peer_value": served[f"{steps} {BARE_PREFECT}"]}
                yield judged("engine", f"with a server, steps: {name}", served[name], "s", **more, less_is_better=True)


def _each(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) / MANY * 1e3:.0f} ms a step"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.rounds)
        found = {"alone": without_server(bench)}
        _write(options.json, found)
        found["served"] = with_server(bench)
        _write(options.json, found)


def _write(path: Path | None, found: Any) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
