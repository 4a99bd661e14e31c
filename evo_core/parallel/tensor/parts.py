"""Parts of layers, to be put in the place of whole ones, and the record of what each rank then holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from evo_core.model.ops.embedding import Embedding
from evo_core.model.ops.head import Head
from evo_core.model.ops.linear import Linear
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.tensor.embedding import HiddenEmbedding, VocabularyEmbedding
from evo_core.parallel.tensor.exchange import Exchange
from evo_core.parallel.tensor.experts import RouterLinear
from evo_core.parallel.tensor.head import ParallelHead
from evo_core.parallel.tensor.linear import ColumnLinear, RowLinear
from evo_core.parallel.tensor.pieces import Pieces, Rows
from evo_core.placement import Held


class Parts:
    """Makes this rank's parts, with uninitialised weights where the whole ones are, and notes what they are parts of.

    Sizes divide: whoever asks has checked that.

    Attributes:
        mesh: whose ranks they are.
        exchange: how the ranks of the tensor axis share the residual stream.
        pieces: where parts lie on them.
        size: how many they are.
        rank: this one's number among them.
    """

    def __init__(self, mesh: Mesh, mode: str) -> None:
        self.mesh, self.exchange, self.pieces = mesh, Exchange.of(mode, mesh.tensor), Pieces(mesh)
        self.size, self.rank = mesh.tensor.size, mesh.tensor.rank
        self._held: dict[int, Held] = {}

    def column(self, old: Linear | nn.Linear, of_each: Sequence[Iterable[Rows]] | None = None) -> ColumnLinear:
        """Some outputs of a layer: equal parts in their order, or the rows named for each rank."""

        def held(parameter: Tensor) -> Held:
            shape = parameter.shape
            return self.pieces.even(shape, 0) if of_each is None else self.pieces.rows(shape, of_each)

        weight, bias = held(old.weight), old.bias is not None
        outputs = weight.placement.local_shape[0]
        new = ColumnLinear(old.in_features, outputs, self.exchange, bias=bias, **factory(old.weight))
        self.note(new.weight, weight, old.weight)
        if old.bias is not None and new.bias is not None:
            self.note(new.bias, held(old.bias), old.bias)
        return new

    def row(self, old: Linear | nn.Linear) -> RowLinear:
        """Some inputs of a layer; its bias is whole on every rank."""
        inputs, bias = old.in_features // self.size, old.bias is not None
        new = RowLinear(inputs, old.out_features, self.exchange, bias=bias, **factory(old.weight))
        self.note(new.weight, self.pieces.even(old.weight.shape, 1), old.weight)
        if old.bias is not None and new.bias is not None:
            new.bias.requires_grad_(old.bias.requires_grad)
        return new

    def embedding(self, old: Embedding | nn.Embedding) -> VocabularyEmbedding:
        """The rows of some ids."""
        here, width = old.weight.shape[0] // self.size, old.weight.shape[1]
        scale = old.grad_scale if isinstance(old, Embedding) else 1.0
        new = VocabularyEmbedding(
            here, width, self.exchange, first=here * self.rank, grad_scale=scale, **factory(old.weight)
        )
        self.note(new.weight, self.pieces.even(old.weight.shape, 0), old.weight)
        return new

    def columns_of(self, old: Embedding) -> HiddenEmbedding:
        """The columns here of all ids."""
        vocabulary, hidden = old.weight.shape
        settings = {"grad_scale": old.grad_scale, **factory(old.weight)}
        new = HiddenEmbedding(vocabulary, hidden // self.size, self.exchange, **settings)
        self.note(new.weight, self.pieces.even((vocabulary, hidden), 1), old.weight)
        return new

    def head(self, old: Head, *, tied_to: Embedding | None, gathers_logits: bool) -> ParallelHead:
        """The rows of some ids; of a tied head `tied_to` is the embedding that was cut in the place of its own."""
        weight = old.weight if old.tied_to is None else old.tied_to.weight
        vocabulary, hidden = weight.shape
        new = ParallelHead(
            hidden,
            vocabulary,
            self.exchange,
            gathers_logits=gathers_logits,
            norm_head=old.norm_head,
            grad_scale=old.grad_scale,
            tied_to=tied_to,
            **factory(weight),
        )
        if tied_to is None:
            self.note(new.weight, self.pieces.even(weight.shape, 0), weight)
        return new

    def router(self, old: Linear) -> RouterLinear:
        """All of a layer without a bias, for the rows here; its outputs are those of all rows."""
        new = RouterLinear(old.in_features, old.out_features, self.exchange, bias=False, **factory(old.weight))
        self.note(new.weight, self.pieces.whole(old.weight.shape, partial=self.exchange.by_rows), old.weight)
        return new

    def note(self, part: nn.Parameter, held: Held, whole: Tensor) -> None:
        """Write down what the ranks hold of a parameter of which this is the part here; it is trained if that was."""
        part.requires_grad_(whole.requires_grad)
        self._held[id(part)] = held

    def record(self, model: nn.Module, *, partial: bool) -> dict[str, Held]:
        """What the ranks hold of each parameter of a model that was cut, by name.

        Args:
            partial: of those that were not noted, which are whole on every rank, each sees a part of the gradient.
        """
        return {
            name: self._held.get(id(parameter)) or self.pieces.whole(parameter.shape, partial=partial)
            for name, parameter in model.named_parameters()
        }


def factory(weight: Tensor) -> dict[str, Any]:
    """Where and of which type a part of a weight is made."""
    return {"device": weight.device, "dtype": weight.dtype}
