"""Meta's folders: shards of a Llama in transformers' weights, cut and reordered by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_core.errors import CheckpointError
from evo_core.weights import build, open_weights
from tests.model.configs import relative_error
from tests.weights.models import logits, their_logits
from tests.weights.test_hf import LLAMA3, theirs


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows from halves to neighbouring pairs, the reverse of the published conversion script's `permute`."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def meta_state(made: Any) -> dict[str, Tensor]:
    """A Llama's weights under Meta's names and in Meta's order."""
    state = {
        "tok_embeddings.weight": made.model.embed_tokens.weight,
        "norm.weight": made.model.norm.weight,
        "output.weight": made.lm_head.weight,
        "rope.freqs": torch.ones(6),
    }
    for number, layer in enumerate(made.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        state |= {
            f"layers.{number}.attention.wq.weight": interleaved(attention.q_proj.weight, 4),
            f"layers.{number}.attention.wk.weight": interleaved(attention.k_proj.weight, 2),
            f"layers.{number}.attention.wv.weight": attention.v_proj.weight,
            f"layers.{number}.attention.wo.weight": attention.o_proj.weight,
            f"layers.{number}.feed_forward.w1.weight": mlp.gate_proj.weight,
            f"layers.{number}.feed_forward.w2.weight": mlp.down_proj.weight,
            f"layers.{number}.feed_forward.w3.weight": mlp.up_proj.weight,
            f"layers.{number}.attention_norm.weight": layer.input_layernorm.weight,
            f"layers.{number}.ffn_norm.weight": layer.post_attention_layernorm.weight,
        }
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def write(made: Any, folder: Path, ranks: int, embedding_dim: int, **params: Any) -> None:
    folder.mkdir(exist_ok=True)
    rows = ("wq", "wk", "wv", "w1", "w3")
    for rank in range(ranks):
        shard = {}
        for name, tensor in meta_state(made).items():
            if "norm" in name or name == "rope.freqs":
                shard[name] = tensor
                continue
            dim = 0 if name.split(".")[-2] in rows or name == "output.weight" else 1
            dim = embedding_dim if name == "tok_embeddings.weight" else dim
            shard[name] = tensor.chunk(ranks, dim)[rank].clone()
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    stated = {"dim": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6, "vocab_size": -1, **params}
    (folder / "params.json").write_text(json.dumps(stated))


@pytest.mark.parametrize(("ranks", "embedding_dim"), [(1, 0), (2, 1), (2, 0)])
def test_llama_2_over_ranks(tmp_path: Path, ranks: int, embedding_dim: int) -> None:
    made = theirs("Llama", tie_word_embeddings=False).eval()
    if ranks == 2:
        made.resize_token_embeddings(60)
    write(made, tmp_path, ranks, embedding_dim, multiple_of=8)
    found = open_weights(tmp_path)
    assert (found.kind, found.model.model_type, found.model.qk_interleaved) == ("llama", "LLAMA2", True)
    assert relative_error(logits(build(found)), their_logits(made)) <= 1e-5


def test_llama_3_with_scaled_rotary_positions(tmp_path: Path) -> None:
    """The published code's constants: factor 8 over 8192 tokens."""
    scaling = LLAMA3 | {"rope_theta": 5e5, "original_max_position_embeddings": 8192}
    made = theirs("Llama", rope_parameters=scaling)
    write(made, tmp_path, 1, 0, rope_theta=5e5, use_scaled_rope=True)
    found = open_weights(tmp_path)
    assert found.model.model_type == "LLAMA3"
    ours = build(found).eval()
    ids, far = torch.arange(8) * 7 % 61, torch.arange(8) * 12
    with torch.no_grad():
        mine = ours(ids, far, torch.tensor([0, 8], dtype=torch.int32)).logits
        reference = made.eval()(ids[None], position_ids=far[None]).logits[0]
    assert relative_error(mine, reference) <= 1e-5
    ours.cfg = ours.cfg.model_copy(update={"rope_scaling": None})
    with torch.no_grad():
        unscaled = ours(ids, far, torch.tensor([0, 8], dtype=torch.int32)).logits
    assert relative_error(unscaled, reference) > 1e-3


def test_files_that_are_not_of_one_model(tmp_path: Path) -> None:
    made = theirs("Llama")
    write(made, tmp_path, 1, 0)
    torch.save({"norm.weight": torch.ones(48)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth: holds other tensors than the first file"):
        open_weights(tmp_path)
    (tmp_path / "consolidated.01.pth").unlink()
    (tmp_path / "params.json").write_text('{"dim": 48}')
    with pytest.raises(CheckpointError, match=r"params\.json: cannot be read: KeyError\('n_layers'\)"):
        open_weights(tmp_path)
    write(made, tmp_path, 1, 0, n_layers=4)
    with pytest.raises(CheckpointError, match=r"lacks layers\.3\.attention_norm\.weight|lacks layers\.3\."):
        open_weights(tmp_path)
