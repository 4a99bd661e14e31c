"""``python -m evo_core.generate --config FILE``: the `generation` block of a configuration, carried out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from evo_core.command_line.config_options import ConfigFile, Seed, Set, overrides
from evo_core.command_line.launcher_options import Backend, Host, Launcher, Port
from evo_core.command_line.program import plain_app
from evo_core.command_line.program import run as run_program
from evo_core.errors import CheckpointError, ConfigError
from evo_core.job import report_progress

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.generate.continuation import Generation
    from evo_core.parallel.process_group import Ranks


app = plain_app()


@app.command()
def generate_command(
    config: ConfigFile,
    set_: Set = None,
    launcher: Launcher = None,
    backend: Backend = None,
    seed: Seed = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Let a model continue prompts.

    The `generation` block of the configuration says how. On several ranks (torchrun, srun) every rank holds the model
    and takes its share of the prompts; rank 0 writes the one output.
    """
    from evo_core.config import load_config
    from evo_core.config.locations import unprefixed_save

    cfg = load_config(config, overrides(set_, seed))  # before torch is imported: a mistake is told at once
    if cfg.generation.output_folder is None:
        raise ConfigError("is required", file=config, key="generation.output_folder")
    unprefixed = unprefixed_save(cfg, "generation.output_folder")

    from evo_core.parallel.process_group import ranks

    with ranks(launcher, backend, host=host, port=port) as joined:
        if unprefixed is not None and joined.rank == 0:
            print(f"warning: {unprefixed}", file=sys.stderr, flush=True)
        run(cfg, joined)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.generate") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's."""
    run_program(app, words, program)


def run(cfg: TrainConfig, ranks: Ranks) -> None:
    """Load the model, continue every prompt, write the output.

    Raises:
        CheckpointError, ConfigError, DataError: naming what is missing or wrong.
    """
    from evo_core.config import local_path
    from evo_core.generate.continuation import generate
    from evo_core.generate.output import write_samples
    from evo_core.generate.prompt_ids import ending_ids
    from evo_core.generate.prompts import read_prompts
    from evo_core.parallel.collectives import gather_objects, on_first
    from evo_core.parallel.one_job import check_one_job, settings_of
    from evo_core.results_folder import check_folder, writing
    from evo_core.weights.loading import load_model, resolve

    check_one_job(settings_of(cfg))
    generation = cfg.generation
    saved = generation.ckpt_folder or cfg.ckpt.save_ckpt_folder
    if saved is None:
        hint = "set it, or ckpt.save_ckpt_folder"
        raise ConfigError("no checkpoint is named", key="generation.ckpt_folder", hint=hint)
    folder = on_first(lambda: resolve(saved))
    model, tokenizer = load_model(folder, ranks.device, check=ranks.local_rank == 0)
    dynamic_ntk = _settle_rope(cfg, model)
    tokens = generation.data_folder or cfg.data.valid_folder
    sets = read_prompts(generation.prompts, tokens, ending_ids(generation.eos_id, model, tokenizer))

    output = local_path(str(generation.output_folder))
    on_first(lambda: check_folder(output, "generation.output_folder"))

    prompts: list[Any] = [prompt for part in sets for prompt in part.prompts]
    mine = range(ranks.rank, len(prompts), ranks.world_size)
    elsewhere = {"ckpt_folder", "prompts", "data_folder", "output_folder"}
    own = generate(
        model,
        tokenizer,
        [prompts[number] for number in mine],
        seed=cfg.seed,
        indices=mine,
        dynamic_ntk=dynamic_ntk,
        progress=_progress(ranks.world_size, len(prompts)),
        **generation.model_dump(exclude=elsewhere),
    )
    shares = gather_objects(own)
    if ranks.rank != 0:
        return
    results = [shares[number % ranks.world_size][number // ranks.world_size] for number in range(len(prompts))]
    if results and all(result.error for result in results):
        raise CheckpointError(str(results[0].error), file=folder)
    rest = iter(results)
    with writing(output, "generation.output_folder"):
        write_samples(output, [(part.name, [next(rest) for _ in part.prompts]) for part in sets])
    report_progress(len(prompts), len(prompts), "prompts")
    print(summary(results), f"model: {folder}", f"samples: {output / 'samples.md'}", sep="\n", flush=True)


def _settle_rope(cfg: TrainConfig, model: Any) -> bool | None:
    """Dynamic NTK is chosen when generating: what the configuration states goes before what the model was saved with.

    Returns:
        Whether it is on; None leaves it to the model's own settings.
    """
    from evo_core.config.fields import is_set

    if is_set(cfg, "model.max_position_embeddings") and hasattr(model, "cfg"):
        model.cfg = model.cfg.model_copy(update={"max_position_embeddings": cfg.model.max_position_embeddings})
    return cfg.model.use_dynamic_ntk_rope if is_set(cfg, "model.use_dynamic_ntk_rope") else None


def _progress(world_size: int, total: int) -> Callable[[int, int], None]:
    """Reports rank 0's share, taken for that of all; the last prompt counts once the output is written."""
    started = time.monotonic()

    def report(prompts: int, tokens: int) -> None:
        rate = tokens * world_size / max(time.monotonic() - started, 1e-9)
        done = min(prompts * world_size, total - 1)
        report_progress(done, total, "prompts", tokens=tokens * world_size, tokens_per_second=rate)

    return report


def summary(results: Sequence[Generation]) -> str:
    """One line on what was generated, and where there are some, one on prompts that left no room."""
    tokens = sum(len(result.ids) for result in results)
    finished = sum(result.finished for result in results)
    line = f"{len(results)} prompts continued with {tokens} tokens; {finished} came to an end of their own"
    full = sum(not result.ids and not result.error for result in results)
    if full:
        line += f"\n{full} of {len(results)} prompts are max_length long or longer and were not continued"
    failed = [number for number, result in enumerate(results, 1) if result.error]
    if failed:
        line += f"\n{len(failed)} of {len(results)} prompts failed; prompt {failed[0]}: {results[failed[0] - 1].error}"
    return line
