"""How a model type of a user's own is cut: its class says so, in a method ``parallelize(self, tensor)``.

The class sees the whole sequence on every rank, so modules exchange as in mtp whatever the mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from evo_core.errors import ConfigError
from evo_core.model.ops.embedding import Embedding
from evo_core.model.ops.head import Head
from evo_core.model.ops.linear import Linear
from evo_core.nearest import divisors, nearest
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.tensor.embedding import VocabularyEmbedding
from evo_core.parallel.tensor.parts import Parts, factory
from evo_core.parallel.tensor.pieces import Rows
from evo_core.placement import span

_PLAIN = (None, None, False)
"""What torch's embedding has in place of settings that a part of it would not follow."""


def cut_own_type(model: nn.Module, mesh: Mesh) -> None:
    """Have a model cut itself in place, by its own method, and set its `held`. Its weights are uninitialised then.

    Raises:
        ConfigError: it has no such method, or cannot be cut over so many ranks.
    """
    method: Any = getattr(model, "parallelize", None)
    if not callable(method):
        hint = "give the class a method parallelize: docs/models.md"
        message = f"{type(model).__name__} does not say how it is cut"
        raise ConfigError(message, key="parallel.tensor.size", hint=hint)
    parts = Parts(mesh, "mtp")
    method(TensorRanks(parts))
    held: Any = parts.record(model, partial=False)
    model.held = held


class TensorRanks:
    """The ranks that share each layer, and what they put in the place of a model's modules.

    Every method replaces attributes of a module by parts of theirs, under their names. Between `column` and `row`, a
    rank has a part of the features; everywhere else all of them, alike on every rank.

    Attributes:
        size: how many ranks they are.
        rank: this one's number among them.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, self.size, self.rank = parts, parts.size, parts.rank
        self._embeddings: dict[int, VocabularyEmbedding] = {}

    def share(self, number: int, name: str) -> int:
        """A rank's part of a number, of heads say.

        Raises:
            ConfigError: it does not divide; `name` is what it says there.
        """
        if number % self.size:
            hint = f"nearest: {nearest(self.size, divisors(number))}"
            message = f"{name} {number} does not divide over {self.size} ranks"
            raise ConfigError(message, key="parallel.tensor.size", hint=hint)
        return number // self.size

    def column(self, module: nn.Module, *names: str, segments: Sequence[int] | None = None) -> None:
        """Linear layers of which each rank computes a part of the outputs: [..., in] -> [..., out / size].

        Args:
            segments: sizes of what lies behind one another in the outputs and is cut each by itself, as queries, keys
                and values of one matrix.
        """
        for name in names:
            old = _taken(module, name, nn.Linear, Linear)
            sizes = segments or [old.out_features]
            if sum(sizes) != old.out_features:
                raise _not_taken(name, f"{old.out_features} outputs wide and not {sum(sizes)} as its segments")
            for size in sizes:
                self.share(size, f"{name} out_features")
            setattr(module, name, self._parts.column(old, [self._rows(sizes, rank) for rank in range(self.size)]))

    def row(self, module: nn.Module, *names: str) -> None:
        """Linear layers of which each rank has a part of the inputs, and all get the outputs: [..., in / size] ->
        [..., out]."""
        for name in names:
            old = _taken(module, name, nn.Linear, Linear)
            self.share(old.in_features, f"{name} in_features")
            setattr(module, name, self._parts.row(old))

    def embedding(self, module: nn.Module, *names: str) -> None:
        """Embeddings of which each rank holds the rows of some ids: ids [...] -> [..., width]."""
        for name in names:
            old = _taken(module, name, nn.Embedding, Embedding)
            if isinstance(old, nn.Embedding) and (old.padding_idx, old.max_norm, old.scale_grad_by_freq) != _PLAIN:
                raise _not_taken(name, "an embedding with padding_idx, max_norm or scale_grad_by_freq")
            self.share(old.weight.shape[0], f"{name} num_embeddings")
            self._embeddings[id(old)] = new = self._parts.embedding(old)
            setattr(module, name, new)

    def head(self, module: nn.Module, *names: str) -> None:
        """Heads (`evo_core.model.Head`) of which each rank holds the rows of some ids: they give all logits, and the
        loss of the whole vocabulary. The embedding that one is tied to is cut before it."""
        for name in names:
            old = _taken(module, name, Head)
            tied = self._embeddings.get(id(old.tied_to)) if old.tied_to is not None else None
            if old.is_tied and tied is None:
                raise _not_taken(name, "a head tied to an embedding that is not cut yet")
            if tied is None:
                self.share(old.weight.shape[0], f"{name} vocab_size")
            setattr(module, name, self._parts.head(old, tied_to=tied, gathers_logits=False))

    def parameter(self, module: nn.Module, *names: str, dim: int = 0) -> None:
        """Parameters used between `column` and `row` of which each rank needs the part of its own features."""
        for name in names:
            old = module.get_parameter(name)
            shape = list(old.shape)
            shape[dim] = self.share(shape[dim], name)
            new = nn.Parameter(torch.empty(shape, **factory(old)))
            self._parts.note(new, self._parts.pieces.even(old.shape, dim), old)
            module.register_parameter(name, new)

    def partial(self, module: nn.Module, *names: str) -> None:
        """Parameters used between `column` and `row` that every rank needs whole, as a norm of each head: their
        gradients are added up over the ranks."""
        for name in names:
            old = module.get_parameter(name)
            self._parts.note(old, self._parts.pieces.whole(old.shape, partial=True), old)

    def _rows(self, segments: Sequence[int], rank: int) -> list[Rows]:
        starts = [sum(segments[:number]) for number in range(len(segments))]
        parts = [span(size, rank, self.size) for size in segments]
        return [(start + low, start + high) for start, (low, high) in zip(starts, parts, strict=True)]


def _taken(module: nn.Module, name: str, *kinds: type[nn.Module]) -> Any:
    """The module of that name. A subclass may compute something else, which a part of it would not.

    Raises:
        ConfigError: it is of another class.
    """
    old = getattr(module, name)
    if type(old) not in kinds:
        raise _not_taken(name, f"a {type(old).__name__}", " or ".join(f"{k.__module__}.{k.__name__}" for k in kinds))
    return old


def _not_taken(name: str, what: str, instead: str | None = None) -> ConfigError:
    hint = f"make it a {instead}" if instead else None
    return ConfigError(f"parallelize names {name}, which is {what}", key="model_type", hint=hint)
