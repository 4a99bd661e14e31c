"""How fast packed batches come: ``python -m benchmarks.loader``.

Writes random documents of typical lengths (log-normal, 600 tokens on average) as token shards and measures, in one
process and one thread,

- ``mapped``: batches as training gets them, from the memory-mapped token cache of the shards;
- ``.bin lines``: the same batches with every document parsed from its JSON line each time;
- ``decoding``: what filling the token cache costs, once for each shard and machine;
- ``copy``: the tokens alone copied from the mapped file to int64, the limit of any packing.

Figures are million tokens a second, the best of several rounds: of the wall clock, and of the process's own CPU time,
which other load on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import Row, judged, output_file
from evo_core.config import TrainConfig
from evo_core.data import BinReader, BinWriter, TrainData
from evo_core.data.corpus import token_cache

QUICK = ("--tokens", "1e6", "--seconds", "0.05")
VOCAB = 92544
TYPES = ("cn", "code", "en")
SHAPES = ((2048, 2), (4096, 2), (4096, 4))
MICRO_NUM = 4


class Lines:
    """Documents of one file, parsed from their lines whenever they are asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = BinReader(path)
        self.lengths = self._reader.lengths

    def read(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        places = zip(documents.tolist(), starts.tolist(), stops.tolist(), strict=True)
        return [self._reader.tokens(document)[start:stop] for document, start, stop in places]


def write_corpus(folder: Path, tokens: int) -> None:
    """Three types of documents, about as many tokens in each."""
    random = np.random.RandomState(0)
    for name in TYPES:
        with BinWriter(folder / name / "train_000.bin") as writer:
            while writer.tokens < tokens / len(TYPES):
                length = max(1, int(random.lognormal(np.log(600) - 0.32, 0.8)))
                writer.write(random.randint(3, VOCAB, length))


def job(folder: Path, seq_len: int, micro_bsz: int, **data: Any) -> TrainConfig:
    model = {"vocab_size": VOCAB, "hidden_size": 64, "num_layers": 1, "num_attention_heads": 1}
    shape = {"seq_len": seq_len, "micro_bsz": micro_bsz, "micro_num": MICRO_NUM, "train_folder": str(folder)}
    return TrainConfig.model_validate({"data": shape | data, "model": model})


def best(work: Callable[[int], int], seconds: float, rounds: int = 6) -> tuple[float, float]:
    """Million tokens a second, by the wall clock and by CPU time; `work` gets a number and returns tokens."""
    work(0)
    wall = cpu = 0.0
    for _ in range(rounds):
        tokens, number = 0, 0
        began, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            number += 1
            tokens += work(number)
        wall = max(wall, tokens / (time.perf_counter() - began) / 1e6)
        cpu = max(cpu, tokens / (time.process_time() - used) / 1e6)
    return wall, cpu


def measure(folder: Path, seconds: float) -> list[dict[str, Any]]:
    rows = []

    def add(what: str, shape: str, speed: tuple[float, float]) -> None:
        rows.append({"what": what, "shape": shape, "wall": round(speed[0], 1), "cpu": round(speed[1], 1)})
        print(f"{what:24} {shape:14} {speed[0]:8.1f} {speed[1]:8.1f}", flush=True)

    for seq_len, micro_bsz in SHAPES:
        shape = f"{seq_len} x {micro_bsz}"
        for what, options in (
            ("mapped", {}),
            ("mapped, into one", {"pack_sample_into_one": True}),
            ("mapped, unpacked", {"use_packed_dataset": False}),
            ("mapped, internevo", {"packing": "internevo"}),
        ):
            data = TrainData(job(folder, seq_len, micro_bsz, **options), dp_rank=0, dp_size=1)
            add(what, shape, best(lambda step, data=data: data.batch(step).input_ids.numel(), seconds))  # type: ignore[misc]
        data = TrainData(job(folder, seq_len, micro_bsz), dp_rank=0, dp_size=1)
        mapped = data.batch(1)
        for stream, name in zip(data._streams, TYPES, strict=True):
            stream._documents = Lines(folder / name / "train_000.bin")  # type: ignore[attr-defined]
        assert torch.equal(mapped.labels, data.batch(1).labels), "the same batches"
        add(".bin lines", shape, best(lambda step, data=data: data.batch(step).input_ids.numel(), seconds))  # type: ignore[misc]
    reader = BinReader(folder / TYPES[0] / "train_000.bin")
    add("decoding", "", best(lambda _: len(token_cache._decoded(reader).ids), 0.01, rounds=3))
    ids, out = token_cache.open_token_files([reader.path])[0].ids, np.empty((4, 8192), np.int64)

    def copy(number: int) -> int:
        start = number * out.size % (len(ids) - out.size)
        out[:] = ids[start : start + out.size].reshape(out.shape)
        return out.size

    add("copy", "", best(copy, seconds))
    return rows


def rows(found: list[dict[str, Any]]) -> Iterator[Row]:
    """Of what is written: each way to a batch beside copying its tokens alone, and beside parsing lines."""
    copy = next(row["cpu"] for row in found if row["what"] == "copy")
    lines = {row["shape"]: row["cpu"] for row in found if row["what"] == ".bin lines"}
    for row in found:
        name = f"{row['what']} {row['shape']}".strip()
        if row["what"].startswith("mapped"):
            peer, theirs = ".bin lines, the same batches", lines[row["shape"]]
        elif row["what"] == "copy":
            peer, theirs = None, None
        else:
            peer, theirs = "copy, the limit", copy
        yield judged("loader", name, row["cpu"], "M tokens/CPU-s", peer=peer, peer_value=theirs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=float, default=30e6, help="size of the corpus (default 30e6)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round (default 0.5)")
    parser.add_argument("--json", type=output_file, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVO_CACHE"] = f"{folder}/cache"
        token_cache.IN_MEMORY_BYTES = 0
        write_corpus(Path(folder) / "data", int(arguments.tokens))
        print(f"{'':24} {'seq_len x bsz':14} {'wall':>8} {'cpu':>8}   M tokens/s, {platform.processor() or 'CPU'}")
        rows = measure(Path(folder) / "data", arguments.seconds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
