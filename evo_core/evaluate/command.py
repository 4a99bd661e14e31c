"""``python -m evo_core.evaluate``: a model on held-out text and on task files, and two evaluations side by side.

--model CKPT --data FOLDER      loss, perplexity and accuracy per type, with --baselines beside n-gram models
--model CKPT --tasks PLACE      multiple-choice, cloze and generation tasks from local files, through lm-eval
--compare A.json B.json         two results that --output wrote
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError
from evo_core.evaluate.compare import comparison_table, record
from evo_core.evaluate.results import read, table, write
from evo_core.job import command, report_progress
from evo_core.results_folder import check_folder
from evo_core.storage.location import check_location, local_path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="evo_core.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--model", help="a checkpoint, a folder of checkpoints (the newest), or another system's folder"
    )
    result.add_argument("--data", metavar="FOLDER", help="held-out token shards, one sub-folder per type")
    result.add_argument("--tasks", metavar="FILE_OR_FOLDER", help="task files in lm-eval's YAML form")
    result.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two files that --output wrote")
    result.add_argument("--output", metavar="FILE", help="JSON file for the results")
    result.add_argument(
        "--baselines",
        metavar="FOLDER",
        help="training token shards: unigram and bigram models of them are scored on --data too",
    )
    result.add_argument(
        "--max-length",
        type=int,
        metavar="TOKENS",
        help="that --tasks are read with; default the model's trained length",
    )
    result.add_argument(
        "--pack-tokens", type=int, default=8192, metavar="TOKENS", help="of --tasks in one forward pass (default 8192)"
    )
    result.add_argument("--launcher", choices=["torch", "slurm"], help="default: what the environment says")
    result.add_argument("--backend", help="of the process group; default nccl on GPUs, gloo on CPUs")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, join the ranks, evaluate; rank 0 writes the file and prints the table."""
    arguments = parser().parse_args(argv)
    with command("evo_core.evaluate"):
        _check(arguments)
        _read_locations(arguments)
        if arguments.output is not None:
            if arguments.output.is_dir():
                raise ConfigError("is a folder, not a file to write", file=arguments.output, key="--output")
            check_folder(arguments.output.parent, "--output")
        if arguments.compare is not None:
            a, b = map(read, arguments.compare)
            if arguments.output is not None:
                write(arguments.output, record(a, b))
            print(comparison_table(a, b))
            return
        if arguments.tasks is not None:
            from evo_core.evaluate.harness.run import require_harness

            require_harness()
        from evo_core.parallel.ranks import ranks

        with ranks(arguments.launcher, arguments.backend) as joined:
            scores = _score(arguments, joined)
            if joined.rank == 0:
                if arguments.output is not None:
                    write(arguments.output, scores)
                print(table(scores), flush=True)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse combinations that ask for nothing, or for two things at once."""
    if arguments.compare is not None:
        given = [name for name in ("model", "data", "tasks", "baselines") if getattr(arguments, name) is not None]
        if given:
            raise ConfigError("reads results that are there already", key="--compare", hint=f"leave out --{given[0]}")
        return
    if arguments.model is None:
        raise ConfigError("is missing", key="--model", hint="or compare two results: --compare A.json B.json")
    if arguments.data is None and arguments.tasks is None:
        raise ConfigError("there is nothing to evaluate on", hint="give --data FOLDER, --tasks FILE_OR_FOLDER or both")
    if arguments.baselines is not None and arguments.data is None:
        raise ConfigError("are measured on --data, which is missing", key="--baselines")
    if arguments.pack_tokens < 1 or (arguments.max_length is not None and arguments.max_length < 1):
        raise ConfigError("must be 1 or more", key="--pack-tokens" if arguments.pack_tokens < 1 else "--max-length")


def _read_locations(arguments: argparse.Namespace) -> None:
    """Put paths in the place of what was written for them."""
    for name in ("data", "tasks", "output", "baselines"):
        if (given := getattr(arguments, name)) is not None:
            setattr(arguments, name, local_path(given, f"--{name}"))
    if arguments.compare is not None:
        arguments.compare = [local_path(given, "--compare") for given in arguments.compare]
    if arguments.model is not None:
        check_location(arguments.model, "--model")


def _score(arguments: argparse.Namespace, joined: Any) -> dict[str, Any]:
    """The model's scores, and on rank 0 those of the baselines."""
    from evo_core.parallel.collectives import on_first
    from evo_core.weights.loading import load_model, read_config, resolve, trained_for

    folder = on_first(lambda: resolve(arguments.model))
    cfg = read_config(folder)
    model, tokenizer = load_model(folder, joined.device, check=joined.local_rank == 0)
    step, tokens = trained_for(folder)
    result: dict[str, Any] = {"checkpoint": str(folder), "step": step, "tokens": tokens}
    if arguments.data is not None:
        result |= _holdout(arguments, joined, cfg, model)
    if arguments.tasks is not None:
        result |= _tasks(arguments, joined, cfg, model, tokenizer, folder)
    return result


def _holdout(arguments: argparse.Namespace, joined: Any, cfg: Any, model: Any) -> dict[str, Any]:
    from evo_core.evaluate.holdout import holdout
    from evo_core.evaluate.ngram import ngram_baselines

    reading: dict[str, Any] = {"vocab_size": cfg.model.vocab_size, "mask_token_zero": cfg.data.mask_token_zero}
    scores = holdout(
        model,
        arguments.data,
        seq_len=cfg.data.seq_len,
        micro_bsz=cfg.data.micro_bsz,
        dp_rank=joined.rank,
        dp_size=joined.world_size,
        device=joined.device,
        on_type=lambda done, total: report_progress(done, total, "data types"),
        **reading,
    )
    baselines = {}
    if arguments.baselines is not None and joined.rank == 0:
        found = ngram_baselines(arguments.baselines, arguments.data, **reading).to_dict()["types"]
        for name in ("unigram", "bigram"):
            baselines[name] = {data_type: of_type[name] for data_type, of_type in found.items()}
    return {"model": scores, "baselines": baselines}


def _tasks(
    arguments: argparse.Namespace, joined: Any, cfg: Any, model: Any, tokenizer: Any, folder: Path
) -> dict[str, Any]:
    from evo_core.evaluate.harness.model import HarnessModel
    from evo_core.evaluate.harness.run import run_tasks

    if tokenizer is None:
        hint = "put its tokenizer beside the weights, or name it in the job's data.tokenizer_path"
        raise ConfigError("tasks are texts, and there is no tokenizer with this model", file=folder, hint=hint)
    adapter = HarnessModel(
        model,
        tokenizer,
        max_length=arguments.max_length or _trained_length(cfg, folder),
        pack_tokens=arguments.pack_tokens,
        dp_rank=joined.rank,
        dp_size=joined.world_size,
        device=joined.device,
        on_progress=lambda done, total: report_progress(done, total, "packs"),
    )
    return run_tasks(adapter, arguments.tasks)


def _trained_length(cfg: Any, folder: Path) -> int:
    """Tokens that the model was trained to read at once; another system's weights say it in their own settings."""
    from evo_core.checkpoint.folder import MANIFEST

    return cfg.data.seq_len if (folder / MANIFEST).is_file() else cfg.model.max_position_embeddings
