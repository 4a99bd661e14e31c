"""``python -m evo_core.generate --config FILE``: the `generation` block of a configuration, carried out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    tensor: Annotated[
        int | None,
        typer.Option(metavar="N", help="Ranks that share each layer. [default: the configuration's parallel.tensor]"),
    ] = None,
    pipeline: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Stages that the layers are dealt out over. [default: the configuration's parallel.pipeline]",
        ),
    ] = None,
) -> None:
    """Let a model continue prompts.

    The `generation` block of the configuration says how. On several ranks (torchrun, srun) as many of them as --tensor
    times --pipeline say hold the model together and take their share of the prompts; rank 0 writes the one output.
    """
    from evo_core.config import load_config
    from evo_core.config.locations import unprefixed_save

    given = {"tensor": tensor, "pipeline": pipeline}
    not_asked_for = [f"parallel.{name}=1" for name, size in given.items() if size is not None]  # the file's
    # Before torch is imported: a mistake is told at once.
    cfg = load_config(config, [*overrides(set_, seed), *not_asked_for], inference=True)
    if cfg.generation.output_folder is None:
        raise ConfigError("is required", file=config, key="generation.output_folder")
    unprefixed = unprefixed_save(cfg, "generation.output_folder")

    from evo_core.parallel.process_group import ranks

    with ranks(launcher, backend, host=host, port=port) as joined:
        if unprefixed is not None and joined.rank == 0:
            print(f"warning: {unprefixed}", file=sys.stderr, flush=True)
        run(cfg, joined, tensor, pipeline)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.generate") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's."""
    run_program(app, words, program)


def run(cfg: TrainConfig, ranks: Ranks, tensor: int | None = None, pipeline: int | None = None) -> None:
    """Load the model, continue every prompt, write the output.

    Args:
        tensor: ranks that share each layer; None takes the configuration's ``parallel.tensor.size``.
        pipeline: stages that the layers are dealt out over; None takes its ``parallel.pipeline.size``.

    Raises:
        CheckpointError, ConfigError, DataError: naming what is missing or wrong.
    """
    from evo_core.config import local_path
    from evo_core.generate.continuation import generate
    from evo_core.generate.output import write_samples
    from evo_core.generate.prompt_ids import ending_ids
    from evo_core.generate.prompts import read_prompts
    from evo_core.parallel.collectives import failing_together, gather_on_first, on_first
    from evo_core.parallel.inference import inference_mesh
    from evo_core.parallel.one_job import check_one_job, options_of, settings_of
    from evo_core.results_folder import check_folder, writing
    from evo_core.storage.files import below
    from evo_core.storage.location import Location, is_remote
    from evo_core.weights.loading import load_model, read_config, resolve_everywhere

    check_one_job(settings_of(cfg) | options_of(tensor=tensor, pipeline=pipeline))
    generation = cfg.generation
    saved = generation.ckpt_folder or cfg.ckpt.save_ckpt_folder
    if saved is None:
        hint = "set it, or ckpt.save_ckpt_folder"
        raise ConfigError("no checkpoint is named", key="generation.ckpt_folder", hint=hint)
    folder = resolve_everywhere(saved)
    share, share_key = (cfg.parallel.tensor.size, "parallel.tensor.size") if tensor is None else (tensor, "--tensor")
    stages, stages_key = (
        (cfg.parallel.pipeline.size, "parallel.pipeline.size") if pipeline is None else (pipeline, "--pipeline")
    )
    keys = (share_key, stages_key)
    mesh = inference_mesh(read_config(folder).model, share, stages, device=ranks.device, keys=keys)
    model, tokenizer = load_model(folder, ranks.device, mesh=mesh, check=ranks.local_rank == 0)
    dynamic_ntk = _settle_rope(cfg, model)
    tokens = generation.data_folder or cfg.data.valid_folder
    ending = ending_ids(generation.eos_id, model, tokenizer)
    sets = on_first(lambda: read_prompts(generation.prompts, tokens, ending))  # ranks of one copy must see them alike

    wanted = str(generation.output_folder)
    output: Location = wanted if is_remote(wanted) else local_path(wanted)
    on_first(lambda: check_folder(output, "generation.output_folder"))

    prompts: list[Any] = [prompt for part in sets for prompt in part.prompts]
    mine = range(mesh.data.rank, len(prompts), mesh.data.size)
    elsewhere = {"ckpt_folder", "prompts", "data_folder", "output_folder"}
    with failing_together():  # a prompt that one copy of the model refuses ends the others too
        own = generate(
            model,
            tokenizer,
            [prompts[number] for number in mine],
            seed=cfg.seed,
            indices=mine,
            dynamic_ntk=dynamic_ntk,
            progress=_progress(mesh.data.size, len(prompts)),
            mesh=mesh,
            **generation.model_dump(exclude=elsewhere),
        )
    is_first_of_copy = mesh.pipeline.rank == mesh.tensor.rank == 0
    gathered = gather_on_first(own if is_first_of_copy else None)

    def write() -> None:
        shares = [share for share in gathered if share is not None]
        results = [shares[number % mesh.data.size][number // mesh.data.size] for number in range(len(prompts))]
        if results and all(result.error for result in results):
            raise CheckpointError(str(results[0].error), file=folder)
        rest = iter(results)
        with writing(output, "generation.output_folder"):
            write_samples(output, [(part.name, [next(rest) for _ in part.prompts]) for part in sets])
        report_progress(len(prompts), len(prompts), "prompts")
        print(summary(results), f"model: {folder}", f"samples: {below(output, 'samples.md')}", sep="\n", flush=True)

    on_first(write)  # what goes wrong there ends all ranks


def _settle_rope(cfg: TrainConfig, model: Any) -> bool | None:
    """Dynamic NTK is chosen when generating: what the configuration states goes before what the model was saved with.

    Returns:
        Whether it is on; None leaves it to the model's own settings.
    """
    from evo_core.config.fields import is_set

    stated = [key for key in ("max_position_embeddings", "dynamic_ntk_factor") if is_set(cfg, f"model.{key}")]
    if hasattr(model, "cfg"):
        model.cfg = model.cfg.model_copy(update={key: getattr(cfg.model, key) for key in stated})
    return cfg.model.use_dynamic_ntk_rope if is_set(cfg, "model.use_dynamic_ntk_rope") else None


def _progress(copies: int, total: int) -> Callable[[int, int], None]:
    """Reports the share of the model's copy on rank 0, taken for that of all; the last prompt counts once the output
    is written."""
    started = time.monotonic()

    def report(prompts: int, tokens: int) -> None:
        rate = tokens * copies / max(time.monotonic() - started, 1e-9)
        done = min(prompts * copies, total - 1)
        report_progress(done, total, "prompts", tokens=tokens * copies, tokens_per_second=rate)

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
