"""What a CPU second teaches, beside litgpt: ``python -m benchmarks.learning``.

The text of ``make demo`` (its first steps make it here), one tokenizer, one shape, 2048 tokens a step, one thread.
Three contestants train for the same CPU seconds, each at three learning rates:

- ``evo``: `evo_core.train` with Muon, as `configs/train/demo.yaml` has it;
- ``evo, AdamW``: the same with AdamW;
- ``litgpt``: its GPT and the loop of its ``pretrain`` (fused AdamW with its default betas, clipping at 1, a linear
  warm-up and a cosine down to a tenth), on documents packed one behind the other as its data modules pack them.

How many steps the seconds allow is measured first, by what eight take more than two. The weights of all go into this
repository's decoder, which computes the mean negative log-likelihood of each type's held-out documents, cut to pieces
of 256 tokens. Of each contestant the rate with the lowest mean over types counts; all rates are written.

litgpt comes as peer_models.py says; without it the others run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peer_models import litgpt_gpt, load_litgpt_state
from benchmarks.results import Row, judged, output_file
from evo_core.config import TrainConfig
from evo_core.data.shards.folder import bin_files, data_types
from evo_core.data.shards.format import BinReader
from evo_core.model import Decoder, build_model, init_weights
from evo_core.train.host_memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
SEQ_LEN, MICRO_BSZ, TOKENS_A_STEP = 256, 4, 2048
WARMUP, LEAST_RATE = 0.1, 0.1
RATES = {"evo": (3e-3, 1e-2, 2e-2), "evo, AdamW": (1e-3, 3e-3, 6e-3), "litgpt": (1e-3, 3e-3, 6e-3)}
FEW_STEPS = 2, 8
QUICK = ("--cpu-seconds", "8")


def make_text(folder: Path) -> Path:
    """The demo's shards: a folder with ``train`` and ``valid``."""
    words = ["run", str(ROOT / "configs/pipelines/demo.yaml"), "--no-server", "--targets", "shards"]
    subprocess.run([sys.executable, "-m", "flows.cli", *words, "--root", str(folder)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return next(path.parent for path in folder.rglob("valid") if (path.parent / "train").is_dir())


def config(text: Path, name: str, rate: float, steps: int) -> TrainConfig:
    """The job of a contestant of ours; its model is everybody's."""
    return TrainConfig.model_validate(
        {
            "job_name": "learning",
            "model_type": "LLAMA2",
            "enable_tb": False,
            "data": {
                "train_folder": str(text / "train"), "seq_len": SEQ_LEN, "micro_bsz": MICRO_BSZ,
                "global_batch_tokens": TOKENS_A_STEP, "total_steps": steps, "num_worker": 0, "log_every": 10**6,
            },
            "model": {
                "vocab_size": 4096, "num_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "no_bias": True,
                "qk_interleaved": False, "dtype": "torch.float32",
            },
            "optimizer": {"name": "muon" if name == "evo" else "adamw"},
            "adam": {"lr": rate, "weight_decay": 0.1},
            "lr_scheduler": {"warmup_ratio": WARMUP, "eta_min": rate * LEAST_RATE},
            "hybrid_zero_optimizer": {"clip_grad_norm": 1.0},
            "ckpt": {"checkpoint_every": math.inf},
        }
    )  # fmt: skip


def train_ours(text: Path, name: str, rate: float, steps: int) -> tuple[float, Decoder]:
    """CPU seconds of the steps and what they made of the model."""
    from evo_core.checkpoint import load_model, newest_complete
    from evo_core.train import train

    with tempfile.TemporaryDirectory() as folder:
        cfg = config(text, name, rate, steps)
        cfg = cfg.model_copy(update={"ckpt": cfg.ckpt.model_copy(update={"save_ckpt_folder": f"{folder}/saved"})})
        begun = time.process_time()
        train(cfg, folder=Path(folder))
        taken = time.process_time() - begun
        found = newest_complete(f"{folder}/saved")
        assert found is not None
        return taken, load_model(str(found))[0]


def train_litgpt(text: Path, rate: float, steps: int) -> tuple[float, Decoder]:
    """The same of litgpt's GPT by the loop of its pretrain, its weights in our decoder at the end."""
    from litgpt.pretrain import get_lr  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    model = first_model(text)
    gpt = litgpt_gpt(model, SEQ_LEN)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    windows = packed(text)
    taken = 0.0
    for step in range(steps):
        batches = [next(windows) for _ in range(TOKENS_A_STEP // (MICRO_BSZ * SEQ_LEN))]
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = get_lr(rate, step, max(1, round(WARMUP * steps)), steps, rate * LEAST_RATE)
        for batch in batches:
            loss = chunked_cross_entropy(gpt(batch[:, :-1]), batch[:, 1:].contiguous())
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        taken += time.process_time() - begun
    load_litgpt_state(model, gpt.state_dict())
    return taken, model


def first_model(text: Path) -> Decoder:
    """The model before training."""
    cfg = config(text, "evo", 1e-3, 1).model
    model: Decoder = build_model(cfg)
    init_weights(model, cfg, seed=1024)
    return model


def packed(text: Path) -> Iterator[torch.Tensor]:
    """Micro-batches [MICRO_BSZ, SEQ_LEN + 1] of random windows of all documents in one line, without end."""
    documents = [
        reader.tokens(i)
        for data_type in data_types(text / "train")
        for path in bin_files(text / "train", data_type)
        for reader in [BinReader(path)]
        for i in range(len(reader))
    ]
    random = np.random.RandomState(1)
    while True:
        line = np.abs(np.concatenate([documents[i] for i in random.permutation(len(documents))])).astype(np.int64)
        whole = line[: len(line) // (SEQ_LEN + 1) * (SEQ_LEN + 1)].reshape(-1, SEQ_LEN + 1)
        shuffled = whole[random.permutation(len(whole))]
        for first in range(0, len(shuffled) - MICRO_BSZ + 1, MICRO_BSZ):
            yield torch.from_numpy(shuffled[first : first + MICRO_BSZ])


@torch.no_grad()
def held_out(model: Decoder, text: Path) -> dict[str, float]:
    """Mean negative log-likelihood in nats of each type's held-out tokens."""
    model.eval()
    means = {}
    for data_type in data_types(text / "valid"):
        total, count = 0.0, 0
        for path in bin_files(text / "valid", data_type):
            reader = BinReader(path)
            for number in range(len(reader)):
                ids = torch.from_numpy(np.abs(reader.tokens(number)).astype(np.int64))
                for piece in ids.split(SEQ_LEN):
                    if len(piece) > 1:
                        lengths = torch.tensor([0, len(piece) - 1], dtype=torch.int32)
                        out = model(piece[:-1], torch.arange(len(piece) - 1), lengths, labels=piece[1:])
                        total, count = total + float(out.nll.sum()), count + len(piece) - 1
        means[data_type] = total / count
    return means


def one(name: str, text: Path, rate: float, seconds: float) -> dict[str, Any]:
    """A contestant at one rate, in a process of its own."""
    torch.set_num_threads(1)
    run = train_litgpt if name == "litgpt" else lambda *each: train_ours(each[0], name, *each[1:])
    if name != "litgpt":
        keep_freed_memory()
    few, more = (run(text, rate, count)[0] for count in FEW_STEPS)
    steps = max(FEW_STEPS[1], round(seconds / (more - few) * (FEW_STEPS[1] - FEW_STEPS[0])))
    begun = time.process_time()
    taken, model = run(text, rate, steps)
    return {
        "contestant": name,
        "rate": rate,
        "steps": steps,
        "seconds_of_steps": taken,
        "cpu_seconds": time.process_time() - begun,
        "loss": held_out(model, text),
    }


def in_process(name: str, text: Path, rate: float, seconds: float) -> dict[str, Any]:
    """`one` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_silent) as pool:
        return pool.submit(one, name, text, rate, seconds).result()


def _silent() -> None:
    """What training says of itself is not of interest here; errors come back by themselves."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def best(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each contestant the result with the lowest mean."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        at = found.get(result["contestant"])
        if at is None or _mean(result["loss"]) < _mean(at["loss"]):
            found[result["contestant"]] = result
    return found


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """A row for each type and peer: ours has to be lower."""
    found = best(figures["results"])
    ours = found.pop("evo")
    made = []
    for peer, result in found.items():
        for data_type, loss in ours["loss"].items():
            row = judged(
                "learning", f"{data_type} after {figures['cpu_seconds']:g} CPU seconds", loss, "nats a token",
                peer=peer, peer_value=result["loss"][data_type], less_is_better=True, bar=1.0,
                note=f"{ours['steps']} steps at {ours['rate']:g}; {peer} {result['steps']} at {result['rate']:g}",
            )  # fmt: skip
            made.append(row)
    return made


def main() -> None:
    """Train, print, and write the figures where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-seconds", type=float, default=90, help="of training, for each contestant and rate (90)")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    arguments = parser.parse_args()
    contestants = dict(RATES)
    try:
        importlib.import_module("litgpt")
    except ImportError as error:
        print(f"litgpt is missing ({error}) and left out; see benchmarks/peer_models.py")
        del contestants["litgpt"]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        text = make_text(Path(folder))
        for name, rates in contestants.items():
            for rate in rates:
                result = in_process(name, text, rate, arguments.cpu_seconds)
                results.append(result)
                losses = "  ".join(f"{data_type} {loss:.3f}" for data_type, loss in result["loss"].items())
                done = f"{result['steps']:4} steps, {result['seconds_of_steps']:5.0f} s"
                print(f"{name:12} rate {rate:<6g} {done}  {losses}", flush=True)
                if arguments.json:
                    figures = {"cpu_seconds": arguments.cpu_seconds, "results": results}
                    arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
