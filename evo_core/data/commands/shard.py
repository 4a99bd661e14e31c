"""`evo data shard`: token files to train/ and valid/ shards, without a pipeline."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evo_core.data.commands.paths import to_path
from evo_core.errors import DataError

if TYPE_CHECKING:
    from evo_core.data.dataset.inventory import ShardSource


def shard(
    inputs: Annotated[
        list[Path], typer.Argument(parser=to_path, metavar="INPUT", help="Token files (.bin), or folders of them.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            parser=to_path, metavar="PATH", help="A new or empty folder; gets train/, valid/ and statistics.json."
        ),
    ],
    type_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE=GLOB",
            help="Type of the files whose path below INPUT matches, or a YAML file of "
            "such lines (TYPE: GLOB, or a list of them); repeatable, the first match counts.",
        ),
    ] = None,
    route: Annotated[
        Literal["path", "field", "detect"],
        typer.Option(
            help="path: by --type-map, else by the first folder; field: by what `tokenize --type-key` "
            "recorded; detect: language or code, seen from the text."
        ),
    ] = "path",
    types: Annotated[str | None, typer.Option(help="Types to take, like cn,en,code. [default: all]")] = None,
    others: Annotated[
        Literal["error", "drop"], typer.Option(help="Documents of other types: an error, or drop and count.")
    ] = "error",
    valid_fraction: Annotated[float, typer.Option(help="Share of the documents held out in valid/.")] = 0.01,
    shard_tokens: Annotated[int, typer.Option(help="Target size of a shard in tokens.")] = 100_000_000,
    dedup: Annotated[
        Literal["none", "exact", "near"], typer.Option(help="Leave out exact copies, or near ones as well.")
    ] = "none",
    near_threshold: Annotated[float, typer.Option(help="Least share of 5-token runs in common for near.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Holds out another part.")] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(parser=to_path, metavar="PATH", help="What the tokens were made with, for --route detect."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read. [default: one a core]")] = None,
) -> None:
    """Pack token files into shards of one type each.

    A part of every type is held out.
    """
    from evo_core.data.commands.bar import token_bar
    from evo_core.data.dataset.build import write_shards
    from evo_core.data.dataset.dedup import NearDuplicates
    from evo_core.data.dataset.routing import TypeRouting

    if route == "detect" and tokenizer is None:
        raise DataError("to detect types, tokens must be decoded", key="--tokenizer", hint="name their tokenizer")
    if type_map and route != "path":
        raise DataError(f"has no effect with --route {route}", key="--type-map", hint="leave one of them out")
    taken = frozenset(name for name in (types or "").split(",") if name) or None
    sources = find_sources(inputs, read_type_map(type_map or []) if route == "path" else None)
    with _hidden_beside(output) as folder, token_bar("sharding") as show:
        statistics = write_shards(
            sources,
            folder,
            valid_fraction=valid_fraction,
            shard_tokens=shard_tokens,
            seed=seed,
            routing=TypeRouting(route, tokenizer, taken, others),
            dedup=dedup,
            near=NearDuplicates(near_threshold),
            workers=workers,
            on_progress=lambda phase, done, total: show(*_share(phase, done, total)),
        )
    _print(statistics, output)


def read_type_map(given: Sequence[str]) -> dict[str, str]:
    """Shell pattern to type, from ``TYPE=GLOB`` and YAML files of ``TYPE: GLOB`` lines, in their order.

    Raises:
        DataError: one is neither.
    """
    patterns: dict[str, str] = {}
    for text in given:
        name, equals, pattern = text.partition("=")
        if equals and name and pattern:
            patterns.setdefault(pattern, name)
            continue
        for name, of_type in _map_in_file(Path(text)).items():
            for pattern in [of_type] if isinstance(of_type, str) else of_type:
                patterns.setdefault(pattern, name)
    return patterns


def find_sources(inputs: Sequence[Path], patterns: Mapping[str, str] | None) -> list[ShardSource]:
    """The token files in and below `inputs`, with the types of their paths.

    A file's type is that of the first pattern which matches its path below the input, else its first folder below
    the input, else the folder it lies in.

    Args:
        patterns: None where paths say nothing of types.

    Raises:
        DataError: an input is not there, or holds no token file.
    """
    from evo_core.data.dataset.inventory import ShardSource

    sources = []
    for given in inputs:
        root = given if given.is_dir() else given.parent
        for path in _bin_files(given):
            below = path.relative_to(root)
            origin = below if len(inputs) == 1 else path
            of_path = "" if patterns is None else _type_of(below, root, patterns)
            sources.append(ShardSource(of_path, path, origin.as_posix().removesuffix(".bin")))
    return sources


def _type_of(below: Path, root: Path, patterns: Mapping[str, str]) -> str:
    for pattern, name in patterns.items():
        if fnmatch.fnmatchcase(below.as_posix(), pattern):
            return name
    return below.parts[0] if len(below.parts) > 1 else root.absolute().name


def _map_in_file(path: Path) -> dict[str, str | list[str]]:
    import yaml

    hint = "give TYPE=GLOB, or a YAML file with lines like en: web/**/*.bin"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError("neither TYPE=GLOB nor a readable file", key=f"--type-map {path}", hint=hint) from None
    except yaml.YAMLError as error:
        raise DataError(f"not YAML ({error})", file=path, hint=hint) from None
    if not isinstance(content, dict):
        raise DataError("expected types and their patterns", file=path, hint=hint)
    for name, of_type in content.items():
        patterns = of_type if isinstance(of_type, list) else [of_type]
        if not isinstance(name, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise DataError(f"the type {name!r} has no pattern", file=path, hint=hint)
    return content


def _bin_files(given: Path) -> list[Path]:
    from evo_core.data.shards.folder import files_below

    if given.is_file():
        return [given]
    if not given.is_dir():
        raise DataError("there is no such file or folder", file=given)
    found = sorted(files_below(given, ".bin"))
    if not found:
        raise DataError("there is no .bin file here", file=given, hint="make some with `evo data tokenize`")
    return found


@contextlib.contextmanager
def _hidden_beside(output: Path) -> Iterator[Path]:
    """A folder that takes the name `output` when all went well, and is gone when not.

    Raises:
        DataError: something is there, or it cannot be written.
    """
    from evo_core.data.shards.format import write_error
    from evo_core.storage.files import new_folder

    if output.is_mount():
        raise DataError("a file system is mounted there", file=output, hint="name a folder in it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError("is in use", file=output, hint="name a new or an empty folder")
    try:
        with new_folder(output.absolute()) as folder:
            yield folder
    except OSError as error:
        raise write_error(output, error) from error


def _share(phase: str, done: int, total: int) -> tuple[float, int]:
    """How much of the work is done when half of it is reading and half is writing, and tokens written."""
    share = done / max(total, 1) / 2
    return (share, 0) if phase == "read" else (0.5 + share, done)


def _print(statistics: dict[str, Any], output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    removes = any("removed" in of_type for of_type in statistics["types"].values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ["documents", "tokens", "train", "valid", "shards", *(["copies", "near copies"] if removes else [])]
    table.add_column("type")
    for column in columns:
        table.add_column(column, justify="right")
    for name, of_type in statistics["types"].items():
        shards = sum(entry["type"] == name for entry in statistics["shards"])
        counts = [of_type["documents"], of_type["tokens"]]
        counts += [of_type["train"]["documents"], of_type["valid"]["documents"], shards]
        counts += of_type.get("removed", {}).values()
        # a plain string would be read for [markup] and :emoji:
        table.add_row(Text(name), *(f"{count:,}" for count in counts))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if dropped := statistics.get("dropped"):
        console.print("dropped: " + ", ".join(f"{count:,} {name}" for name, count in dropped.items()), markup=False)
    console.print(f"{output}/statistics.json lists every shard", markup=False)
