"""torch's own tensor parallelism, by DTensor, of this repository's decoder.

torch's plans take ``nn.Linear``, ``nn.Embedding`` and ``nn.RMSNorm`` (our norm writes into tensors that are no
DTensors), so these stand in for ours with the same weights; attention and rotation stay what they are. The loss is
torch's for a vocabulary that is cut (``loss_parallel``): gathered logits took longer here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from evo_core.model import Decoder
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.norm import Norm


class DTensorDecoder:
    """A decoder cut by torch over the ranks of a mesh of one dimension.

    Args:
        model: a whole Llama without biases, on the CPU; it is changed.
        sequence_parallel: norms and residual stream are cut along the sequence.
    """

    def __init__(self, model: Decoder, mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
        _use_torch_modules(model)
        self.model: Any = model
        for module, style in _plan(self.model, sequence_parallel):
            parallelize_module(module, mesh, style)

    def forward_backward(self, input_ids: Tensor, positions: Tensor, documents: Documents, labels: Tensor) -> Tensor:
        """The loss, a scalar, of one packed sequence; gradients are left in the parameters."""
        with loss_parallel():
            loss = F.cross_entropy(self.model.head(self.model.hidden(input_ids, positions, documents)), labels)
            loss.backward()
        return _whole(loss.detach())

    def optimizer(self) -> Callable[[], None]:
        """What clips the gradients and updates the parameters, by torch's fused AdamW."""
        parameters = list(self.model.parameters())
        # torch takes no list that has both: what is cut and what is not are a group each.
        groups = [[p for p in parameters if isinstance(p, DTensor) is cut] for cut in (True, False)]
        adamw = torch.optim.AdamW([{"params": group} for group in groups if group], lr=0.0, fused=True)

        def update() -> None:
            norms = [_whole(get_total_norm([p.grad for p in group])) for group in groups if group]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            for group in groups:
                clip_grads_with_norm_(group, 1.0, norm)
            adamw.step()

        return update

    def gradients(self) -> dict[str, Tensor]:
        """Whole gradients by name; all ranks must call it."""
        return {name: _whole(parameter.grad) for name, parameter in self.model.named_parameters()}


def _use_torch_modules(model: Any) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                module.register_module(name, _linear(child.weight))
            elif isinstance(child, Norm):
                module.register_module(name, _norm(child))
    vocabulary, hidden = model.embedding.weight.shape
    embedding = nn.Embedding(vocabulary, hidden, device="meta")
    embedding.weight = model.embedding.weight
    model.embedding, model.head = embedding, _linear(model.head.weight)
    model.head.tied_to = None  # which the decoder asks its own


def _linear(weight: nn.Parameter) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight
    return linear


def _norm(ours: Norm) -> nn.RMSNorm:
    norm = nn.RMSNorm(ours.size, eps=ours.eps, device="meta")
    norm.weight = ours.weight
    return norm


def _plan(model: Any, sequence_parallel: bool) -> list[tuple[nn.Module, ParallelStyle]]:
    """torch's usual plan of a decoder, whose sequence is dimension 0 here."""
    stream = Shard(0) if sequence_parallel else Replicate()
    plan: list[tuple[nn.Module, ParallelStyle]] = [
        (model.embedding, RowwiseParallel(input_layouts=Replicate(), output_layouts=stream)),
        (model.head, ColwiseParallel(input_layouts=stream, use_local_output=False)),
    ]
    for block in model.blocks.values():
        attention, mlp = block.attention, block.mlp
        for linear in (attention.q, attention.k, attention.v, mlp.gate, mlp.up):
            plan.append((linear, ColwiseParallel()))
        for linear in (attention.out, mlp.down):
            plan.append((linear, RowwiseParallel(output_layouts=stream)))
    if sequence_parallel:
        for block in model.blocks.values():
            # Gathered once for all linears of a sub-layer; attention takes four more arguments, which are no tensors.
            plan.append((block.attention, _gathered(4)))
            plan.append((block.mlp, _gathered(0)))
        norms = [norm for block in model.blocks.values() for norm in (block.attention_norm, block.mlp_norm)]
        plan += [(norm, SequenceParallel(sequence_dim=0)) for norm in (*norms, model.norm)]
    return plan


def _gathered(others: int) -> PrepareModuleInput:
    passed_over = (None,) * others
    return PrepareModuleInput(input_layouts=(Shard(0), *passed_over), desired_input_layouts=(Replicate(), *passed_over))


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
