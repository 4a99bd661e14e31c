"""`evo data tokenize-sft`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evo_core.data.commands.paths import to_path

if TYPE_CHECKING:
    from evo_core.data.sft.write import SftResult


def tokenize_sft(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Records: a .json, .jsonl (also .gz, .zst) or .parquet file, a folder of them, or a pattern.",
        ),
    ],
    output_folder: Annotated[
        Path, typer.Argument(parser=to_path, metavar="OUTPUT", help="Gets train/, valid/ and tokenizer/.")
    ],
    tokenizer: Annotated[
        Path,
        typer.Argument(
            parser=to_path, metavar="TOKENIZER", help="SentencePiece .model, tokenizer.json, or a folder with one."
        ),
    ],
    split_ratio: Annotated[
        float, typer.Option("--split-ratio", "--split_ratio", help="Share of the samples held out in valid/; 0: none.")
    ] = 0.1,
    record_format: Annotated[
        str, typer.Option("--format", help="alpaca, chat, sharegpt, or a function of yours: package.module:function.")
    ] = "alpaca",
    chat_template: Annotated[
        Path | None,
        typer.Option(
            parser=to_path,
            metavar="PATH",
            help="Jinja file for chat and sharegpt. [default: the one beside the tokenizer]",
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Longer samples are cut to as many tokens, those whose prompt fills them left out.")
    ] = 2048,
    data_type: Annotated[str, typer.Option("--type", help="Data type: the folder in train/ and valid/.")] = "en",
    seed: Annotated[int, typer.Option(help="Draws another valid part.")] = 0,
    bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="Begin id. [default: yes, with a chat template no]")
    ] = None,
    eos: Annotated[
        bool | None, typer.Option("--eos/--no-eos", help="End id. [default: yes, with a chat template no]")
    ] = None,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="Stop at a wrong record, or skip it and count.")
    ] = "raise",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one a core]")] = None,
) -> None:
    """Make fine-tuning data: only the answers are trained on.

    alpaca reads {instruction, input, output}; chat reads {messages: [{role, content}, …]} and sharegpt
    {conversations: [{from, value}, …]} through a chat template.
    """
    from evo_core.cores import cores
    from evo_core.data.commands.bar import token_bar
    from evo_core.data.sft.records import find_records
    from evo_core.data.sft.samples import SftSettings
    from evo_core.data.sft.write import write_sft_dataset

    found = find_records(dataset)
    files = [Path(file.uri) for file in found.files]
    settings = SftSettings(
        tokenizer=tokenizer,
        record_format=record_format,
        chat_template=chat_template,
        max_length=max_length,
        bos=bos,
        eos=eos,
        on_error=on_error,
    )
    with token_bar("tokenizing") as on_progress:
        result = write_sft_dataset(
            files,
            output_folder,
            settings,
            split_ratio=split_ratio,
            seed=seed,
            data_type=data_type,
            workers=workers or cores(),
            on_progress=on_progress,
        )
    if result.note:
        print(f"{record_format}: {result.note}")
    _print(result, output_folder, data_type, max_length)
    if found.left_out.total:
        print(f"files left out: {found.left_out}")


def _print(result: SftResult, output: Path, data_type: str, max_length: int) -> None:
    for split, counts in result.splits.items():
        share = counts.trained / max(1, counts.tokens)
        path = output / split / data_type / "dataset.bin"
        samples = _counted(counts.samples, "sample")
        print(f"{split}: {samples}, {counts.tokens:,} tokens, {share:.1%} of them trained on  → {path}")
    if result.cut:
        print(f"cut at {max_length} tokens: {_counted(result.cut, 'sample')}")
    if result.skipped.no_room:
        print(f"left out, as the prompt fills {max_length} tokens: {_counted(result.skipped.no_room, 'sample')}")
    if result.skipped.count:
        print(f"skipped: {_counted(result.skipped.count, 'record')}; the first: {result.skipped.first}")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
