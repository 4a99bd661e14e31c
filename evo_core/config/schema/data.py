"""The ``data`` block: what is trained on, in batches of which shape."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import field_validator, model_validator

from evo_core.config.fields import Block, execution, identity
from evo_core.config.types import Float, Int, NonNegativeFloat, NonNegativeInt, OptionalLocation, PositiveInt


class Rampup(NamedTuple):
    """Growth of the batch: ``start`` micro-batches at step 0, ``increment`` more every ``every`` steps."""

    start: int
    increment: int
    every: int


class DataConfig(Block):
    """Samples are cut to segments of ``seq_len`` tokens and packed into micro-batches of ``packed_length``."""

    renamed: ClassVar[dict[str, str]] = {
        "packed_length": "it is always seq_len * micro_bsz: leave it out",
        "gradient_accumulation": "micro_num says the same",
        "batch_size": "micro_num says the same",
    }

    type: Literal["tokenized", "hf"] = identity(
        "tokenized", "What train_folder is: token shards (.bin), or a Hugging Face data set read while training."
    )
    train_folder: OptionalLocation = execution(
        None,
        "Folder with a sub-folder of .bin files per data type; None trains on random data. With type hf: a folder of "
        "files, a file, or a hub's owner/name.",
    )
    valid_folder: OptionalLocation = execution(None, "Folder like train_folder for evaluation; None: random data.")
    seq_len: PositiveInt = identity(2048, "Tokens of the longest segment.")
    micro_bsz: PositiveInt = identity(1, "Segments' worth of tokens in a micro-batch.")
    micro_num: PositiveInt | None = identity(
        None,
        "Micro-batches of one update on each data-parallel rank. Without it: 1, or what follows from "
        "global_batch_tokens and the ranks at hand.",
    )
    global_batch_tokens: PositiveInt | None = identity(
        None,
        "Tokens of one update over all ranks, in place of micro_num: the run means the same on any number of ranks.",
        introduced=None,
    )
    total_steps: PositiveInt = identity(50000, "Updates to attempt; the end of the run.")
    pack_sample_into_one: bool = identity(
        False, "True: attention crosses the samples inside a segment of seq_len. False: it stays in each sample."
    )
    min_length: NonNegativeInt = identity(0, "Samples with fewer tokens than this are left out.")
    min_length_dict: dict[str, NonNegativeInt] = identity(
        {}, "min_length for files whose path below train_folder, like /cn/train_000.bin, holds the key."
    )
    type_weights: dict[str, NonNegativeFloat] | None = identity(
        None, "Weight of each data type in the mix; None: in proportion to its tokens.", introduced=None
    )
    skip_batches: str | None = identity(
        "", 'Steps whose batch is drawn but not trained on: "10-20,35" (both ends included, ascending).'
    )
    rampup_batch_size: str | None = identity(
        "", '"start increment every": micro_num starts at start and grows by increment every that many steps.'
    )
    packing: Literal["continuous", "internevo"] = identity(
        "continuous",
        "continuous: packs run across the files of a type. internevo: file by file, each file's tail dropped.",
        introduced="continuous",
    )
    use_packed_dataset: bool = identity(True, "False: one sample a row, padded to seq_len.")
    mask_token_zero: bool = identity(
        False, "True: the token id 0 is never a target, as in InternEvo.", introduced=False
    )
    fixed_random_dataset_seqlen: bool = identity(True, "Random data: every sample is seq_len tokens long.")
    tokenizer_path: OptionalLocation = execution(
        None, "Tokenizer the tokens were made with; it is kept with the checkpoints, for generation."
    )
    subset_name: str | None = identity(None, "Folder inside a Hugging Face data set.")
    text_key: str = identity("text", "Field of a Hugging Face data set that holds the text.", introduced="text")
    valid_every: NonNegativeInt = execution(0, "Steps between two evaluations on valid_folder; 0: none.")
    valid_micro_num: PositiveInt | None = execution(None, "Micro-batches evaluated at once; None: as stages need.")
    log_every: PositiveInt = execution(1, "Steps between two log lines.")
    num_worker: NonNegativeInt = execution(
        4, "Threads that draw batches ahead of the step that needs them; 0: each is drawn when it is needed."
    )
    empty_cache_and_diag_interval: Int = execution(
        50, "Steps between two clean-ups of memory with a diagnosis of slow ranks; 0 or less: 50."
    )
    diag_outlier_ratio: Float = execution(1.1, "A rank this many times slower than the mean is reported.")
    use_shm: bool = execution(False, "Share the packs' index between the ranks of a node in shared memory.")
    shm_path: str = execution("/dev/shm/metacache", "Folder of that index.")

    @property
    def packed_length(self) -> int:
        """Tokens of a micro-batch."""
        return self.seq_len * self.micro_bsz

    @property
    def rampup(self) -> Rampup | None:
        """rampup_batch_size as numbers; None where the batch is constant."""
        return parse_rampup(self.rampup_batch_size)

    @property
    def skip_ranges(self) -> tuple[tuple[int, int], ...]:
        """skip_batches as (first, last) steps, both included."""
        return parse_ranges(self.skip_batches)

    def skips(self, step: int) -> bool:
        """Whether the batch of this step (from 0) is drawn but not trained on."""
        return any(first <= step <= last for first, last in self.skip_ranges)

    @model_validator(mode="before")
    @classmethod
    def _one_micro_batch(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("micro_num") is None and data.get("global_batch_tokens") is None:
            return {**data, "micro_num": 1}
        return data

    @field_validator("rampup_batch_size")
    @classmethod
    def _rampup_is_three_numbers(cls, value: str | None) -> str:
        parse_rampup(value)
        return (value or "").strip()

    @field_validator("skip_batches")
    @classmethod
    def _ranges_ascend(cls, value: str | None) -> str:
        parse_ranges(value)
        return (value or "").strip()


def parse_rampup(text: str | None) -> Rampup | None:
    """``"4 2 100"`` as numbers; None for None and blank text.

    Raises:
        ValueError: anything else than three whole numbers of at least 1.
    """
    words = (text or "").split()
    if not words:
        return None
    if len(words) != 3 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f'must be three numbers "start increment every" of at least 1, not "{text}"')
    return Rampup(*map(int, words))


def parse_ranges(text: str | None) -> tuple[tuple[int, int], ...]:
    """``"3,10-20"`` as ``((3, 3), (10, 20))``; empty for None and blank text.

    Raises:
        ValueError: a part is no number or range, or does not come after the part before it.
    """
    ranges: list[tuple[int, int]] = []
    for part in (text or "").split(",") if (text or "").strip() else []:
        first, dash, last = part.strip().partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
            raise ValueError(f'"{part.strip()}" is neither a step nor a range like 10-20')
        ends = int(first), int(last) if dash else int(first)
        if ends[0] > ends[1] or (ranges and ends[0] <= ranges[-1][1]):
            raise ValueError(f'"{part.strip()}" does not ascend')
        ranges.append(ends)
    return tuple(ranges)
