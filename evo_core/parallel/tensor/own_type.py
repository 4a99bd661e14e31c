"""How a model type of a user's own is cut: its class says so, in a method ``parallelize(self, tensor)``.

The class sees the whole sequence on every rank, so modules exchange as in mtp whatever the mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evo_core.errors import ConfigError
from evo_core.model.ops.embedding import Embedding
from evo_core.model.ops.head import Head
from evo_core.model.ops.linear import Linear
from evo_core.nearest import divisors, nearest
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.tensor.embedding import VocabularyEmbedding
from evo_core.parallel.tensor.exchange import Exchange
from evo_core.parallel.tensor.head import ParallelHead
from evo_core.parallel.tensor.linear import ColumnLinear, RowLinear
from evo_core.parallel.tensor.pieces import Pieces
from evo_core.placement import Held, span

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
    tensor = TensorRanks(mesh)
    method(tensor)
    held: Any = tensor.held(model)
    model.held = held


class TensorRanks:
    """The ranks that share each layer, and what they put in the place of a model's modules.

    Every method replaces attributes of a module by parts of theirs, under their names. Between `column` and `row`, a
    rank has a part of the features; everywhere else all of them, alike on every rank.

    Attributes:
        size: how many ranks they are.
        rank: this one's number among them.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.size, self.rank = mesh.tensor.size, mesh.tensor.rank
        self._exchange, self._pieces = Exchange.of("mtp", mesh.tensor), Pieces(mesh)
        self._held: dict[int, Held] = {}
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
            parts, bias = segments or [old.out_features], old.bias is not None
            outputs = sum(self.share(size, f"{name} out_features") for size in parts)
            rows = [self._rows(parts, rank) for rank in range(self.size)]
            new = ColumnLinear(old.in_features, outputs, self._exchange, bias=bias, **_factory(old.weight))
            for part, whole in ((new.weight, old.weight), (new.bias, old.bias)):
                if part is not None:
                    self._note(part, whole, self._pieces.rows(whole.shape, rows))
            setattr(module, name, new)

    def row(self, module: nn.Module, *names: str) -> None:
        """Linear layers of which each rank has a part of the inputs, and all get the outputs: [..., in / size] ->
        [..., out]."""
        for name in names:
            old = _taken(module, name, nn.Linear, Linear)
            inputs, bias = self.share(old.in_features, f"{name} in_features"), old.bias is not None
            new = RowLinear(inputs, old.out_features, self._exchange, bias=bias, **_factory(old.weight))
            self._note(new.weight, old.weight, self._pieces.even(old.weight.shape, 1))
            if new.bias is not None:
                self._note(new.bias, old.bias, self._pieces.whole(old.bias.shape, partial=False))
            setattr(module, name, new)

    def embedding(self, module: nn.Module, *names: str) -> None:
        """Embeddings of which each rank holds the rows of some ids: ids [...] -> [..., width]."""
        for name in names:
            old = _taken(module, name, nn.Embedding, Embedding)
            if isinstance(old, nn.Embedding) and (old.padding_idx, old.max_norm, old.scale_grad_by_freq) != _PLAIN:
                raise _not_taken(name, "an embedding with padding_idx, max_norm or scale_grad_by_freq")
            here, width = self.share(old.weight.shape[0], f"{name} num_embeddings"), old.weight.shape[1]
            settings = {"grad_scale": getattr(old, "grad_scale", 1.0), **_factory(old.weight)}
            new = VocabularyEmbedding(here, width, self._exchange, first=here * self.rank, **settings)
            self._note(new.weight, old.weight, self._pieces.even(old.weight.shape, 0))
            self._embeddings[id(old)] = new
            setattr(module, name, new)

    def head(self, module: nn.Module, *names: str) -> None:
        """Heads (`evo_core.model.Head`) of which each rank holds the rows of some ids: they give all logits, and the
        loss of the whole vocabulary. The embedding that one is tied to is cut before it."""
        for name in names:
            old = _taken(module, name, Head)
            tied = self._embeddings.get(id(old.tied_to)) if old.tied_to is not None else None
            if old.is_tied and tied is None:
                raise _not_taken(name, "a head tied to an embedding that is not cut yet")
            weight = old.weight if old.tied_to is None else old.tied_to.weight
            vocabulary, hidden = weight.shape
            self.share(vocabulary, f"{name} vocab_size")
            settings = {"norm_head": old.norm_head, "grad_scale": old.grad_scale, "tied_to": tied, **_factory(weight)}
            new = ParallelHead(hidden, vocabulary, self._exchange, gathers_logits=False, **settings)
            if tied is None:
                self._note(new.weight, weight, self._pieces.even(weight.shape, 0))
            setattr(module, name, new)

    def parameter(self, module: nn.Module, *names: str, dim: int = 0) -> None:
        """Parameters used between `column` and `row` of which each rank needs the part of its own features."""
        for name in names:
            old = module.get_parameter(name)
            shape = list(old.shape)
            shape[dim] = self.share(shape[dim], name)
            new = nn.Parameter(torch.empty(shape, **_factory(old)))
            self._note(new, old, self._pieces.even(old.shape, dim))
            module.register_parameter(name, new)

    def partial(self, module: nn.Module, *names: str) -> None:
        """Parameters used between `column` and `row` that every rank needs whole, as a norm of each head: their
        gradients are added up over the ranks."""
        for name in names:
            old = module.get_parameter(name)
            self._held[id(old)] = self._pieces.whole(old.shape, partial=True)

    def held(self, model: nn.Module) -> dict[str, Held]:
        """What the ranks hold of each parameter of a model that was cut, by name; all of what was not named."""
        return {
            name: self._held.get(id(parameter)) or self._pieces.whole(parameter.shape, partial=False)
            for name, parameter in model.named_parameters()
        }

    def _rows(self, segments: Sequence[int], rank: int) -> list[tuple[int, int]]:
        starts = [sum(segments[:number]) for number in range(len(segments))]
        parts = [span(size, rank, self.size) for size in segments]
        return [(start + low, start + high) for start, (low, high) in zip(starts, parts, strict=True)]

    def _note(self, part: nn.Parameter, whole: Tensor, held: Held) -> None:
        part.requires_grad_(whole.requires_grad)
        self._held[id(part)] = held


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


def _factory(weight: Tensor) -> dict[str, Any]:
    return {"device": weight.device, "dtype": weight.dtype}
