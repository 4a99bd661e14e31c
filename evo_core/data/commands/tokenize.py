"""`evo data tokenize`: raw text files to one token file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evo_core.data.commands.paths import to_path
from evo_core.errors import DataError

if TYPE_CHECKING:
    from evo_core.data.raw.listing import LeftOut
    from evo_core.data.tokenize.tokenize_file import TokenizeResult


def tokenize(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Files (.txt, .jsonl, .json, also .gz, .zst; .parquet), folders of them, patterns, or s3:// URIs.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--bin_output_path",
            metavar="OUT.bin",
            parser=to_path,
            help="Token file; OUT.bin.meta goes beside it.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="SentencePiece .model, tokenizer.json, a folder with one, or a hub id."),
    ] = None,
    mode: Annotated[
        Literal["text", "internevo"],
        typer.Option(help="text: the fields named; internevo: JSON as InternEvo's tools/tokenizer.py reads it."),
    ] = "text",
    bos: Annotated[bool, typer.Option(help="Begin each document with the begin id.")] = True,
    eos: Annotated[bool, typer.Option(help="End each document with the end id.")] = True,
    text_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Field that holds the text; repeat to join. [default: text]")
    ] = None,
    type_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Field that names a document's type, for `shard --route field`.")
    ] = None,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="Stop at a wrong record, or skip it and count.")
    ] = "raise",
    max_record_bytes: Annotated[
        int, typer.Option(min=1, help="A longer line or record is wrong. [default: 16 MiB]", show_default=False)
    ] = 16 << 20,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one a core]")] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler to run on, or `local`. [default: processes]")
    ] = None,
    text_input_path: Annotated[
        str | None, typer.Option("--text_input_path", help="InternEvo's spelling of INPUT.", hidden=True)
    ] = None,
) -> None:
    """Tokenize text into one token file.

    File after file, in the order given. What is there under the output's name is replaced when all went well, and
    never appended to.
    """
    from evo_core.data.commands.bar import token_bar
    from evo_core.data.tokenize.fan_out import dask_executor, tokenize_together
    from evo_core.data.tokenize.tokenize_file import TokenizeSpec
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    given = [*(inputs or []), *([text_input_path] if text_input_path else [])]
    if not given:
        raise DataError("there is nothing to tokenize", key="INPUT", hint="name files, folders or patterns")
    if output is None:
        raise DataError("is required", key="--output", hint="name the token file to write, like cn/output.bin")
    if output.suffix != ".bin":
        raise DataError(f"{output} does not end in .bin", key="--output", hint=f"write {output}.bin")
    if tokenizer is None:
        raise DataError("is required", key="--tokenizer", hint=_WHERE_FROM)
    files, left_out = find_raw_files(given)
    model = load_tokenizer(tokenizer)  # here, once: of a hub id the workers get the file
    specs = [
        TokenizeSpec(
            input=file,
            output=output,
            tokenizer=model.path,
            text_keys=tuple(text_key or ["text"]),
            mode=mode,
            bos=bos,
            eos=eos,
            on_error=on_error,
            type_key=type_key,
            max_record_bytes=max_record_bytes,
        )
        for file in files
    ]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(dask_executor(dask)) if dask is not None else None
        on_progress = stack.enter_context(token_bar("tokenizing"))
        result = tokenize_together(specs, output, workers=workers, executor=executor, on_progress=on_progress)
    _print(result, len(files), output, time.monotonic() - began)
    if left_out.total:
        print(f"files left out: {left_out}")


def find_raw_files(given: Sequence[str]) -> tuple[list[str], LeftOut]:
    """The raw files that paths, folders, patterns and URIs mean, in the order given, and what is left out of them.

    Of a folder or a pattern only files with names of a raw format are taken; a file that is named must have one. Empty
    files hold no document.

    Raises:
        DataError: one of them means none, or all are empty.
    """
    from evo_core.data.raw.documents import FORMATS, file_format, has_format
    from evo_core.data.raw.listing import EMPTY, OTHER_FORMAT, LeftOut, find_files
    from evo_core.storage.files import file_exists
    from evo_core.storage.location import check_location

    found, left_out = list[str](), LeftOut()
    for text in given:
        check_location(text, "INPUT")
        if file_exists(text):
            file_format(text)
        listing = find_files(text).only(lambda file: has_format(file.path), OTHER_FORMAT).check_names()
        if not listing.files:
            raise DataError("there is no file of text here", file=text, hint=f"known: {', '.join(FORMATS)}")
        listing = listing.only(lambda file: file.size > 0, EMPTY)
        found += [file.uri for file in listing.files]
        left_out.update(listing.left_out)
    if not found:
        raise DataError("the file is empty", file=given[0])
    return found, left_out


def _print(result: TokenizeResult, files: int, output: Path, seconds: float) -> None:
    print(
        f"{files:,} file{'s' * (files != 1)}, {result.documents:,} documents, {result.tokens:,} tokens, "
        f"{result.tokens / max(seconds, 1e-9):,.0f} tokens/s  → {output}"
    )
    for name, (documents, tokens) in sorted(result.types.items()):
        print(f"  {name}: {documents:,} documents, {tokens:,} tokens")
    if result.blank:
        print(f"blank: {result.blank:,} text{'s' * (result.blank != 1)} without a token")
    if result.skipped:
        print(f"skipped: {result.skipped:,} record{'s' * (result.skipped != 1)}; the first: {result.first_error}")


_WHERE_FROM = (
    "a SentencePiece .model such as InternLM's V7_sft.model, a tokenizer.json, a folder with one, any hub id; or train "
    "one: the step tokenizer.train"
)
