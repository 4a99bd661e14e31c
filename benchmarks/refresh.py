"""What a refresh of a dataset costs: ten thousand small raw files, then three new ones, on a folder and on S3.

    python -m benchmarks.refresh [--files 10000] [--only local|s3]

The pipeline lists the raw files, tokenizes them and makes shards. It runs three times: from nothing, with three new
files, and with three more while the system calls are counted (strace; without it, the opens of the main process by
Python's audit hook). Times are those of whole processes, imports and all. S3 is a real server (SeaweedFS) on this
machine, so its network costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import Row, judged, output_file

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "tests" / "tasks" / "tokenizer.json"
NEW = 3
SHARD_TOKENS = 1_000_000
QUICK = ("--files", "50", "--only", "local")
PIPELINE = """\
pipeline: refresh
steps:
  raw: {{uses: source.files, params: {{root: "{root}"}}}}
  tokens: {{uses: data.tokenize, needs: {{raw: raw}}, params: {{tokenizer: "{tokenizer}"}}}}
  shards: {{uses: data.shard, needs: {{tokens: tokens}}, params: {{valid_fraction: 0.1, shard_tokens: {shard_tokens}}}}}
publish: {{corpus: shards}}
"""


def main() -> None:
    """Run the benchmark, or with ``--child`` one refresh of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--only", choices=["local", "s3"])
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures there too")
    parser.add_argument("--child", nargs=2, metavar=("PIPELINE", "STORE"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        print(json.dumps(refresh(*map(Path, words.child))))
        return
    results: dict[str, Any] = {"files": words.files}
    for where in ["local", "s3"] if words.only is None else [words.only]:
        with tempfile.TemporaryDirectory(prefix="evo-bench-") as folder, raw_files(where, Path(folder)) as raw:
            results[where] = found = measure(Path(folder), raw, words.files)
            report(where, words.files, found)
        if words.json is not None:
            words.json.write_text(json.dumps(results, indent=1))


def rows(results: dict[str, Any]) -> Iterator[Row]:
    """Of what is written: whole processes, the one with new files beside the one from nothing."""
    for where in ("local", "s3"):
        if where in results:
            first, again = (results[where][name]["process"] for name in ("first", "refresh"))
            name = f"{where}: {results['files']:,} files and {NEW} new ones"
            more = {"peer": "from nothing", "peer_value": first, "less_is_better": True}
            yield judged("refresh", name, again, "s", **more)


def refresh(pipeline: Path, store_root: Path) -> dict[str, Any]:
    """Plan and run the pipeline in this process; seconds and counts."""
    from flows.pipeline.engine import run_plan
    from flows.pipeline.plan import make_plan
    from flows.pipeline.schema import load_pipeline
    from tasks.store import open_store
    from tests.flows.pipeline.conftest import Recorder

    store = open_store(store_root)
    start = time.monotonic()
    plan = make_plan(load_pipeline(pipeline), store)
    planned = time.monotonic()
    run_plan(plan, store, Recorder(), threading.Event())
    ended = time.monotonic()
    made = {step.name: store.artifact(step.name, step.key).manifest for step in plan.steps}
    return {
        "plan": planned - start,
        "run": ended - planned,
        **{name: manifest["provenance"]["seconds"] for name, manifest in made.items()},
        "tokenized": made["tokens"]["statistics"]["files_tokenized"],
        "tokens_made": made["tokens"]["statistics"]["tokens"],
        "dataset": str(store.artifact("shards", plan.step("shards").key).path),
        "shards_kept": made["shards"]["statistics"]["shards_kept"],
    }


def measure(folder: Path, raw: RawFiles, count: int) -> dict[str, Any]:
    """The three runs."""
    pipeline, store = folder / "refresh.yaml", folder / "store"
    pipeline.write_text(PIPELINE.format(root=raw.root, tokenizer=TOKENIZER, shard_tokens=SHARD_TOKENS))
    raw.write(range(count))
    found: dict[str, Any] = {"first": child(pipeline, store)}
    raw.write(range(count, count + NEW))
    found["refresh"] = child(pipeline, store)
    raw.write(range(count + NEW, count + 2 * NEW))
    trace = folder / "trace"
    found["counted"] = child(pipeline, store, trace=trace)
    found["opened"] = opened(trace, raw, store) if trace.exists() else None
    return found


def child(pipeline: Path, store: Path, trace: Path | None = None) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.refresh", "--child", str(pipeline), str(store)]
    if trace is not None and (strace := shutil.which("strace")):
        command = [strace, "-f", "-qq", "-e", "trace=open,openat", "-s", "4096", "-o", str(trace), *command]
    start, before = time.monotonic(), _cpu()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    seconds = {"process": time.monotonic() - start, "cpu": _cpu() - before}
    return json.loads(done.stdout.splitlines()[-1]) | seconds


def _cpu() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def opened(trace: Path, raw: RawFiles, store: Path) -> dict[str, int]:
    """Successful opens by what was opened."""
    counts = dict.fromkeys(["raw files", "raw folders", "objects", "object folders", "rest of the store"], 0)
    for path, is_folder in _successful_opens(trace.read_text(errors="replace")):
        if path.startswith(raw.root):
            counts["raw folders" if is_folder else "raw files"] += 1
        elif path.startswith(f"{store}/objects"):
            counts["object folders" if is_folder else "objects"] += 1
        elif path.startswith(str(store)):
            counts["rest of the store"] += 1
    return counts


def _successful_opens(trace: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it was opened as a folder) of every open that gave a descriptor."""
    begun: dict[str, tuple[str, bool]] = {}
    for line in trace.splitlines():
        process = line.partition(" ")[0]
        if call := re.search(r'open(?:at)?\((?:AT_FDCWD, |\d+, )?"([^"]*)", ([A-Z_|]+)', line):
            begun[process] = call[1], "O_DIRECTORY" in call[2]
        if process in begun and (call or re.search(r"<\.\.\. open(?:at)? resumed>", line)):
            if re.search(r"= \d+$", line):
                yield begun.pop(process)
            elif not line.endswith("<unfinished ...>"):
                begun.pop(process)


class RawFiles:
    """Raw files by number, in a folder or on S3."""

    def __init__(self, root: str, client: Any = None) -> None:
        self.root, self._client = root, client

    def write(self, numbers: range) -> None:
        """About 1 kB each, forty lines, in two types."""
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(self._write_one, number) for number in numbers]:
                done.result()

    def _write_one(self, number: int) -> None:
        name = f"{'en' if number % 3 else 'cn'}/{number // 100:03d}/{number:06d}.txt"
        text = "".join(f"document {line} of file {number}\n" for line in range(40)).encode()
        if self._client is not None:
            bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
            self._client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=text)
            return
        path = Path(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


@contextmanager
def raw_files(where: str, folder: Path) -> Iterator[RawFiles]:
    """An empty place for raw files."""
    if where == "local":
        yield RawFiles(str(folder / "raw"))
        return
    from tests.s3_server import s3_server

    with s3_server() as server:
        os.environ.update(server.environment)
        yield RawFiles(f"s3://{server.new_bucket()}/raw", server.client())


def report(where: str, count: int, found: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{where}: {count:,} files")
    for name, title in {"first": "from nothing", "refresh": f"{NEW} new files"}.items():
        run = found[name]
        parts = ", ".join(f"{part} {run[part]:.2f}" for part in ("plan", "raw", "tokens", "shards"))
        print(f"  {title:<14} {run['process']:7.2f} s, {run['cpu']:.2f} s of CPU ({parts})")
        print(f"                 {run['tokenized']:,} files tokenized, {run['shards_kept']} shards kept")
    print(f"  opened by a refresh with {NEW} new files: {found['opened'] or 'not counted (no strace here)'}")
    print(f"  shards: {shards(found['counted'])}", flush=True)


def shards(run: dict[str, Any]) -> str:
    """Sizes of the shards against the target, and whether every token is in one."""
    listed = json.loads(Path(run["dataset"], "statistics.json").read_bytes())["shards"]
    sizes = [shard["tokens"] for shard in listed]
    full = sum(SHARD_TOKENS <= size < SHARD_TOKENS + 100 for size in sizes)
    lost = run["tokens_made"] - sum(sizes)
    return f"{len(sizes)}, {full} of the target of {SHARD_TOKENS:,} tokens; {sum(sizes):,} tokens, {lost} lost"


if __name__ == "__main__":
    main()
