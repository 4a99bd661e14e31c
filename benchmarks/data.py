"""How fast text becomes token files: ``python -m benchmarks.data``.

One corpus, one vocabulary a row, one core: each contestant runs alone in a fresh process that is pinned to one core,
after a short warm-up, several rounds in turn. Loading the tokenizer is not counted.

- ``bare``: the tokenizer's own batch encode over texts in memory. Nothing is read or written: the limit.
- ``evo``: JSON lines to ``.bin``, meta, a digest of every file and a manifest, all durable on disk.
- ``datasets.map``: Hugging Face's way, from an Arrow table that was made before to one with ``input_ids``.
- ``datatrove``: its reader and its tokenizer step, JSON lines to token files.

The ids of all contestants are compared. Ratios are of tokens a second of CPU time, medians over the rounds. The last
rows run two processes side by side against two bare encoders side by side, by the wall clock.

Peers: ``pip install datasets transformers datatrove``; a peer that is not installed is left out by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import Row, judged, output_file

VOCABULARY = 32000
QUICK = ("--megabytes", "1", "--rounds", "1", "--vocabularies", "sp")
SENTENCEPIECE_VOCABULARY = 16000
BARS = {"hf": {"bare": 0.85, "datasets.map": 1.8, "datatrove": 4.0}, "sp": {"bare": 0.90}}
TWO_PROCESSES_BAR = 0.95
SIDE_BY_SIDE = "2 bare side by side"
SAMPLE = {"cn": 3_000_000, "en": 3_000_000, "code": 6_000_000}
"""Bytes of each type that are repeated until a corpus is full."""
WARM_UP = 200
"""Documents encoded before the clock starts."""


class Measured(NamedTuple):
    """One run: what was made, and what it took."""

    tokens: int
    digest: str
    cpu: float
    wall: float


# --- the corpus and the vocabularies


def make_corpus(
    folder: Path, megabytes: float, files: int, types: Iterable[str] = tuple(SAMPLE), characters: int | None = None
) -> None:
    """Real text of these types as JSON lines of about this size, the same in each file; cut into short documents."""
    from evo_core.data.sample.sample_text import write_sample_text

    raw, target = folder / "sample", int(megabytes * 1e6 / files)
    write_sample_text(raw, {name: size for name, size in SAMPLE.items() if name in types})
    texts = [json.loads(line)["text"] for path in sorted(raw.rglob("*.jsonl")) for line in path.open(encoding="utf-8")]
    if characters is not None:
        texts = [text[at : at + characters] for text in texts for at in range(0, len(text), characters)]
    for number in range(files):
        with (folder / f"corpus_{number}.jsonl").open("w", encoding="utf-8") as out:
            size = round_ = 0
            while size < target:
                for place, text in enumerate(texts):
                    line = json.dumps({"text": f"{text}\n{round_} {place} {number}"}, ensure_ascii=False) + "\n"
                    size += len(line.encode())
                    out.write(line)
                    if size >= target:
                        break
                round_ += 1


def train_vocabularies(folder: Path) -> dict[str, Path]:
    """A byte-level BPE tokenizer.json and a SentencePiece model of the corpus' text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from evo_core.data import train_sentencepiece

    texts = list(read_texts(folder / "corpus_0.jsonl"))[:4000]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # No text has these: peers would make the tokens of them, where Evo takes a document's text for text.
    special = ["<|benchmark_bos|>", "<|benchmark_eos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    (folder / "hf").mkdir()
    bpe.save(str(folder / "hf" / "tokenizer.json"))
    train_sentencepiece(texts, folder / "sp" / "tokenizer.model", vocab_size=SENTENCEPIECE_VOCABULARY)
    return {"hf": folder / "hf" / "tokenizer.json", "sp": folder / "sp" / "tokenizer.model"}


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a corpus file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


# --- the contestants: each prepares, then gives a function that is timed and one that reads back what it made


Contestant = Callable[[Path, Path, Path], tuple[Callable[[], object], Callable[[], Iterator[list[int]]]]]


def bare(corpus: Path, vocabulary: Path, out: Path) -> Any:
    """The library's own batch encode, in batches of a thousand texts."""
    texts = list(read_texts(corpus))
    encode = bare_encoder(vocabulary)
    made: list[list[int]] = []

    def run() -> None:
        for start in range(0, len(texts), 1000):
            made.extend(encode(texts[start : start + 1000]))

    encode(texts[:WARM_UP])
    return run, lambda: iter(made)


def bare_encoder(vocabulary: Path) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids by nothing but the tokenizer's library."""
    if vocabulary.suffix == ".model":
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
        return lambda texts: model.encode(texts, num_threads=1)
    import tokenizers

    fast = tokenizers.Tokenizer.from_file(str(vocabulary))
    return lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]


def evo(corpus: Path, vocabulary: Path, out: Path) -> Any:
    """What a step of a pipeline does with one raw file, its manifest included."""
    from evo_core.data import BinReader
    from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
    from tasks.store.commit import new_attempt, seal

    warm = out / "warm.jsonl"
    with warm.open("w", encoding="utf-8") as file:
        for _, text in zip(range(WARM_UP), read_texts(corpus), strict=False):
            file.write(json.dumps({"text": text}) + "\n")
    tokenize_file(TokenizeSpec(warm, out / "warm.bin", vocabulary, bos=False, eos=False))
    _, folder = new_attempt(out)

    def run() -> None:
        result = tokenize_file(TokenizeSpec(corpus, folder / "tokens.bin", vocabulary, bos=False, eos=False))
        seal(folder, {"documents": result.documents, "tokens": result.tokens})

    def made() -> Iterator[list[int]]:
        reader = BinReader(folder / "tokens.bin")
        return (reader.tokens(number).tolist() for number in range(len(reader)))

    return run, made


def datasets_map(corpus: Path, vocabulary: Path, out: Path) -> Any:
    """`datasets.map` over batches with a fast tokenizer, the text already in Arrow."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(vocabulary))
    loaded = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(out / "cache"))
    tokenizer(list(loaded[:WARM_UP]["text"]), add_special_tokens=False)
    made: list[Any] = []

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(rows["text"], add_special_tokens=False)["input_ids"]}

    def run() -> None:
        made.append(loaded.map(encode, batched=True, remove_columns=["text"], load_from_cache_file=False))

    return run, lambda: iter(made[0]["input_ids"])


def datatrove(corpus: Path, vocabulary: Path, out: Path) -> Any:
    """datatrove's reader and tokenizer step."""
    import numpy as np
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(str(corpus.parent), glob_pattern=corpus.name),
        DocumentTokenizer(str(out / "made"), str(vocabulary), shuffle_documents=False, save_final_metadata=False),
    ]
    executor = LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=str(out / "logs"))

    def made() -> Iterator[list[int]]:
        width = np.uint16 if VOCABULARY <= 65535 else np.uint32
        for path in sorted((out / "made").glob("*.ds")):
            ids, start = np.fromfile(path, width), 0
            for end in np.fromfile(f"{path}.index", np.uint64).astype(np.int64).tolist():
                yield ids[start:end].tolist()
                start = end

    return executor.run, made


CONTESTANTS: dict[str, Contestant] = {"bare": bare, "evo": evo, "datasets.map": datasets_map, "datatrove": datatrove}
NEEDS = {"datasets.map": ("datasets", "transformers"), "datatrove": ("datatrove",)}


# --- one run in a process of its own


def run_alone(name: str, corpus: Path, vocabulary: Path, core: int) -> None:
    """The body of a contestant's process: prints what it measured as JSON."""
    import xxhash

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        run, made = CONTESTANTS[name](corpus, vocabulary, Path(folder))
        sys.stdin.readline()  # those that run side by side start together
        cpu, wall = sum(os.times()[:4]), time.perf_counter()
        run()
        cpu, wall = sum(os.times()[:4]) - cpu, time.perf_counter() - wall
        digest, tokens = xxhash.xxh3_128(), 0
        for ids in made():
            digest.update(repr(ids).encode())
            tokens += len(ids)
    print(json.dumps([tokens, digest.hexdigest(), cpu, wall]))


def start(name: str, corpus: Path, vocabulary: Path, core: int) -> subprocess.Popen[str]:
    """A contestant's process, waiting for a line before it runs."""
    command = [sys.executable, "-m", "benchmarks.data", "--alone", name, str(corpus), str(vocabulary), str(core)]
    single = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | single | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[Measured]:
    """Let processes run together, and read what they measured."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = []
    for process in processes:
        printed, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args}: {errors}")
        results.append(Measured(*json.loads(printed.splitlines()[-1])))
    return results


# --- the table


def measure(folder: Path, rounds: int, kinds: list[str]) -> dict[str, Any]:
    """The rows of these vocabularies."""
    vocabularies = {kind: vocabulary for kind, vocabulary in train_vocabularies(folder).items() if kind in kinds}
    corpus = [folder / "corpus_0.jsonl", folder / "corpus_1.jsonl"]
    result: dict[str, Any] = {"rows": [], "left_out": []}
    for kind, vocabulary in vocabularies.items():
        names = [name for name in CONTESTANTS if kind == "hf" or name in ("bare", "evo")]
        for name in names.copy():
            if missing := [need for need in NEEDS.get(name, ()) if importlib.util.find_spec(need) is None]:
                names.remove(name)
                result["left_out"].append(f"{name}: pip install {' '.join(missing)}")
        runs: dict[str, list[Measured]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                runs[name] += finish([start(name, corpus[0], vocabulary, 0)])
        same = {(run.tokens, run.digest) for of_name in runs.values() for run in of_name}
        speed = {name: statistics.median(run.tokens / run.cpu for run in of_name) for name, of_name in runs.items()}
        for name in names:
            result["rows"].append(
                {
                    "vocabulary": kind,
                    "contestant": name,
                    "tokens_per_cpu_second": speed[name],
                    "tokens_per_second": statistics.median(run.tokens / run.wall for run in runs[name]),
                    "evo_over_it": speed["evo"] / speed[name],
                    "bar": BARS[kind].get(name),
                    "ids_equal": len(same) == 1,
                }
            )
        result["rows"].append(side_by_side(kind, corpus, vocabulary, rounds))
    return result


def side_by_side(kind: str, corpus: list[Path], vocabulary: Path, rounds: int) -> dict[str, Any]:
    """Two processes of ours against two bare encoders, each pair by the wall clock of its slower half."""
    walls: dict[str, list[float]] = {"bare": [], "evo": []}
    made: set[tuple[str, ...]] = set()
    for _ in range(rounds):
        for name, of_name in walls.items():
            done = finish([start(name, path, vocabulary, core) for core, path in enumerate(corpus)])
            made.add(tuple(run.digest for run in done))
            of_name.append(sum(run.tokens for run in done) / max(run.wall for run in done))
    speed = {name: statistics.median(of_name) for name, of_name in walls.items()}
    return {
        "vocabulary": kind,
        "contestant": SIDE_BY_SIDE,
        "tokens_per_cpu_second": None,
        "tokens_per_second": speed["bare"],
        "evo_over_it": speed["evo"] / speed["bare"],
        "bar": TWO_PROCESSES_BAR,
        "ids_equal": len(made) == 1,
    }


def measure_memory(folder: Path, sizes: list[float]) -> list[dict[str, Any]]:
    """Peak memory of one process that tokenizes a file of each size, in each format, and that of one that does not."""
    from evo_core.data import train_sentencepiece

    make_corpus(folder, sizes[0], 1)
    vocabulary = train_sentencepiece(read_texts(folder / "corpus_0.jsonl"), folder / "m.model", vocab_size=8000)
    rows = []
    for size in sizes:
        make_corpus(folder, size, 1)
        lines = folder / "corpus_0.jsonl"
        for form in MEMORY_FORMATS:
            raw = as_format(lines, form)
            command = [sys.executable, "-m", "benchmarks.data", "--memory-of", str(raw), str(vocabulary)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            idle, peak = json.loads(done.stdout)
            rows.append({"megabytes": size, "format": form, "idle_mib": idle / 1024, "peak_mib": peak / 1024})
            if raw != lines:
                raw.unlink()
    return rows


MEMORY_FORMATS = (".jsonl", ".json", ".parquet")


def as_format(lines: Path, form: str) -> Path:
    """The records of a .jsonl as one list, or as one Parquet file of large row groups."""
    raw = lines.with_suffix(form)
    if form == ".json":
        with lines.open("rb") as file, raw.open("wb") as out:
            for number, line in enumerate(file):
                out.write((b"," if number else b"[") + line)
            out.write(b"]")
    elif form == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetWriter(raw, pa.schema({"text": pa.string()})) as out:
            texts: list[str] = []
            for text in read_texts(lines):
                texts.append(text)
                if len(texts) == 10_000:
                    out.write_table(pa.table({"text": texts}))
                    texts = []
            if texts:
                out.write_table(pa.table({"text": texts}))
    return raw


def print_memory(raw: Path, vocabulary: Path) -> None:
    """The body of a process: its memory in KiB with everything imported, and the most it had."""
    from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file

    def peak() -> int:
        # Not getrusage: its maximum starts at what the parent had.
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    idle = peak()
    tokenize_file(TokenizeSpec(raw, raw.with_suffix(".bin"), vocabulary))
    print(json.dumps([idle, peak()]))


def table(result: dict[str, Any]) -> str:
    """The rows to read."""
    heads = ("vocabulary", "contestant", "M tokens/CPU-s", "M tokens/s", "evo / it", "bar", "ids")
    rows = [heads]
    for row in result["rows"]:
        cpu, wall = row["tokens_per_cpu_second"], row["tokens_per_second"]
        rows.append(
            (
                row["vocabulary"],
                row["contestant"],
                f"{cpu / 1e6:.3f}" if cpu else "",
                f"{wall / 1e6:.3f}",
                f"{row['evo_over_it']:.2f}",
                f"{row['bar']:.2f}" if row["bar"] else "",
                "equal" if row["ids_equal"] else "DIFFER",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for row in result.get("memory", ()):
        what = f"{row['megabytes']:,.0f} MB of {row['format']}"
        lines.append(f"peak memory, {what}: {row['peak_mib']:.0f} MiB ({row['idle_mib']:.0f} before the first record)")
    return "\n".join([*lines[0 if result["rows"] else 1 :], *(f"left out: {line}" for line in result["left_out"])])


def rows(result: dict[str, Any]) -> Iterator[Row]:
    """Of what is written: Evo beside each contestant, by CPU time, and two processes by the wall clock.

    A peer's row says what nothing that calls its tokenizer can pass, whatever its bar.
    """
    speeds = {(row["vocabulary"], row["contestant"]): row for row in result["rows"]}
    for (vocabulary, name), row in speeds.items():
        clock = "tokens_per_cpu_second" if row["tokens_per_cpu_second"] else "tokens_per_second"
        if name == "evo":
            continue
        theirs = row[clock] / 1e6
        more = {"peer": name, "peer_value": theirs, "ratio": row["evo_over_it"], "bar": row["bar"]}
        unit = "M tokens/CPU-s" if clock == "tokens_per_cpu_second" else "M tokens/s"
        note = "the same ids" if row["ids_equal"] else "IDS DIFFER"
        if name not in ("bare", SIDE_BY_SIDE):
            note += f"; the tokenizer alone is {speeds[vocabulary, 'bare'][clock] / row[clock]:.2f} times as fast"
        yield judged("data", vocabulary, row["evo_over_it"] * theirs, unit, **more, note=note)
    for row in result.get("memory", ()):
        yield judged("data", f"{row['megabytes']:,.0f} MB of {row['format']}", row["peak_mib"], "MiB at most")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40.0, help="size of each of the two corpus files")
    parser.add_argument("--types", nargs="+", choices=SAMPLE, default=list(SAMPLE), help="of text in the corpus (all)")
    parser.add_argument("--characters", type=int, metavar="N", help="of a document at most; longer ones are cut up")
    parser.add_argument("--vocabularies", nargs="+", choices=BARS, default=list(BARS), help="rows to run (all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--memory",
        type=float,
        nargs="+",
        metavar="MB",
        help="measure peak memory on files of these sizes in place of speed; `100 1000` takes half an hour",
    )
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        name, corpus, vocabulary, core = arguments.alone
        run_alone(name, Path(corpus), Path(vocabulary), int(core))
        return
    if arguments.memory_of:
        print_memory(*arguments.memory_of)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.memory:
            result = {"rows": [], "left_out": [], "memory": measure_memory(folder, arguments.memory)}
        else:
            make_corpus(folder, arguments.megabytes * 2, 2, arguments.types, arguments.characters)
            result = measure(folder, arguments.rounds, arguments.vocabularies)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.megabytes:g} MB a file")
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
