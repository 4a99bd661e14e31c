"""``python -m evo_core.evaluate``: a trained model on held-out text, beside n-gram baselines on the same tokens."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_core.job import command, report_progress


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="evo_core.evaluate", description=__doc__)
    result.add_argument("--model", required=True, help="a checkpoint, or a folder of checkpoints (the newest)")
    result.add_argument(
        "--data", required=True, type=Path, metavar="FOLDER", help="held-out token shards, one sub-folder per type"
    )
    result.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON file for the scores")
    result.add_argument(
        "--baselines",
        type=Path,
        metavar="FOLDER",
        help="training token shards: unigram and bigram models of them are scored too",
    )
    result.add_argument("--launcher", choices=["torch", "slurm"], help="default: what the environment says")
    result.add_argument("--backend", help="of the process group; default nccl on GPUs, gloo on CPUs")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, join the ranks, evaluate; rank 0 writes the file and prints the table."""
    arguments = parser().parse_args(argv)
    with command("evo_core.evaluate"):
        from evo_core.parallel.ranks import ranks

        with ranks(arguments.launcher, arguments.backend) as joined:
            scores = _score(arguments, joined)
            if joined.rank == 0:
                write(arguments.output, scores)
                print(table(scores), flush=True)


def _score(arguments: argparse.Namespace, joined: Any) -> dict[str, Any]:
    """The model's scores by type, and on rank 0 those of the baselines."""
    from evo_core.checkpoint import load_model, read_config
    from evo_core.checkpoint.folder import resolve
    from evo_core.checkpoint.manifest import read_manifest
    from evo_core.evaluate.holdout import holdout
    from evo_core.evaluate.ngram import ngram_baselines
    from evo_core.parallel.collectives import on_first

    first = joined.rank == 0
    folder = on_first(lambda: resolve(arguments.model))
    cfg, manifest = read_config(folder), read_manifest(folder)
    model, _ = load_model(folder, joined.device, check=joined.local_rank == 0)
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
    result: dict[str, Any] = {
        "checkpoint": str(folder),
        "step": manifest.step,
        "tokens": manifest.tokens,
        "model": scores,
        "baselines": {},
    }
    if arguments.baselines is not None and first:
        found = ngram_baselines(arguments.baselines, arguments.data, **reading).to_dict()["types"]
        for name in ("unigram", "bigram"):
            result["baselines"][name] = {data_type: of_type[name] for data_type, of_type in found.items()}
    return result


def write(path: Path, scores: Mapping[str, Any]) -> None:
    """Write the scores as JSON, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(scores, indent=1))
    draft.replace(path)


def table(scores: Mapping[str, Any]) -> str:
    """A table to read: a row for each data type, the model beside the baselines."""
    baselines: Mapping[str, Any] = scores["baselines"]
    heads = ["type", "tokens", "loss", "perplexity", "acc", *(f"{name} loss" for name in baselines)]
    rows = [heads]
    for data_type, score in scores["model"].items():
        row = [data_type, f"{score['tokens']:,}", f"{score['loss']:.4f}", f"{score['perplexity']:.2f}"]
        row.append(f"{score['acc']:.4f}")
        row += [f"{of_type[data_type]['loss']:.4f}" for of_type in baselines.values()]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
