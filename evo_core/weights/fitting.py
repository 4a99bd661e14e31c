"""What of some weights goes into a model: tensors by the model's own names, and how the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evo_core.checkpoint.allowed import Allow, Difference, differing
from evo_core.errors import CheckpointError
from evo_core.weights.job import configuration
from evo_core.weights.plain import EMBEDDING, HEAD, PlainForm, compare

if TYPE_CHECKING:
    from evo_core.config import ModelConfig
    from evo_core.weights.lazy import Lazy
    from evo_core.weights.source import Weights


def fitting(weights: Weights, here: ModelConfig, allow: Allow | None) -> tuple[dict[str, Lazy], Difference]:
    """The tensors of a model that weights have, by its own names, and what of the two differs.

    Args:
        here: the model.
        allow: what may differ; None: nothing.

    Raises:
        CheckpointError: something differs that may not, or is quantised.
    """
    plain, form = _untied(weights, here), PlainForm(here)
    there = _named_here(plain, weights, form)
    parts: dict[str, list[str]] = {}
    for part, name in there.items():
        parts.setdefault(name, []).append(part)
    for part, name in form.names.items():
        if name in parts and part not in plain:
            raise CheckpointError(f"lacks {part}, a part of {name} of which others are there", file=weights.folder)
    stored = {name: _together([plain[part] for part in found]) for name, found in parts.items()}
    difference = differing(form.own_shapes, stored, allow, weights.folder)
    taken = {part: plain[part] for part in form.names if part in plain}
    compare({part: form.shapes[part] for part in taken}, taken)
    return form.fitting(taken), difference


def _named_here(plain: Mapping[str, Lazy], weights: Weights, form: PlainForm) -> dict[str, str]:
    """What the model's family calls each tensor of weights; one that it has no name for keeps its own."""
    names = form.names
    try:  # of a model with more layers, say
        settings = weights.model.model_dump(exclude_unset=True) | {"model_type": form.cfg.model_type}
        names = PlainForm(configuration(settings, weights.folder).model).names | names
    except CheckpointError:
        pass  # the family has no such model
    modules = {part.rpartition(".")[0]: name.rpartition(".")[0] for part, name in names.items()}

    def name_of(part: str) -> str:
        module, _, kind = part.rpartition(".")
        return names.get(part) or (f"{modules[module]}.{kind}" if module in modules else part)

    return {part: name_of(part) for part in plain}


def _together(parts: Sequence[Lazy]) -> tuple[int, ...]:
    """The shape of a tensor that has the rows of others."""
    first = parts[0].shape
    return (sum(part.shape[0] for part in parts), *first[1:]) if len(parts) > 1 else first


def _untied(weights: Weights, here: ModelConfig) -> dict[str, Lazy]:
    """The tensors, with a head of its own where here it is not the embedding."""
    tensors = dict(weights.tensors)
    if weights.model.tie_word_embeddings and not here.tie_word_embeddings and EMBEDDING in tensors:
        tensors[HEAD] = tensors[EMBEDDING]
    return tensors
