"""The plain form: the one set of names and row orders that every format is translated to and from.

A tensor is called by its place in the decoder in the decoder's own terms (``blocks.3.attention.q.weight``), whatever
its family calls it. Query, key and value are three tensors, and rotary pairs are halves (i, i + head_dim/2). So a
format knows only how to get there and back, and any two of them convert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evo_core.checkpoint.allowed import listed
from evo_core.checkpoint.tensors import filling
from evo_core.errors import CheckpointError
from evo_core.model import build_model
from evo_core.model.aliases import AliasedModule
from evo_core.model.decoder import Decoder
from evo_core.weights.heads import halves_to_pairs, pairs_to_halves, part_of_qkv, to_qkv
from evo_core.weights.lazy import Lazy, held, joined
from evo_core.weights.source import DTYPES

if TYPE_CHECKING:
    from evo_core.config import ModelConfig

EMBEDDING, HEAD = "embedding.weight", "head.weight"

Tensors = Mapping[str, Lazy]
ChangePairs = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class _Slot:
    """A tensor of a model: its own name, its plain name, and whether it holds query, key and value in one."""

    name: str
    plain: str
    fused: bool

    @property
    def parts(self) -> list[str]:
        return [self.plain.replace(".qkv.", f".{part}.") for part in "qkv"] if self.fused else [self.plain]


class PlainForm:
    """The translation between a model's own tensors and the plain form.

    Args:
        cfg: the `model` block.

    Raises:
        CheckpointError: it is of a registered model type, whose tensors nothing is known of, or larger than any
            model can be.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        try:
            model = build_model(cfg, device="meta")
        except RuntimeError as error:  # sizes whose product is no number of bytes
            raise CheckpointError(f"describes a model that is not supported: {error}") from error
        if not isinstance(model, Decoder):
            raise CheckpointError(f"model type {cfg.model_type} is none of the shipped families", key="model_type")
        self.cfg, self.layout = cfg, model.family.qkv
        self._shapes = {name: held(tensor) for name, tensor in model.state_dict().items()}
        tied = cfg.tie_word_embeddings
        self._slots = [
            _Slot(name, plain, ".attention.qkv." in plain)
            for name, plain in _plain_names(model)
            if not (tied and plain == HEAD)
        ]
        self.shapes: dict[str, tuple[int, ...]] = {
            plain: tensor.shape for plain, tensor in self.to_plain(self._shapes).items()
        }

    def to_plain(self, own: Tensors, *, whole: bool = True) -> dict[str, Lazy]:
        """The plain form of a model's own tensors.

        Args:
            whole: refuse what is not all of a model; else what is there is given, left-over tensors by their own names.

        Raises:
            CheckpointError: one is mis-shaped, or with `whole` missing or left over.
        """
        own = {name: tensor for name, tensor in own.items() if not self._is_tied_head(name)}
        wanted = {name: shape for name, shape in self.own_shapes.items() if whole or name in own}
        compare(wanted, own if whole else {name: own[name] for name in wanted})
        plain = {} if whole else {name: tensor for name, tensor in own.items() if name not in wanted}
        for slot in self._slots:
            if slot.name not in wanted:
                continue
            for part in slot.parts:
                tensor = own[slot.name]
                plain[part] = self._paired(part, self._part(tensor, part) if slot.fused else tensor, pairs_to_halves)
        return plain

    def from_plain(self, plain: Tensors) -> dict[str, Lazy]:
        """A model's own tensors, by its own names, from the plain form.

        Raises:
            CheckpointError: one is missing, mis-shaped, or left over.
        """
        compare(self.shapes, plain)
        return self.fitting(plain)

    def fitting(self, plain: Tensors) -> dict[str, Lazy]:
        """A model's own tensors, by its own names: those of which every part is in a plain form."""
        return {slot.name: self._own(slot, plain) for slot in self._slots if all(part in plain for part in slot.parts)}

    @property
    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each of the model's own tensors."""
        return {slot.name: self._shapes[slot.name].shape for slot in self._slots}

    @property
    def names(self) -> dict[str, str]:
        """The model's own name of each tensor of the plain form; several have one where they are one tensor there."""
        return {part: slot.name for slot in self._slots for part in slot.parts}

    def _own(self, slot: _Slot, plain: Tensors) -> Lazy:
        parts = [self._paired(part, plain[part], halves_to_pairs) for part in slot.parts]
        if not slot.fused:
            return parts[0]
        layout, kv_heads, head_dim = self.layout, self.cfg.num_kv_attention_heads, self.cfg.head_dim
        return joined(parts, lambda tensors: to_qkv(tensors, layout, kv_heads, head_dim))

    def _part(self, tensor: Lazy, name: str) -> Lazy:
        cfg, layout, part = self.cfg, self.layout, name.split(".")[-2]
        heads, kv_heads, head_dim = cfg.num_attention_heads, cfg.num_kv_attention_heads, cfg.head_dim
        return tensor.then(lambda x: part_of_qkv(x, part, layout, heads, kv_heads, head_dim))

    def _paired(self, name: str, tensor: Lazy, change: ChangePairs) -> Lazy:
        """Query and key rows of a model with neighbouring pairs, put in the other order."""
        if not (self.cfg.qk_interleaved and is_rotated(name)):
            return tensor
        head_dim = self.cfg.head_dim
        return tensor.then(lambda x: change(x, head_dim))

    def _is_tied_head(self, name: str) -> bool:
        return self.cfg.tie_word_embeddings and name in self._shapes and all(name != s.name for s in self._slots)


def is_rotated(plain: str) -> bool:
    """Whether a tensor's rows are turned by the rotary embedding, biases and norms of heads included."""
    return any(f".attention.{part}." in plain for part in ("q", "k", "q_norm", "k_norm"))


def compare(wanted: Mapping[str, tuple[int, ...]], given: Tensors) -> None:
    """Check that every wanted tensor is there in its shape, and nothing else.

    Raises:
        CheckpointError: naming what is not so.
    """
    problems = []
    if missing := [name for name in wanted if name not in given]:
        problems.append(f"lacks {listed(missing)}")
    if unexpected := [name for name in given if name not in wanted]:
        problems.append(f"has {listed(unexpected)}, which this model does not have")
    misshapen = [name for name, shape in wanted.items() if name in given and given[name].shape != shape]
    if misshapen:
        shapes = [f"{name} {list(given[name].shape)} in place of {list(wanted[name])}" for name in misshapen]
        problems.append(f"has the shapes {listed(shapes)}")
    if quantised := [
        f"{name} of {given[name].dtype}" for name in wanted if name in given and not _is_usual(given[name])
    ]:
        problems.append(f"has quantised weights ({listed(quantised)}): take ones that are not")
    if problems:
        raise CheckpointError("; ".join(problems))


def _is_usual(tensor: Lazy) -> bool:
    return tensor.dtype in DTYPES


def fill(model: nn.Module, own: Tensors) -> None:
    """Copy what this rank holds of a model's tensors into it, one by one, rounded to the types it has.

    Args:
        own: whole, as `PlainForm.fitting` gives them; of each no more is read than is held here. What is not among them
            stays as it is.
    """
    with torch.no_grad(), filling(model) as tensors:
        for name, placed in tensors.items():
            if name not in own:
                continue
            for piece, view in placed.pieces():
                view.copy_(own[name].part(piece.where))


def _plain_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Each tensor's own name and its plain one."""
    for module_name, plain in _modules(model, "", ""):
        module = model.get_submodule(module_name)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield _below(module_name, name), _below(plain, name)


def _modules(module: nn.Module, name: str, plain: str) -> Iterator[tuple[str, str]]:
    """Each module's own name, and the same path in aliases."""
    yield name, plain
    aliases = module.aliases if isinstance(module, AliasedModule) else {}
    for child_name, child in module.named_children():
        yield from _modules(child, _below(name, child_name), _below(plain, aliases.get(child_name, child_name)))


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
