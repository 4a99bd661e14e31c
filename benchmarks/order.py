"""What the order of many documents costs: ``python -m benchmarks.order``.

Makes up metas (lengths log-normal, 1000 tokens on average; nothing is tokenized: the ``.bin`` files and the token cache
are holes, ids of 0) and, in a process each,

- makes the index, which is kept on disk: once in the life of the files;
- starts a loader on it, with nothing of metas and index in the page cache, and draws a first batch in the middle of the
  epoch, as a run that goes on does;
- draws the batches that follow, and first ones at other places.

``order`` is the time to find the documents of a batch of 8 packs of 4096 tokens, ``batch`` that of the whole batch but
for reading ids: files of ids are mapped, and their zeros come from memory. CPU time of one thread, medians, in
microseconds. ``place`` is the first batch at another place of the epoch: its groups are read, shuffled and summed.
``own MB`` is the most that the process got of the machine's memory from before the start on: anonymous and shared
pages, looked at every 2 ms. Pages of files (``file MB``: those of the index) are the page cache's, one
copy for all processes, which the kernel takes back when it needs them.

``10^8 / 10^6`` at the end is what the order and the batch of so many documents, in a thousand files, take by those of a
million: both in one process in turns, since other load on the machine changes ratios least.

A billion documents take 17 GB of disk, which are given back; where there is no room for them that is said.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from evo_core.data.loader.scale import SCALE

FILE_DOCUMENTS = 1_000_000
BYTES_A_TOKEN, BYTES_A_DOCUMENT = 7, 14  # of a .bin line
SEQ_LEN, MICRO_NUM = 4096, 8
BATCHES, PLACES, TURNS = 400, 5, 8
ROOM = 1.15
"""Disk that is asked for, as a multiple of what the metas take."""

QUICK = ("--documents", "1e5")

SPAWN = multiprocessing.get_context("spawn")


class Row(NamedTuple):
    """A line of the table; see the module."""

    documents: int
    order: str
    index_s: float
    index_mb: float
    start_s: float
    first_s: float
    own_mb: float
    file_mb: float
    order_us: float
    batch_us: float
    place_ms: float


class NoRoom(Exception):
    """There is no room on the disk for so many documents."""


def make_up(folder: Path, documents: int, of_file: int = FILE_DOCUMENTS) -> None:
    """Metas of so many documents, and holes for their lines and ids."""
    from evo_core.data.corpus import token_cache

    random = np.random.RandomState(0)
    lengths = np.maximum(random.lognormal(np.log(1000) - 0.32, 0.8, min(documents, of_file)), 1).astype(np.int64)
    cache = token_cache._cache_folder()
    for number, first in enumerate(range(0, documents, of_file)):
        here = np.roll(lengths, 7919 * number)[: min(of_file, documents - first)]
        sizes = here * BYTES_A_TOKEN + BYTES_A_DOCUMENT
        path = folder / "en" / f"train_{number:05d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(int(sizes.sum()) - 1)
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        with Path(f"{path}.meta").open("wb") as meta:
            np.save(meta, np.stack([np.cumsum(sizes) - sizes, here], axis=1))
        tokens = int(here.sum())
        header = token_cache._HEADER.pack(token_cache._MAGIC, tokens, len(here), 0, bytes(16))
        with (cache / f"{token_cache.file_digest(path)}.tokens").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + 4 * tokens + 12 * len(here))


def forget(folder: Path) -> None:
    """Take the files below a folder out of the page cache, those that are small enough to be no holes."""
    os.sync()
    for path in folder.rglob("*"):
        if path.suffix in (".meta", ".npy"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _open(folder: Path, documents: int = SCALE.documents) -> Any:
    import torch

    from evo_core.config import TrainConfig
    from evo_core.data import TrainData
    from evo_core.data.corpus import token_cache

    token_cache._is_sound = token_cache._is_complete  # holes have no checksum
    torch.set_num_threads(1)
    model = {"vocab_size": 1000, "hidden_size": 64, "num_layers": 1, "num_attention_heads": 1}
    data = {"seq_len": SEQ_LEN, "micro_bsz": 1, "micro_num": MICRO_NUM, "train_folder": str(folder)}
    cfg = TrainConfig.model_validate({"data": data, "model": model})
    scale = SCALE._replace(documents=documents)
    # All but the data is there now: what follows is the loader's.
    return lambda: TrainData(cfg, dp_rank=0, dp_size=1, scale=scale)


def index(folder: Path, documents: int, said: Connection) -> None:
    """Make the index: the process's first start.

    Args:
        folder: of the shards.
        documents: more of them are in the order of blocks.
        said: gets ``begin`` when all but the loader is there, and the figures in the end.
    """
    opened = _open(folder, documents)
    said.send("begin")
    began = time.perf_counter()
    opened()
    said.send({"index_s": time.perf_counter() - began})


def start(folder: Path, documents: int, said: Connection) -> None:
    """Start from the index, and draw batches; arguments as of `index`."""
    from evo_core.data.loader.order import PackOrder

    opened = _open(folder, documents)
    said.send("begin")
    began = time.perf_counter()
    data = opened()
    started = time.perf_counter()
    _without_ids(data)
    steps = sum(data.tokens.values()) // (SEQ_LEN * MICRO_NUM)
    data.batch(steps // 2)
    first = time.perf_counter()
    order_us = _median(lambda step: _find(data, step), range(steps // 2 + 1, steps // 2 + 1 + BATCHES))
    batch_us = _median(data.batch, range(steps // 2 + 1 + BATCHES, steps // 2 + 1 + 2 * BATCHES))
    said.send("places")  # what is asked for at random needs more memory than a run does
    place_us = _median(data.batch, [steps * n // (PLACES + 1) + 1 for n in range(1, PLACES + 1)])
    said.send(
        {
            "order": "whole" if isinstance(data._order, PackOrder) else "blocks",
            "start_s": started - began,
            "first_s": first - started,
            "order_us": order_us,
            "batch_us": batch_us,
            "place_ms": place_us / 1e3,
        }
    )


class Zeros:
    """Files of ids that are opened but not read: what is taken of them is zeros.

    Args:
        ids: the files' own, by number.
        longest: tokens of the longest document, at least.
    """

    def __init__(self, ids: Any, longest: int = 1 << 20) -> None:
        self._ids, self._zeros = ids, np.zeros(longest, np.int32)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self._zeros[: at.stop - at.start]
        assert self._ids[at] is not None
        return self


def _without_ids(data: Any) -> None:
    """Have files of ids mapped but not read."""
    from evo_core.data.loader.order import TokenStream

    for stream in data._streams:
        documents = stream._documents if isinstance(stream, TokenStream) else stream._groups.documents
        documents._ids = Zeros(documents._ids)


def in_turns(few: Path, many: Path, said: Connection) -> None:
    """Time both orders: medians of the ratios of rounds."""
    opened = [_open(folder)() for folder in (many, few)]
    for data in opened:
        _without_ids(data)
    orders, batches = [], []
    for first in range(0, TURNS * BATCHES, BATCHES):
        steps = range(first, first + BATCHES)
        found = (_median(lambda step, data=data: _find(data, step), steps) for data in opened)  # type: ignore[misc]
        drawn = (_median(data.batch, steps) for data in opened)
        orders.append(next(found) / next(found))
        batches.append(next(drawn) / next(drawn))
    # The first round maps files and computes orders.
    said.send({"order": statistics.median(orders[1:]), "batch": statistics.median(batches[1:])})


def _find(data: Any, step: int) -> None:
    """Find what a batch is made of: views of ids, of which nothing is read."""
    for position in range(step * MICRO_NUM, (step + 1) * MICRO_NUM):
        type_id, number = data._order.locate(position)
        data._streams[type_id].pieces(number)


def _median(work: Callable[[int], Any], steps: Any) -> float:
    """Microseconds of CPU time."""
    times = []
    for step in steps:
        began = time.process_time()
        work(step)
        times.append(time.process_time() - began)
    return 1e6 * statistics.median(times)


def measure(folder: Path, documents: int, most: int) -> Row:
    indexed, index_memory = _watched(index, folder, most)
    forget(folder)
    forget(Path(os.environ["EVO_CACHE"]) / "corpora")
    found, memory = _watched(start, folder, most)
    return Row(
        documents=documents,
        index_s=indexed["index_s"],
        index_mb=index_memory[0],
        own_mb=memory[0],
        file_mb=memory[1],
        **found,
    )


@contextmanager
def _child(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[int | None, Connection]]:
    """A process that works, and what it says; it ends with the block, before the files that it uses are removed."""
    said, say = SPAWN.Pipe()
    process = SPAWN.Process(target=work, args=(*arguments, say), daemon=True)
    process.start()
    say.close()
    try:
        yield process.pid, said
    finally:
        process.kill()
        process.join()


def _watched(work: Callable[..., None], folder: Path, most_kept: int) -> tuple[dict[str, Any], tuple[float, float]]:
    """What a process finds out, and by how much its own pages and those of files grew at most, in MB."""
    with _child(work, folder, most_kept) as (pid, said):
        if said.recv() != "begin":
            raise RuntimeError("the process said something else")
        before, most = _memory(pid), [0.0, 0.0]
        while not said.poll(0.002):
            if (now := _memory(pid)) is not None and before is not None:
                most = [max(m, n - b) for m, n, b in zip(most, now, before, strict=True)]
        answer = said.recv()
        while isinstance(answer, str):
            answer = said.recv()
    return answer, (most[0], most[1])


def _memory(pid: int | None) -> tuple[float, float] | None:
    """The own pages of a process, and those of files, in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return (kilobytes["RssAnon"] + kilobytes["RssShmem"]) / 1024, kilobytes["RssFile"] / 1024


@contextmanager
def made_up(documents: int, where: Path | None = None) -> Iterator[Path]:
    """A folder of so many documents, which goes in the end.

    Raises:
        NoRoom: the disk has no room for them.
    """
    where = where or Path(tempfile.gettempdir())
    needed, free = 16 * documents * ROOM, shutil.disk_usage(where).free
    if needed > free:
        raise NoRoom(f"they take {needed / 1e9:.0f} GB of {where}, where {free / 1e9:.0f} GB are free")
    cache = os.environ.get("EVO_CACHE")
    with tempfile.TemporaryDirectory(dir=where) as folder:
        os.environ["EVO_CACHE"] = f"{folder}/cache"
        try:
            make_up(Path(folder, "train"), documents)
            yield Path(folder, "train")
        finally:
            os.environ.pop("EVO_CACHE") if cache is None else os.environ.update(EVO_CACHE=cache)


def run(documents: int, where: Path | None = None, *, whole: bool = False) -> Row:
    """Make up so many documents and measure; with `whole`, in the order that is kept whole, however many they are.

    Raises:
        NoRoom: the disk has no room for them.
    """
    with made_up(documents, where) as folder:
        return measure(folder, documents, 1 << 62 if whole else SCALE.documents)


def ratios(where: Path | None = None) -> dict[str, float]:
    """What the order and the batch of many documents take by those of few.

    Raises:
        NoRoom: the disk has no room for them.
    """
    with made_up(10**6, where) as few:
        make_up(many := few.with_name("many"), 10**8, 10**5)
        with _child(in_turns, few, many) as (_, said):
            found: dict[str, float] = said.recv()
    return found


COLUMNS = {
    "documents": ("documents", "13,"),
    "order": ("kept", "6"),
    "index_s": ("index s", "8.1f"),
    "index_mb": ("MB", "6.0f"),
    "start_s": ("start s", "8.2f"),
    "first_s": ("first s", "8.2f"),
    "own_mb": ("own MB", "7.0f"),
    "file_mb": ("file MB", "8.0f"),
    "order_us": ("order us", "9.0f"),
    "batch_us": ("batch us", "9.0f"),
    "place_ms": ("place ms", "9.1f"),
}
"""Of the table: a row's field to its name there, and the form of its figures."""


def head() -> str:
    return " ".join(f"{name:>{int(form.rstrip(',f').partition('.')[0])}}" for name, form in COLUMNS.values())


def show(row: Row) -> str:
    return " ".join(f"{getattr(row, field):>{form}}" for field, (_, form) in COLUMNS.items())


def rows(figures: Mapping[str, Any]) -> list[results.Row]:
    """Of each number of documents the start, memory and a batch; and what a batch of many takes by one of few."""
    made = []
    for row in figures["rows"]:
        name = f"{row['documents']:,} documents"
        start = row["start_s"] + row["first_s"]
        made += [
            results.judged("order", f"{name}: start and first batch", start, "s", bar=60, at_most=True),
            results.judged("order", f"{name}: own memory", row["own_mb"], "MB", bar=1000, at_most=True),
            results.judged("order", f"{name}: a batch", row["batch_us"], "us", note=f"order kept {row['order']}"),
        ]
    for name, ratio in figures["10^8 / 10^6"].items():
        made.append(results.judged("order", f"{name}: 10^8 by 10^6 documents", ratio, "times", bar=1.1, at_most=True))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.order", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--documents", type=float, nargs="+", default=[1e6, 1e8, 1e9], help="how many (default 1e6 1e8 1e9)"
    )
    parser.add_argument("--whole", action="store_true", help="in the order that is kept whole, however many they are")
    parser.add_argument("--folder", type=Path, help="where metas are put (default: that of temporary files)")
    parser.add_argument("--json", type=results.output_file, help="also write the figures here")
    arguments = parser.parse_args()
    print(head(), flush=True)
    lines = []
    for documents in map(int, arguments.documents):
        try:
            lines.append(run(documents, arguments.folder, whole=arguments.whole))
        except NoRoom as error:
            print(f"{documents:13,} left out: {error}", flush=True)
            continue
        print(show(lines[-1]), flush=True)
    found = ratios(arguments.folder)
    print("10^8 / 10^6: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()), flush=True)
    if arguments.json is not None:
        content = {"rows": [row._asdict() for row in lines], "10^8 / 10^6": found}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
