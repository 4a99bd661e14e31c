"""What a training step needs of the weights it starts from: their shape and their tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.errors import ConfigError
from tasks.kind import Facts
from tasks.tokenizer import tokenizer_fact, tokenizer_in

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


def check_start(job: TrainConfig, facts: Mapping[str, Facts], where: str, *, is_open: bool) -> None:
    """Refuse weights that the job cannot train on.

    Args:
        facts: of the inputs `data` and `init`, as far as they are known.
        where: the step's place in the file.
        is_open: the job takes its shape from the weights.

    Raises:
        ConfigError: another shape or vocabulary, or data of another tokenizer.
    """
    from evo_core.config.open_shape import shape_conflict

    network, was = facts["init"].get("network"), facts["init"].get("vocab_size")
    if network and (conflict := shape_conflict(network, job, f"{where}.params.")) is not None:
        raise conflict
    if not is_open and was is not None and was != job.model.vocab_size:
        raise ConfigError(
            f"the model to start from has a vocabulary of {was}, this one of {job.model.vocab_size}",
            key=f"{where}.params.model.vocab_size",
            hint=f"set it to {was}",
        )
    if (problem := _other_tokenizer(facts)) is not None:
        hint = "tokenize with that of the weights: needs: {tokenizer: STEP}, the step that `init` names"
        raise ConfigError(problem, key=f"{where}.needs.data", hint=hint)


def other_settings(job: TrainConfig, network: Mapping[str, Any]) -> Iterator[str]:
    """The settings in which a job's network is another than that of the weights, and a rate that nobody chose for them;
    one line each."""
    from evo_core.config.fields import is_set
    from evo_core.config.open_shape import differences

    if not is_set(job, "adam.lr"):
        yield f"adam.lr is not stated: {job.adam.lr:g}, in a schedule that begins anew; trained weights may need less"
    if network:
        for key, there, here in differences(network, job):
            yield f"{key} is {there} with these weights and {here} in this run"


def found_facts(data: Path, init: Path, *, shaped: bool = False) -> dict[str, Facts]:
    """The facts of two artifacts that are there: a dataset, and the model to start from.

    Args:
        shaped: the job states its shape, and does without that of a model of another version.

    Raises:
        ConfigError: the configuration of the model to start from cannot be read.
    """
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    of_data, of_weights = tokenizer_in(data), tokenizer_in(init)
    known = {"vocab_size": load_tokenizer(of_data).vocab_size, "tokenizer": str(of_data)} if of_data.exists() else {}
    return {"data": known, "init": {**_shape(init, must=not shaped), "tokenizer": str(of_weights)}}


def _shape(init: Path, *, must: bool) -> Facts:
    from evo_core.config import load_saved_config
    from evo_core.config.open_shape import network_of

    try:
        there = load_saved_config(init / "model" / "config.yaml")
    except ConfigError:
        if must:
            raise
        return {}
    return {"network": network_of(there), "vocab_size": there.model.vocab_size}


def _other_tokenizer(facts: Mapping[str, Facts]) -> str | None:
    """What is wrong with the tokenizer of the data, where both are there to be compared."""
    from evo_core.data.tokenize.same_ids import disagreement
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    of_data, of_weights = tokenizer_fact(facts["data"]), tokenizer_fact(facts["init"])
    if of_data is None or of_weights is None or of_data == of_weights:
        return None
    return disagreement(load_tokenizer(of_data), load_tokenizer(of_weights))
