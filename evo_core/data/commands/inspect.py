"""`evo data stats|head|verify`: what is in token files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evo_core.data.commands.paths import to_path

if TYPE_CHECKING:
    from evo_core.data.inspection.sample import DecodedDocument
    from evo_core.data.inspection.statistics import Statistics

DataPath = Annotated[
    Path,
    typer.Argument(
        parser=to_path,
        metavar="PATH",
        help="A .bin, a folder of data types (en/, cn/, …), or a dataset with train/ and valid/.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
WRONG = 2
"""Exit status of `verify` where it finds a problem, as of every command whose input is wrong."""


def stats(
    path: DataPath,
    trained: Annotated[
        bool, typer.Option("--trained", help="Count the tokens trained on too: reads the files, not only their metas.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Count documents and tokens per data type.

    And show how long documents are.
    """
    from evo_core.data.commands.bar import token_bar
    from evo_core.data.inspection.find import find_shards
    from evo_core.data.inspection.statistics import statistics

    shards = find_shards(path)
    with token_bar("counting") as on_progress:
        found = statistics(shards, trained=trained, on_progress=on_progress)
    if as_json:
        _print_json({group: of_group.record() for group, of_group in found.items()})
    else:
        _print_statistics(found)


def head(
    path: DataPath,
    count: Annotated[int, typer.Option("-n", min=1, help="How many samples, from the first.")] = 1,
    sample: Annotated[int | None, typer.Option(min=1, help="Show this one, counted from 1 through all files.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=to_path, metavar="PATH", help="What to decode with. [default: the one kept beside the data]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show samples as text.

    What is only read, what is trained on, and the raw file they come from.
    """
    from evo_core.data.inspection.find import find_shards, find_tokenizer
    from evo_core.data.inspection.sample import decode_documents
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    shards = find_shards(path)
    known = find_tokenizer(path) if tokenizer is None else load_tokenizer(tokenizer)
    numbers = range(1, count + 1) if sample is None else range(sample, sample + 1)
    texts = decode_documents(shards, numbers, known)
    if as_json:
        _print_json([text.record() for text in texts])
        return
    for text in texts:
        _print_sample(text)
    if known is None:
        print("Only ids: no folder tokenizer/ lies beside the data. Name one with --tokenizer.")


def verify(
    path: DataPath,
    vocab_size: Annotated[int | None, typer.Option(min=1, help="Every id must be below it.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=to_path, metavar="PATH", help="Take its vocabulary size. [default: the one kept beside the data]"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many problems to list; all are counted.")] = 20,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one a core]")] = None,
    as_json: AsJson = False,
) -> None:
    """Check token files and shards.

    Every offset, length, line and id, a dataset's manifest, and that something of it can be trained on.

    Exit status 2 when something is wrong.
    """
    from evo_core.cores import cores
    from evo_core.data.commands.bar import token_bar
    from evo_core.data.inspection.find import find_lone_metas, find_shards, find_tokenizer
    from evo_core.data.inspection.manifest import compare_with_manifest
    from evo_core.data.inspection.targets import groups_without_targets
    from evo_core.data.inspection.verify import Problem, verify
    from evo_core.data.tokenize.tokenizers import load_tokenizer
    from evo_core.errors import DataError

    if vocab_size is not None and tokenizer is not None:
        raise DataError("give a vocabulary size or a tokenizer, not both", key="--vocab-size")
    shards = find_shards(path)
    if vocab_size is None:
        known = find_tokenizer(path) if tokenizer is None else load_tokenizer(tokenizer)
        vocab_size = None if known is None else known.vocab_size
    with token_bar("checking") as on_progress:
        report = verify(
            [shard.path for shard in shards],
            vocab_size=vocab_size,
            limit=limit,
            workers=workers or cores(),
            on_progress=on_progress,
        )
    for meta in find_lone_metas(path):
        report.add(Problem(meta, None, "a meta without its .bin"), limit)
    for problem in (*compare_with_manifest(path), *groups_without_targets(path, shards)):
        report.add(problem, limit)
    if as_json:
        _print_json(vars(report) | {"vocab_size": vocab_size, "problems": [str(p) for p in report.problems]})
    else:
        for problem in report.problems:
            print(problem)
        if (more := report.count - len(report.problems)) > 0:
            print(f"… and {more:,} more")
        checked = f"{report.files:,} files, {report.documents:,} documents, {report.tokens:,} tokens"
        against = f"ids below {vocab_size}" if vocab_size else "ids not compared with a vocabulary (--vocab-size)"
        print(f"{checked}, {against}: {_result(report.count)}")
    if report.count:
        raise typer.Exit(WRONG)


def _result(problems: int) -> str:
    return "all well" if not problems else f"{problems:,} problem{'' if problems == 1 else 's'}"


def _print_statistics(found: dict[str, Statistics]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    has_trained = any(of_group.trained is not None for of_group in found.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns = ["files", "documents", "tokens", "MB", "shortest", "median", "p95", "longest"]
    for column in [*columns, *(["trained"] if has_trained else [])]:
        table.add_column(column, justify="right")
    for group, s in found.items():
        values = (s.files, s.documents, s.tokens, s.bytes / 1e6, s.shortest, s.median, s.p95, s.longest)
        row = [f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in values]
        if s.trained is not None:
            row.append(f"{s.trained / max(1, s.tokens):.1%}")
        table.add_row(Text(group), *row)  # a plain string would be read for [markup] and :emoji:
    _print_rich(table)
    every = found.get("all") or next(iter(found.values()))
    most = max((documents for *_, documents in every.histogram), default=0)
    print("tokens a document")
    for low, high, documents in every.histogram:
        steps = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        print(f"{steps:>22} {_bar(documents, most)} {documents:,}")


def _bar(value: int, most: int, width: int = 40) -> str:
    """A bar of eighths of a letter; nothing at all only for zero."""
    eighths = max(round(value / most * width * 8), 1) if value else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _print_sample(text: DecodedDocument) -> None:
    from rich.text import Text

    trained = sum(part.tokens for part in text.parts if part.trained)
    facts = [text.shard.group, f"{len(text.ids):,} tokens, {trained:,} trained on"]
    if text.origin is not None:
        facts.append(f"from {text.origin}")
    print(f"{text.shard.path}:{text.number}  {', '.join(facts)}")
    if not any(part.text is not None for part in text.parts):
        print(" ".join(map(str, text.ids)))
        print()
        return
    if text.special:
        _print_rich(Text(f"[special tokens: {_positions(text)}]", style="dim"))
    for part in text.parts:
        title = "trained on" if part.trained else "only read"
        _print_rich(Text(f"[{title}: {part.tokens:,}]", style="green" if part.trained else "dim"))
        _print_rich(Text(part.text or "", style="bold" if part.trained else ""))
    print()


def _positions(text: DecodedDocument) -> str:
    """Each special token, its id and where it is: what else reads like it is text that spells it."""
    positions: dict[tuple[str, int], list[int]] = {}
    for token in text.special:
        positions.setdefault((token.piece, token.id), []).append(token.at)
    most = 8
    return "; ".join(
        f"{piece} = {number} at {', '.join(map(str, at[:most]))}{' …' * (len(at) > most)}"
        for (piece, number), at in positions.items()
    )


def _print_rich(content: Any) -> None:
    import sys

    from rich.console import Console

    # A file or a pipe gets lines as they are, not folded at 80 letters.
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False, soft_wrap=True).print(content)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
