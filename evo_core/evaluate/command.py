"""``python -m evo_core.evaluate``: a model on held-out text and on task files, and two evaluations side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evo_core.command_line.launcher_options import Backend, Host, Launcher, Port
from evo_core.command_line.program import plain_app, run
from evo_core.errors import ConfigError
from evo_core.evaluate.results import read, table, write
from evo_core.job import report_progress
from evo_core.results_folder import check_folder
from evo_core.storage.location import check_location, local_path

if TYPE_CHECKING:
    from evo_core.parallel.mesh import Mesh
    from evo_core.parallel.process_group import Ranks

app = plain_app()


@dataclass(frozen=True)
class _Asked:
    """What to evaluate, on what: the options of the command, with paths in the place of what was written for them."""

    model: str
    data: Path | None
    tasks: Path | None
    baselines: Path | None
    max_length: int | None
    pack_tokens: int
    tensor: int
    pipeline: int


@app.command()
def evaluate_command(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT", help="A checkpoint, a folder of checkpoints (the newest), or another system's folder."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Held-out token shards, one sub-folder per type.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="FILE_OR_FOLDER", help="Task files in lm-eval's YAML form.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two files that --output wrote.")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="JSON file for the results.")] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Training token shards: unigram and bigram models of them are scored on --data too.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="That --tasks are read with. [default: the model's trained length]"),
    ] = None,
    pack_tokens: Annotated[int, typer.Option(metavar="TOKENS", help="Of --tasks in one forward pass.")] = 8192,
    tensor: Annotated[int, typer.Option(metavar="N", help="Ranks that share each layer of the model.")] = 1,
    pipeline: Annotated[int, typer.Option(metavar="N", help="Stages that the layers are dealt out over.")] = 1,
    launcher: Launcher = None,
    backend: Backend = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Evaluate a model on held-out text and on task files.

    \b
    --model CKPT --data FOLDER      loss, perplexity and accuracy per type, with
                                    --baselines beside n-gram models
    --model CKPT --tasks PLACE      multiple-choice, cloze and generation tasks
                                    from local files, through lm-eval
    --compare A.json B.json         two results that --output wrote
    """
    given = {"model": model, "data": data, "tasks": tasks, "baselines": baselines}
    _check(given, compare, max_length, pack_tokens)
    data_, tasks_, baselines_ = _path(data, "--data"), _path(tasks, "--tasks"), _path(baselines, "--baselines")
    if model is not None:
        check_location(model, "--model")
    results = _path(output, "--output")
    if results is not None:
        if results.is_dir():
            raise ConfigError("is a folder, not a file to write", file=results, key="--output")
        check_folder(results.parent, "--output")
    if model is None:
        from evo_core.evaluate.compare import comparison_table, record

        a, b = (read(local_path(file, "--compare")) for file in compare or ())
        if results is not None:
            write(results, record(a, b))
        print(comparison_table(a, b))
        return
    if tasks_ is not None:
        from evo_core.evaluate.harness.run import require_harness

        require_harness()
    asked = _Asked(model, data_, tasks_, baselines_, max_length, pack_tokens, tensor, pipeline)
    from evo_core.parallel.process_group import ranks

    with ranks(launcher, backend, host=host, port=port) as joined:
        scores = _score(asked, joined)
        if joined.rank == 0:
            if results is not None:
                write(results, scores)
            print(table(scores), flush=True)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.evaluate") -> None:
    """Carry out a command line; rank 0 writes the file and prints the table."""
    run(app, words, program)


def _check(
    given: Mapping[str, str | None], compare: tuple[str, str] | None, max_length: int | None, pack_tokens: int
) -> None:
    """Refuse combinations that ask for nothing, or for two things at once."""
    if compare is not None:
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ConfigError("reads results that are there already", key="--compare", hint=f"leave out --{unused[0]}")
        return
    if given["model"] is None:
        raise ConfigError("is missing", key="--model", hint="or compare two results: --compare A.json B.json")
    if given["data"] is None and given["tasks"] is None:
        raise ConfigError("there is nothing to evaluate on", hint="give --data FOLDER, --tasks FILE_OR_FOLDER or both")
    if given["baselines"] is not None and given["data"] is None:
        raise ConfigError("are measured on --data, which is missing", key="--baselines")
    if pack_tokens < 1 or (max_length is not None and max_length < 1):
        raise ConfigError("must be 1 or more", key="--pack-tokens" if pack_tokens < 1 else "--max-length")


def _path(given: str | None, option: str) -> Path | None:
    return None if given is None else local_path(given, option)


def _score(asked: _Asked, joined: Ranks) -> dict[str, Any]:
    """The model's scores, and on rank 0 those of the baselines."""
    from evo_core.parallel.inference import inference_mesh
    from evo_core.parallel.one_job import check_one_job, options_of
    from evo_core.weights.loading import load_model, read_config, resolve_everywhere, trained_for

    check_one_job(options_of(**asdict(asked)))
    folder = resolve_everywhere(asked.model)
    cfg = read_config(folder)
    keys = ("--tensor", "--pipeline")
    mesh = inference_mesh(cfg.model, asked.tensor, asked.pipeline, device=joined.device, keys=keys)
    model, tokenizer = load_model(folder, joined.device, mesh=mesh, check=joined.local_rank == 0)
    step, tokens = trained_for(folder)
    result: dict[str, Any] = {"checkpoint": str(folder), "step": step, "tokens": tokens}
    if asked.data is not None:
        result |= _holdout(asked.data, asked.baselines, joined, mesh, cfg, model)
    if asked.tasks is not None:
        result |= _tasks(asked, asked.tasks, joined, mesh, cfg, model, tokenizer, folder)
    return result


def _holdout(data: Path, baselines_of: Path | None, joined: Ranks, mesh: Mesh, cfg: Any, model: Any) -> dict[str, Any]:
    from evo_core.evaluate.holdout import holdout
    from evo_core.evaluate.ngram import ngram_baselines

    reading: dict[str, Any] = {"vocab_size": cfg.model.vocab_size, "mask_token_zero": cfg.data.mask_token_zero}
    scores = holdout(
        model,
        data,
        seq_len=cfg.data.seq_len,
        micro_bsz=cfg.data.micro_bsz,
        mesh=mesh,
        device=joined.device,
        on_type=lambda done, total: report_progress(done, total, "data types"),
        **reading,
    )
    baselines = {}
    if baselines_of is not None and joined.rank == 0:
        found = ngram_baselines(baselines_of, data, **reading).to_dict()["types"]
        for name in ("unigram", "bigram"):
            baselines[name] = {data_type: of_type[name] for data_type, of_type in found.items()}
    return {"model": scores, "baselines": baselines}


def _tasks(
    asked: _Asked, tasks: Path, joined: Ranks, mesh: Mesh, cfg: Any, model: Any, tokenizer: Any, folder: Path
) -> dict[str, Any]:
    from evo_core.evaluate.harness.model import HarnessModel
    from evo_core.evaluate.harness.run import run_tasks

    if tokenizer is None:
        hint = "put its tokenizer beside the weights, or name it in the job's data.tokenizer_path"
        raise ConfigError("tasks are texts, and there is no tokenizer with this model", file=folder, hint=hint)
    adapter = HarnessModel(
        model,
        tokenizer,
        max_length=asked.max_length or _trained_length(cfg, folder),
        pack_tokens=asked.pack_tokens,
        mesh=mesh,
        device=joined.device,
        on_progress=lambda done, total: report_progress(done, total, "packs"),
    )
    return run_tasks(adapter, tasks)


def _trained_length(cfg: Any, folder: Path) -> int:
    """Tokens that the model was trained to read at once; another system's weights say it in their own settings."""
    from evo_core.checkpoint.folder import MANIFEST

    return cfg.data.seq_len if (folder / MANIFEST).is_file() else cfg.model.max_position_embeddings
