"""What an optimizer takes from a checkpoint of a model whose types were others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from evo_core.checkpoint import TrainState, load, save
from evo_core.config import load_config
from evo_core.optim.zero1 import Zero1AdamW
from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks


def made(norm: torch.dtype, value: float) -> tuple[nn.Module, Zero1AdamW]:
    """A bfloat16 layer and a norm, with master values between those that bfloat16 has."""
    net = nn.Sequential(nn.Linear(5, 3, dtype=torch.bfloat16), nn.LayerNorm(3, dtype=norm))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1.0)
    optimizer = zero1_adamw(net, mesh_of(-1))
    for name, placed in optimizer.state().items():
        if name.startswith("master."):
            placed.local.fill_(value)
    return net, optimizer


def masters_after(folder: Path, saved_norm: torch.dtype, loaded_norm: torch.dtype) -> dict[str, set[float]]:
    cfg = load_config(folder / "job.yaml")
    net, optimizer = made(saved_norm, 1.001)
    checkpoint = save(folder / "ckpt", cfg, net, optimizer.state(), TrainState(step=1))
    net, optimizer = made(loaded_norm, 7.0)
    load(checkpoint, net, optimizer)
    state = optimizer.state().items()
    return {name: {round(x, 6) for x in placed.local.flatten().tolist()} for name, placed in state if "master" in name}


def test_master_values_are_taken_wherever_both_sides_have_them(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "model: {vocab_size: 32, num_layers: 1, hidden_size: 16, num_attention_heads: 2}\n"
    )
    wide, narrow = torch.float32, torch.bfloat16
    layer = {"master.0.weight": {1.001}, "master.0.bias": {1.001}}
    for masters in run_on_ranks(masters_after, 2, tmp_path, wide, narrow):
        # The norm had none: its own values are taken, and those of the layer are not lost for that.
        shares = {name: values for name, values in masters.items() if values}
        assert shares == layer | {"master.1.weight": {1.0}, "master.1.bias": {1.0}}
    for masters in run_on_ranks(masters_after, 2, tmp_path, narrow, wide):
        assert masters == layer
