"""FSDP: the ranks of a ZeRO group share parameters and gradients too, by torch's `fully_shard`.

Whole parameters are there only while a part of the model computes: the embedding, each block, the head; the few that
are left stay for a whole pass. Gradients of a part are reduced as soon as it has made them, in every micro-batch, so
that no rank ever holds all of them (Rajbhandari et al. 2020, ZeRO stage 3; Zhao et al. 2023, PyTorch FSDP). With fewer
ranks in a ZeRO group than there are copies, groups are replicas of each other (hybrid sharding).

Shares are the master values: they are in float32 or wider, and are rounded to the type of the model when they are
fetched. Each is a run of the parameter's rows, by `placement.span`, as a share of ZeRO-1 is: so checkpoints are the
same. The types in which the model computes are what they are saved in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from evo_core.errors import ConfigError
from evo_core.model.decoder import Decoder
from evo_core.model.dtypes import accumulation_dtype
from evo_core.parallel.collectives import OwnWaiting
from evo_core.parallel.mesh import Mesh
from evo_core.placement import Held, Placement, Shards

_KEY = "parallel.zero1.fsdp"


def shard(model: nn.Module, mesh: Mesh) -> None:
    """Leave, in place, this rank's shares of a model's parameters; set its `shards`.

    Args:
        model: on the meta device, or one of a user's own type with memory; cut over the tensor ranks, where there are
            several. Its blocks are those of a decoder, else what is in its outermost `nn.ModuleList`s (`_blocks`).

    Raises:
        ConfigError: it has a parameter that cannot be shared.
    """
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if not parameter.dim():
            hint = "give it the shape [1] in the model's code, or set fsdp to false"
            raise ConfigError(f"{name} is a scalar, which has no rows to share", key=_KEY, hint=hint)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters(remove_duplicate=False)}
    shards = Shards({name: _share(model, name, each, mesh) for name, each in named.items()}, dtypes)
    of_parameter = {parameter: dtypes[name] for name, parameter in named.items()}
    for parameter in named.values():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(accumulation_dtype(parameter.dtype))
        parameter.data = parameter.data.contiguous()  # a transposed one has no rows to share
    units = _Units(mesh, of_parameter)
    if isinstance(model, Decoder):
        _shard_decoder(model, units)
    else:
        for part in _blocks(model):
            units.share(part)
        units.share(model)
    holder: Any = model
    holder.shards = shards
    if hasattr(model, "set_reduce_scatter_unused_params"):  # torch 2.13; before it every rank must use the same ones
        holder.set_reduce_scatter_unused_params(True)


def _share(model: nn.Module, name: str, parameter: nn.Parameter, mesh: Mesh) -> Placement:
    """What this rank has of a parameter, as it lies on the tensor ranks."""
    held: dict[str, Held] = getattr(model, "held", {})
    whole = held[name].placement if name in held else Placement.whole(parameter.shape, mesh.data.ranks)
    return whole.share(mesh.zero.rank, mesh.zero.size, mesh.zero.alike)


def _shard_decoder(model: Decoder, units: _Units) -> None:
    for block in model.blocks.values():
        units.share(block)
    if model.embedding is not None and not model.cfg.tie_word_embeddings:
        units.share(model.embedding)
        model.embedding.set_unshard_in_backward(False)  # type: ignore[operator]
    if model.head is not None and not model.head.is_tied:
        units.share(model.head, again=False)  # its backward pass comes first
        for method in ("loss", "logits"):
            register_fsdp_forward_method(model.head, method)
    units.share(model, again=False)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model of any type, each once: what is in its outermost lists of modules and can be called.

    One that has a weight in common with a module outside it is none: two parts would each have it. It is left to the
    whole model.
    """
    everywhere = _uses(model)
    found = dict.fromkeys(_listed(model, is_listed=False))
    return [block for block in found if all(everywhere[p] == count for p, count in _uses(block).items())]


def _listed(module: nn.Module, *, is_listed: bool) -> Iterator[nn.Module]:
    for child in module.children():
        if is_listed and type(child).forward is not nn.Module.forward:
            yield child
        else:  # a list in a list, or what only has methods of other names
            yield from _listed(child, is_listed=is_listed or isinstance(child, nn.ModuleList))


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How many modules have each parameter."""
    return Counter(parameter for each in module.modules() for parameter in each.parameters(recurse=False))


class _Units:
    """Parts of a model that are fetched together, and dropped together.

    Args:
        dtypes: in which a parameter is computed with.
    """

    def __init__(self, mesh: Mesh, dtypes: dict[nn.Parameter, torch.dtype]) -> None:
        self._mesh = mesh.devices["replica", "zero"] if mesh.replica.size > 1 else mesh.devices["zero"]
        self._dtypes = dtypes

    def share(self, part: nn.Module, *, again: bool = True) -> None:
        """Make a part of what is in it and in no part before.

        Args:
            again: drop it after the forward pass, and fetch it again for the backward pass.
        """
        own = _unshared(part.parameters())
        found = {self._dtypes[parameter] for parameter in own}
        if len(found) > 1:  # one message has one type: norms that stay in float32 go by themselves
            most = max(found, key=lambda dtype: sum(p.numel() for p in own if self._dtypes[p] == dtype))
            for module in list(part.modules()):
                if module is not part and self._is_of_another(module, most):
                    self.share(module)
            own = _unshared(part.parameters())
        widest = {accumulation_dtype(self._dtypes[parameter]) for parameter in own}
        policy = MixedPrecisionPolicy(
            param_dtype=self._one(own), reduce_dtype=next(iter(widest), None), cast_forward_inputs=False
        )
        shared: Any = fully_shard(part, mesh=self._mesh, reshard_after_forward=again, mp_policy=policy)
        if self._mesh.device_type == "cpu":  # who is slow is known by who does not wait
            shared.set_custom_all_gather(OwnWaiting(sums=False))
            shared.set_custom_reduce_scatter(OwnWaiting(sums=True))

    def _is_of_another(self, module: nn.Module, most: torch.dtype) -> bool:
        parameters = _unshared(module.parameters(recurse=False))
        return bool(parameters) and all(self._dtypes[parameter] != most for parameter in parameters)

    def _one(self, parameters: Iterable[nn.Parameter]) -> torch.dtype | None:
        found = {self._dtypes[parameter] for parameter in parameters}
        if len(found) > 1:
            kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
            message = f"a module has parameters in {kinds} beside each other, which cannot be fetched together"
            raise ConfigError(message, key=_KEY, hint="give each type a module of its own, or set fsdp to false")
        return next(iter(found), None)


def _unshared(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
