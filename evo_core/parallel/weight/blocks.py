"""The blocks of a decoder with weights that are fetched, and attention that each rank does for some heads."""

from __future__ import annotations

import itertools
from typing import Any

from torch import nn

from evo_core.model.decoder import Decoder
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.moe import MixtureMLP
from evo_core.parallel.tensor.parts import Parts, factory
from evo_core.parallel.tensor.pieces import Pieces
from evo_core.parallel.weight.attention import HeadsAttention
from evo_core.parallel.weight.experts import RowsDispatch
from evo_core.parallel.weight.gathering import Gathering, Unit
from evo_core.parallel.weight.linear import GatheredLinear


class GatheredBlocks:
    """Puts isp's modules in the place of those of the blocks.

    Args:
        model: on the meta device, its stages cut.
        parts: of the tensor axis, which keeps the record of what is held.
        pieces: of the weight axis.
        gathering: how weights come here.
    """

    def __init__(self, model: Decoder, parts: Parts, pieces: Pieces, gathering: Gathering) -> None:
        self._model, self._parts, self._pieces, self._gathering = model, parts, pieces, gathering

    def apply(self) -> None:
        """Replace them, stage by stage."""
        model = self._model
        names = {id(module): name for name, module in model.named_modules()}
        for stage in model.stages:
            units = [Unit(number) for number in stage.blocks]
            for before, after in itertools.pairwise(units):
                before.after, after.before = after, before
            for unit in units:
                block: Any = model.blocks[str(unit.number)]
                self._cut(block, unit, names)
        if self._parts.size > 1:
            model.projects_own_rows = True

    def _cut(self, block: Any, unit: Unit, names: dict[int, str]) -> None:
        sequence = self._parts.exchange
        mixture = block.mlp if isinstance(block.mlp, MixtureMLP) else None
        whole: list[Linear] = []
        if mixture is not None:
            whole = [mixture.moe_layer.gate.wg] + ([mixture.coefficient] if mixture.residual_mlp is not None else [])
        for parent in list(block.modules()):
            for name, old in list(parent.named_children()):
                if isinstance(old, Linear) and not any(old is each for each in whole):
                    setattr(parent, name, self._gathered(old, unit, names[id(old)]))
        if mixture is not None:
            mixture.moe_layer.dispatch = RowsDispatch(sequence)
            if self._parts.size > 1:
                mixture.moe_layer.gate.wg = self._parts.router(mixture.moe_layer.gate.wg)
        if self._parts.size > 1:
            block.attention.core = HeadsAttention(block.attention.core, sequence.axis)

    def _gathered(self, old: Linear, unit: Unit, name: str) -> Linear:
        new, bias = old, old.bias is not None
        if self._gathering.axis.size > 1:
            inputs, outputs = old.in_features, old.out_features
            new = GatheredLinear(inputs, outputs, self._gathering, unit, name, bias=bias, **factory(old.weight))
        for here, whole in ((new.weight, old.weight), (new.bias, old.bias)):
            if here is not None and whole is not None:
                self._parts.note(here, self._pieces.even(whole.shape, 0), whole)
        return new


def gathering_of(model: nn.Module) -> Gathering | None:
    """How the weights of a model come here; None where each rank has them."""
    return next((each.gathering for each in model.modules() if isinstance(each, GatheredLinear)), None)
