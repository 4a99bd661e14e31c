"""``evo estimate``: what a layout takes on so many GPUs, and the layouts worth having."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evo_core.command_line.config_options import ConfigFile, Set
from evo_core.command_line.program import plain_app, run
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.estimate.assumptions import Assumptions
    from evo_core.estimate.found import Found

app = plain_app()


@app.command()
def estimate_command(
    config: ConfigFile,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs of the job, a rank on each.", show_default=False)],
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Of a GPU, in 10^9 bytes. [default: the chip's]")
    ] = None,
    chip: Annotated[str, typer.Option(metavar="NAME", help="a100, h100, h200, ...: what its maker states.")] = "a100",
    node_gpus: Annotated[int, typer.Option(metavar="N", help="GPUs of a machine.")] = 8,
    network: Annotated[
        float | None,
        typer.Option(metavar="GB/S", help="What a machine sends to others, GB a second. [default: the chip's usual]"),
    ] = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a job needs, and find the layouts worth having.

    It takes no GPU. Memory and what is sent are counted by running the code of one rank without memory. Time is a
    model, whose assumptions are printed. A layout that is proposed has the file's tokens a step, is legal and fits.

    The exit status is 2 where no layout fits or the input is wrong.
    """
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) != 0:
        return  # one process says it for all
    from evo_core.config import load_config

    assumed = _assumed(chip, node_gpus, network)
    _above_zero(gpus, "--gpus")
    memory = assumed.chip.memory if gpu_memory is None else _above_zero(gpu_memory, "--gpu-memory")
    cfg = load_config(config, set_ or [])
    _of_a_shipped_type(cfg)
    _Report(config, cfg, gpus, memory * 10**9, assumed, as_json=json_).make()


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.estimate") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's."""
    run(app, words, program)


def _assumed(name: str, node: int, network: float | None) -> Assumptions:
    from evo_core.estimate.assumptions import Assumptions
    from evo_core.estimate.chips import GB
    from evo_core.estimate.chips import chip as chip_of

    chip = chip_of(name)
    _above_zero(node, "--node-gpus")
    total = chip.network * node if network is None else _above_zero(network, "--network")
    return Assumptions(chip, node, total * GB)


def _above_zero(number: float, key: str) -> float:
    if not 0 < number < float("inf"):  # no number is neither
        raise ConfigError(f"{number:g} must be above 0", key=key)
    return number


def _of_a_shipped_type(cfg: TrainConfig) -> None:
    from evo_core.config import ModelConfig

    if not isinstance(cfg.model, ModelConfig):
        message = f"{cfg.model_type} is a model type of your own, whose operations are not known here"
        raise ConfigError(message, key="model_type", hint="measure a short run: docs/training.md")


class _Report:
    """The file's own layout, then the search.

    Args:
        memory: bytes of a GPU.
    """

    def __init__(
        self, file: str, cfg: TrainConfig, gpus: int, memory: float, assumed: Assumptions, *, as_json: bool
    ) -> None:
        self._file, self._cfg, self._gpus, self._memory = file, cfg, gpus, memory
        self._assumed, self._as_json = assumed, as_json
        self._peak = assumed.chip.teraflops(cfg.model.dtype_name)

    def make(self) -> None:
        """Print it."""
        from evo_core.estimate.search import search
        from evo_core.estimate.show import best_lines

        began = time.monotonic()
        own, refused = self._own()
        searched = search(self._cfg, self._gpus, self._memory, self._assumed, progress=self._told)
        seconds = time.monotonic() - began
        if self._as_json:
            print(json.dumps(self._data(own, refused, searched, seconds), indent=1))
            return
        self._say(f"the best of {searched.legal} legal layouts, {searched.runs} of them run, in {seconds:.0f} s")
        self._say(*best_lines(self._cfg, searched))
        names = self._assumed.lines(self._peak, self._cfg.model.dtype_name)
        self._say("times are a model's, nothing of them is measured. It assumes", *(f"- {line}" for line in names))

    def _own(self) -> tuple[Found | None, str | None]:
        """The file's layout as it is, or why it is none on so many GPUs."""
        from evo_core.estimate.found import find, name_of
        from evo_core.estimate.rank_cost import quick_cost
        from evo_core.estimate.show import layout_lines

        memory, chip = f"{self._memory / 10**9:g} GB", self._assumed.chip.name
        self._say(f"{self._file} on {self._gpus} GPUs ({chip}, {memory} each)")
        try:
            self._cfg.check_world(self._gpus)
        except ConfigError as error:
            self._say(f"as it is: {error}", "")
            return None, str(error)
        own = find(self._cfg, self._gpus, self._assumed, quick_cost)
        self._say(f"as it is: {name_of(own.cfg, own.degrees)}; {own.time.tokens:,} tokens a step")
        self._say(*layout_lines(own, self._memory, self._assumed), "")
        return own, None

    def _say(self, *lines: str) -> None:
        if not self._as_json:
            print(*lines, sep="\n", flush=True)

    def _told(self, runs: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{runs} layouts run", end="\r", file=sys.stderr, flush=True)

    def _data(self, own: Found | None, refused: str | None, searched: Any, seconds: float) -> dict[str, Any]:
        from evo_core.estimate.show import as_data, best_data

        cfg, memory, held_back = self._cfg, self._memory, searched.held_back
        return {
            "config": self._file,
            "gpus": self._gpus,
            "gpu_memory": memory,
            "own": {"refused": refused} if own is None else as_data(own, memory),
            "best": [best_data(cfg, x, found, held_back.get(x.kind), memory) for x, found in searched.best],
            "legal": searched.legal,
            "runs": searched.runs,
            "seconds": seconds,
            "assumptions": list(self._assumed.lines(self._peak, cfg.model.dtype_name)),
        }
