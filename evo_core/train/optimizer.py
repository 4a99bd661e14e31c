"""The optimizer of a job, with its loss scale, and the schedules of its rates."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

from evo_core.errors import ConfigError
from evo_core.model.cutting import all_stages
from evo_core.model.decoder import Decoder
from evo_core.model.ops.embedding import Embedding
from evo_core.model.ops.norm import Norm
from evo_core.optim.groups import ParameterGroup, groups_of
from evo_core.optim.loss_scaler import LossScaler, needs_scaling
from evo_core.optim.muon import Muon
from evo_core.optim.protocol import Optimizer
from evo_core.optim.schedules import Beta2Schedule, LearningRate
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.mesh import Mesh
from evo_core.placement import dtypes_of
from evo_core.train.matrices import matrices_of

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


def make_optimizer(cfg: TrainConfig, model: nn.Module, mesh: Mesh) -> Optimizer:
    """The optimizer of a model, with its loss scale."""
    zero = cfg.hybrid_zero_optimizer
    groups = make_groups(cfg, model, mesh)
    settings: dict[str, Any] = {
        "beta1": cfg.adam.adam_beta1,
        "eps": cfg.adam.adam_eps,
        "weight_decay": cfg.adam.weight_decay,
        "clip_grad_norm": zero.clip_grad_norm,
        "scaler": make_scaler(cfg, model),
    }
    if mesh.shards:
        from evo_core.optim.fsdp_adamw import FsdpAdamW  # torch's FSDP takes half a second to import

        return FsdpAdamW(model, groups, mesh, **settings)
    optimizer = Zero1AdamW(
        groups,
        mesh.world,
        **settings,
        bucket_size=zero.reduce_bucket_size,
        overlap=zero.overlap_sync_grad,
        order=(name for name, _ in model.named_parameters()),
        overlap_params=zero.overlap_sync_param,
        gather_size=zero.all_gather_size,
        muon=make_muon(cfg),
    )
    if zero.overlap_sync_param:
        wait_where_read(model, optimizer)
    return optimizer


def make_groups(cfg: TrainConfig, model: nn.Module, mesh: Mesh) -> list[ParameterGroup]:
    """The parameters of a model by how they are summed, shared and updated; every rank must call it.

    Raises:
        ConfigError: the job wants Muon, and the model has no matrices for it.
    """
    matrices = matrices_of(model) if cfg.optimizer.name == "muon" else {}
    return groups_of(model, mesh, no_decay=without_decay(model, cfg.adam.no_decay), matrices=matrices)


def make_muon(cfg: TrainConfig) -> Muon:
    """How matrices are updated, where they are by Muon."""
    stated = cfg.optimizer.model_dump(exclude={"name"}, exclude_none=True)
    return Muon(**stated)


def wait_where_read(model: nn.Module, optimizer: Optimizer) -> None:
    """Have a model wait for updated parameters where it reads them: part by part, or one of a user's own as a whole."""

    def wait(part: nn.Module) -> None:
        optimizer.wait_for(part.parameters())

    if isinstance(model, Decoder):
        model.before_part = wait
    else:
        model.register_forward_pre_hook(lambda module, _: wait(module))
    model.register_state_dict_pre_hook(lambda *_: optimizer.settle())


def check_no_decay(model: nn.Module, kinds: Collection[str]) -> None:
    """Refuse a word of `adam.no_decay` that no parameter of the whole model is of.

    Raises:
        ConfigError: there is one.
    """
    whole = all_stages(model)
    found = [kind for kind in kinds if names_of_kind(whole, kind)]
    for kind in kinds:
        if kind not in found:
            hint = f"write no_decay: [{', '.join(found)}]"
            raise ConfigError(f"{kind}: no parameter of this model is one", key="adam.no_decay", hint=hint)


def without_decay(model: nn.Module, kinds: Collection[str]) -> set[str]:
    """The names of this rank's parameters that `adam.no_decay` is about.

    Args:
        kinds: of ``norm`` (all that a norm has), ``bias`` (whatever is called so) and ``embedding``, which is the
            head too where the two are tied.
    """
    return {name for kind in kinds for name in names_of_kind(model, kind)}


def names_of_kind(model: nn.Module, kind: str) -> set[str]:
    """The names of a model's parameters of one of the kinds of `adam.no_decay`."""
    if kind == "bias":
        return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    of_kind = _is_norm if kind == "norm" else _is_embedding
    own = {id(param) for module in model.modules() if of_kind(module) for param in module.parameters(recurse=False)}
    return {name for name, param in model.named_parameters() if id(param) in own}


def _is_norm(module: nn.Module) -> bool:
    """Of the shipped families, of torch, or one that a user wrote and calls so, as most do (``LlamaRMSNorm``)."""
    known = isinstance(module, Norm | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
    return known or type(module).__name__.lower().endswith("norm")


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, Embedding | nn.Embedding)


def make_scaler(cfg: TrainConfig, model: nn.Module) -> LossScaler:
    """The loss scale; it is 1 for a model without 16-bit parameters."""
    scaler = cfg.grad_scaler
    return LossScaler(
        scale=scaler.fp16.initial_scale,
        min_scale=scaler.fp16.min_scale,
        max_scale=scaler.max_scale,
        growth_factor=scaler.growth_factor,
        backoff_factor=scaler.backoff_factor,
        growth_interval=scaler.fp16.growth_interval,
        hysteresis=scaler.hysteresis,
        enabled=any(needs_scaling(dtype) for dtype in dtypes_of(model).values()),
    )


def make_schedules(cfg: TrainConfig) -> tuple[LearningRate, Beta2Schedule]:
    """Learning rate and beta2 as functions of the updates made."""
    rate, beta2 = cfg.lr_scheduler, cfg.beta2_scheduler
    return (
        LearningRate(
            lr=cfg.adam.lr,
            total_steps=rate.total_steps,
            init_steps=rate.init_steps,
            warmup_ratio=rate.warmup_ratio,
            eta_min=rate.eta_min,
            last_epoch=rate.last_epoch,
            kind=rate.kind,
            decay_ratio=rate.decay_ratio,
            decay_type=rate.decay_type,
        ),
        Beta2Schedule(init_beta2=beta2.init_beta2, c=beta2.c, cur_iter=beta2.cur_iter),
    )
