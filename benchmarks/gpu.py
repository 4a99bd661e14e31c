"""What one GPU does: ``make gpu``, or ``python -m benchmarks.gpu``.

First every test that is marked gpu, then rows, the ones worth most first, each printed as soon as it is known:

- ``train``: forward and backward of InternLM2's shapes of 1.8 and 7 billion parameters in bfloat16, on documents of
  2048, 8192 and 32768 tokens (gpu_train.py says what is counted): tokens a second, MFU with causal attention as it is,
  the most memory, and how it was run;
- ``decode``: 1, 8 and 32 prompts of 512 tokens and 128 more (gpu_decode.py): a CUDA graph of one step and `generate`;
- the same by transformers with its best attention here: flash-attn if it is installed, else SDPA; and compiled.

All that is asked for ends within ``--minutes``: a row that would not fit into what is left is named and left out, one
that has no room in memory is said in a line, and one that hangs or breaks is ended with its process.

It needs torch for CUDA and, of packages that torch does not bring, numpy, pydantic, pyyaml, pytest, pytest-timeout and
hypothesis; transformers for the rows beside it. Nothing is fetched. Exit status: 0; 1 if a test or a row failed; 3
where there is no GPU or a package is missing, which is said in one line (make itself ends with 2 then, and says 3).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.gpu_worker import Task, Worker
from benchmarks.results import Row, judged, output_file

ROOT = Path(__file__).parents[1]
MINUTES = 9.0
NO_GPU = 3

NEEDED = {"torch": "torch", "numpy": "numpy", "pydantic": "pydantic", "yaml": "pyyaml", "pytest": "pytest",
          "pytest_timeout": "pytest-timeout", "hypothesis": "hypothesis"}  # fmt: skip
"""Modules, and the packages that bring them."""

SPARE = 15.0
"""Seconds that are kept for ending."""

BATCHES, NEW = (1, 8, 32), 128
LENGTHS = {2048: 8, 8192: 2, 32768: 1}
"""Tokens of a document, and how many are a step: as many tokens as keep a GPU busy."""


def plan() -> list[Task]:
    """All rows, those worth most first."""

    def train(shape: str, length: int, seconds: tuple[float, float], more: str = "") -> list[Task]:
        pair = zip((f"evo{more}", f"transformers{more}"), seconds, strict=True)
        return [Task("train", who, shape, length, LENGTHS[length], taken) for who, taken in pair]

    def decode(shape: str, seconds: dict[str, float]) -> list[Task]:
        return [Task("decode", who, shape, batch, NEW, taken) for batch in BATCHES for who, taken in seconds.items()]

    return [
        Task("products", "torch.mm", size=8192, seconds=5),
        *train("1.8B", 2048, (15, 20)),
        *train("7B", 2048, (20, 25)),
        *decode("1.8B", {"evo": 8, "transformers": 18}),
        *train("1.8B", 8192, (15, 20)),
        *train("7B", 8192, (20, 25)),
        *train("1.8B", 32768, (20, 25)),
        *train("7B", 32768, (40, 45)),
        *decode("7B", {"evo": 12, "transformers": 22}),
        *decode("1.8B", {"evo generate": 10}),
        *train("1.8B", 2048, (60, 90), " compiled"),
        *decode("1.8B", {"transformers static": 90}),
    ]


class Budget:
    """Seconds that are left.

    Args:
        clock: as `time.monotonic`.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        """Until its end; negative behind it."""
        return self._end - self._clock()

    def limit(self, task: Task) -> float:
        """Seconds that a task may take: what is left, but not all of it where it hangs; 0 where it would not fit."""
        if task.seconds > self.left:
            return 0.0
        return min(self.left, 20 + 3 * task.seconds)


# --- rows


class Board:
    """Takes answers, and says each in a line as soon as it is there.

    Attributes:
        rows: what was found so far.
        failed: whether something failed.
        passed_over: how many have no figure: left out, without room, failed.
    """

    def __init__(self, say: Callable[[str], object] = lambda line: print(line, flush=True)) -> None:
        self.rows: list[Row] = []
        self.failed, self.passed_over = False, 0
        self._say = say
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def note(self, task: Task, found: dict[str, Any]) -> None:
        """An answer to a task."""
        if found.get("device") and not self._known:
            peak = found.get("peak")
            known = f"{peak / 1e12:g} teraflops at most by its maker" if peak else "its peak is not known: no MFU"
            self._say(f"{found['device']}, {known}")
        if "does_not_fit" in found:
            self.passed_over += 1
            self._say(f"{task.name}: does not fit into this memory ({found['does_not_fit']})")
            return
        if "error" in found:
            self.failed, self.passed_over = True, self.passed_over + 1
            self._say(f"{task.name} failed: {found['error']}")
            return
        self._known[task.row, task.contestant] = found
        self._say(f"{task.name}: {', '.join(self._said(task, found))}")
        self.rows.append(self._row(task, found))

    def leave_out(self, task: Task, why: str) -> None:
        """A task that nobody is asked."""
        self.passed_over += 1
        self._say(f"{task.name}: left out, {why}")

    def _said(self, task: Task, found: dict[str, Any]) -> Iterator[str]:
        if "tokens_per_second" in found:
            yield f"{found['tokens_per_second']:,.0f} tokens/s"
        else:
            yield f"{found['flops'] / 1e12:.0f} teraflops"
        if found.get("mfu") is not None:
            yield f"MFU {found['mfu']:.1%}"
        if "milliseconds" in found:
            yield f"{found['milliseconds']:.2f} ms a step"
            yield f"reads {found['bytes_per_second'] / 1e9:,.0f} GB/s of weights"
        if found.get("bytes"):
            yield f"{found['bytes'] / 1e9:.1f} GB at most"
        if "how" in found:
            yield found["how"]
        yield from self._beside(task, found)

    def _beside(self, task: Task, found: dict[str, Any]) -> Iterator[str]:
        """What there is to say of ours and this peer's together."""
        ours = self._ours(task)
        if ours is None:
            return
        yield f"evo is {ours['tokens_per_second'] / found['tokens_per_second']:.2f}x"
        yield self._agreement(ours, found)

    def _ours(self, task: Task) -> dict[str, Any] | None:
        who, _, how = task.contestant.partition(" ")
        if who == "evo" or task.kind == "products":
            return None
        names = (f"evo {how}", "evo") if how else ("evo",)
        return next((self._known[task.row, name] for name in names if (task.row, name) in self._known), None)

    @staticmethod
    def _agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
        if "loss" in ours:
            return f"losses differ by {abs(ours['loss'] - theirs['loss']) / abs(ours['loss']):.0e}"
        from benchmarks.gpu_decode import alike

        return f"the same tokens for {alike(ours['tokens'], theirs['tokens']):.0%} of the way"

    def _row(self, task: Task, found: dict[str, Any]) -> Row:
        """As the page has it: a peer's row holds ours beside it."""
        ours, note = self._ours(task), ", ".join(list(self._said(task, found))[1:])
        if "flops" in found:
            return judged("gpu", task.row, found["flops"] / 1e12, "teraflops", note=note)
        if ours is None:
            return judged("gpu", task.name, found["tokens_per_second"], "tokens/s", note=note)
        more: dict[str, Any] = {"peer": task.contestant, "peer_value": found["tokens_per_second"], "note": note}
        return judged("gpu", task.row, ours["tokens_per_second"], "tokens/s", **more)


def run(
    tasks: Iterable[Task], budget: Budget, board: Board, kind: str = "cuda", save: Callable[[], object] = lambda: None
) -> None:
    """Have every task done that fits into the budget.

    Args:
        kind: of device.
        save: called after each.
    """
    worker = Worker(kind)
    missing = importlib.util.find_spec("transformers") is None
    try:
        for task in tasks:
            if missing and task.contestant.startswith("transformers"):
                board.leave_out(task, "transformers is not installed")
            elif not (limit := budget.limit(task)):
                board.leave_out(task, f"it takes about {task.seconds:.0f} s, and {max(0, budget.left):.0f} s are left")
            else:
                board.note(task, worker.ask(task, limit, budget.left))
            save()
    finally:
        worker.end()


# --- tests, and what has to be there


def lacking() -> str | None:
    """Why nothing can be measured here, in a line; None where all is there."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch: name the interpreter that has it, make gpu PYTHON=..."
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        listed = " ".join(missing)
        return (
            f"{sys.executable} lacks {listed}: put them into a folder (pip install --target FOLDER {listed}), then "
            "make gpu GPU_SITE=FOLDER"
        )
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"no GPU here: torch {torch.__version__} {f'for CUDA {built} finds none' if built else 'knows no CUDA'}"
    return None


def marked() -> list[str]:
    """Files of tests of which some are marked gpu. Others may need packages that are not here."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def run_tests(seconds: float) -> str | None:
    """Run every test that is marked gpu. Returns why they did not all pass, or None."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", *marked()]
    status = processes.run(command, seconds)
    if status is None:
        return f"they took longer than {seconds:.0f} s and were ended"
    return None if status == 0 else f"pytest ended with status {status}"


def main() -> None:
    """Tests, rows, and the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"that all of it may take ({MINUTES:g})")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="rows whose names hold these words")
    parser.add_argument("--no-tests", action="store_true", help="rows alone")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the rows there, after each")
    arguments = parser.parse_args()
    processes.sigterm_is_ctrl_c()
    budget, board = Budget(60 * arguments.minutes - SPARE), Board()
    if (why := lacking()) is not None:
        print(why)
        sys.exit(NO_GPU)
    if not arguments.no_tests and (why := run_tests(budget.left / 2)) is not None:
        board.failed = True
        print(f"tests marked gpu failed: {why}", flush=True)
    tasks = [task for task in plan() if all(word in task.name for word in arguments.only or ())]

    def save() -> None:
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([row.as_json() for row in board.rows], indent=1))

    run(tasks, budget, board, save=save)
    taken = 60 * arguments.minutes - SPARE - budget.left
    print(f"{len(board.rows)} of {len(tasks)} rows in {taken:.0f} s, {board.passed_over} without a figure")
    sys.exit(int(board.failed))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nended; --json has the rows that are above")
        sys.exit(130)
