"""The ``generation`` block: which prompts a trained model continues, and how tokens are chosen."""

from __future__ import annotations

from typing import ClassVar

from evo_core.config.fields import Block, execution
from evo_core.config.types import Float, NonNegativeInt, OptionalLocation, PositiveFloat, PositiveInt


class GenerationConfig(Block):
    """Nothing here is part of a training run's identity."""

    renamed: ClassVar[dict[str, str]] = {
        "additional_eos_token_list": "eos_id takes a list",
        "max_tokens": "its name is max_new_tokens",
    }

    ckpt_folder: OptionalLocation = execution(None, "Checkpoint to use; None: the newest complete one that was saved.")
    prompts: str | list[str] | None = execution(None, "A text file with a prompt per line, or the prompts.")
    data_folder: OptionalLocation = execution(
        None, "Tokenized prompts, where prompts is not given; None: valid_folder."
    )
    output_folder: OptionalLocation = execution(None, "Where samples.jsonl and samples.md are written.")
    batch_size: PositiveInt = execution(1, "Prompts generated for at a time.")
    bos_id: NonNegativeInt | None = execution(None, "Begin-of-text id; None: the tokenizer's.")
    eos_id: NonNegativeInt | list[NonNegativeInt] | None = execution(
        None, "Id or ids that end a text; None: those that the weights came with, and the tokenizer's."
    )
    pad_id: NonNegativeInt | None = execution(None, "Padding id; None: the tokenizer's.")
    max_length: PositiveInt = execution(100, "Tokens of prompt and continuation together.")
    max_new_tokens: PositiveInt | None = execution(None, "Tokens of the continuation, in place of max_length.")
    do_sample: bool = execution(True, "Draw each token; False: take the most likely.")
    temperature: PositiveFloat = execution(1.0, "Logits are divided by this before drawing.")
    top_k: NonNegativeInt = execution(50, "Draw from the k most likely tokens; 0: from all.")
    top_p: Float = execution(1.0, "Draw from the smallest set of tokens with this probability (0 < p <= 1).")
    num_beams: PositiveInt = execution(1, "Beams of beam search (drawn ones with do_sample); 1: none.")
    repetition_penalty: PositiveFloat = execution(1.0, "Above 1: tokens already there become less likely.")
    length_penalty: Float = execution(
        1.0,
        "Scores other than eos's are divided by length to this power; with beams a text's log-probability is, by its "
        "number of new tokens.",
    )
