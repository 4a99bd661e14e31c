"""`adam.no_decay`: which parameters each word is about, and that these alone are left undecayed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evo_core.checkpoint import load_model
from evo_core.errors import ConfigError
from evo_core.model import build_model
from evo_core.parallel.mesh import make_mesh
from evo_core.train.optimizer import check_no_decay, make_optimizer, names_of_kind
from evo_core.train.run import make_model
from tests.model.configs import tiny
from tests.ranks import run_on_ranks
from tests.train.jobs import job, run

EVERY = ["norm", "bias", "embedding"]
LR, DECAY, STEPS = 1e-2, 0.3, 50


@pytest.mark.parametrize(
    ("model", "norms", "biases", "embedding"),
    [
        ({"model_type": "INTERNLM"}, {"norm1", "norm2"}, {"mixer.Wqkv", "mixer.out_proj"}, "embedding"),
        (
            {"model_type": "INTERNLM_MoE", "num_experts": 2, "moe_use_residual": True},
            {"norm1", "norm2"},
            {"mixer.Wqkv", "mixer.out_proj", "mlp.coefficient"},
            "embedding",
        ),
        ({}, {"attention_norm", "ffn_norm"}, {"attention.wqkv", "attention.wo"}, "tok_embeddings"),
        (
            {"model_type": "LLAMA2"},
            {"attention_norm", "ffn_norm"},
            {f"attention.{name}" for name in ("wq", "wk", "wv", "wo")},
            "tok_embeddings",
        ),
        ({"model_type": "LLAMA3"}, {"attention_norm", "ffn_norm"}, set(), "tok_embeddings"),
        (
            {"model_type": "QWEN3", "head_dim": 8, "tie_word_embeddings": True},
            {"attention_norm", "ffn_norm", "attention.q_norm", "attention.k_norm"},
            set(),
            "tok_embeddings",
        ),
        ({"norm_type": "layernorm"}, {"attention_norm", "ffn_norm"}, {"attention.wqkv", "attention.wo"}, None),
    ],
    ids=["INTERNLM", "MoE", "INTERNLM2", "LLAMA2", "LLAMA3", "QWEN3, tied", "layer norm"],
)
def test_the_parameters_of_each_family(
    model: dict[str, Any], norms: set[str], biases: set[str], embedding: str | None
) -> None:
    made = build_model(tiny(num_layers=1, **model), device="meta")

    def named(names: set[str]) -> set[str]:
        return {name.removeprefix("blocks.0.").removeprefix("layers.0.") for name in names}

    of_norms = {f"{name}.weight" for name in (*norms, "norm")}
    layer_norm = {f"{name}.bias" for name in (*norms, "norm")} if "norm_type" in model else set()
    assert named(names_of_kind(made, "norm")) == of_norms | layer_norm
    assert named(names_of_kind(made, "bias")) == {f"{name}.bias" for name in biases} | layer_norm
    assert named(names_of_kind(made, "embedding")) == {f"{embedding or 'tok_embeddings'}.weight"}


class MyRMSNorm(nn.Module):
    """A norm by its name alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Scaled(nn.LayerNorm):
    """A norm by what it is made of."""


class Own(nn.Module):
    """What a model type of a user's own may be: torch's norms and embedding, one it wrote, a head that is tied."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 5)
        self.first, self.second, self.third = Scaled(5), nn.RMSNorm(5), MyRMSNorm(5)
        self.inner = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.words.weight
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.third(self.inner(self.first(self.words(ids))).tanh())
        return self.head(self.second(x))


UNDECAYED = {
    "norm": {"first.weight", "first.bias", "second.weight", "third.scale"},
    "bias": {"first.bias", "inner.bias", "head.bias"},
    "embedding": {"words.weight"},
}


def test_the_parameters_of_a_model_of_ones_own() -> None:
    assert {kind: names_of_kind(Own(), kind) for kind in EVERY} == UNDECAYED


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids[:-1]), ids[1:])


def batches(step: int) -> list[Tensor]:
    return list(torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(step)))


def by_torch(kinds: list[str]) -> dict[str, Tensor]:
    model = Own()
    undecayed = {name for kind in kinds for name in UNDECAYED[kind]}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in model.named_parameters() if n not in undecayed], "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if n in undecayed], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    for step in range(STEPS):
        adam.zero_grad()
        torch.stack([loss(model, ids) for ids in batches(step)]).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
    return {name: param.detach() for name, param in model.named_parameters()}


@pytest.mark.parametrize(
    ("ranks", "zero1", "overlap", "kinds"),
    [(1, 1, False, EVERY), (2, 2, True, EVERY), (2, 1, False, ["bias"]), (4, 2, True, EVERY)],
)
def test_as_torch_with_two_groups(ranks: int, zero1: int, overlap: bool, kinds: list[str], tmp_path: Path) -> None:
    cfg = job(
        tmp_path,
        adam__weight_decay=DECAY,
        adam__no_decay=kinds,
        hybrid_zero_optimizer={"clip_grad_norm": 0.5, "overlap_sync_param": overlap, "reduce_bucket_size": 20},
        parallel={"zero1": {"size": zero1}},
    )

    def body() -> float:
        mesh, model = make_mesh(cfg.degrees(ranks)), Own()
        optimizer = make_optimizer(cfg, model, mesh)
        for step in range(STEPS):
            optimizer.begin()
            own = batches(step)[mesh.data.rank :: mesh.data.size]
            for i, ids in enumerate(own):
                optimizer.backward(loss(model, ids) / len(own), last=i == len(own) - 1)
            optimizer.reduce(torch.zeros(1, dtype=torch.float64))
            assert optimizer.step(LR, 0.95)
        optimizer.settle()
        expected = by_torch(kinds)
        return max(float((p.detach() - expected[n]).abs().max()) for n, p in model.named_parameters())

    assert max(run_on_ranks(body, ranks)) <= 1e-12


def test_a_run_goes_on_with_another_list(tmp_path: Path) -> None:
    """States are by name. The update of the next step is the same but for the decay of what the list names."""
    adam = {"lr": LR, "weight_decay": DECAY}
    rate = {"lr_scheduler": {"kind": "constant", "warmup_ratio": 0}}
    run(job(tmp_path, data__total_steps=2, adam=adam, **rate), tmp_path / "first")
    after = {}
    for name, words in (("plain", []), ("listed", ["norm", "embedding"])):
        shutil.copytree(tmp_path / "ckpt", tmp_path / name)
        save = f"local:{tmp_path / name}"
        listed = adam | {"no_decay": words}
        cfg = job(tmp_path, data__total_steps=3, ckpt__save_ckpt_folder=save, adam=listed, **rate)
        assert run(cfg, tmp_path / f"run-{name}").step == 3
        after[name] = load_model(tmp_path / name / "3")[0].state_dict()
    before = load_model(tmp_path / "ckpt" / "2")[0].state_dict()
    for name, values in before.items():
        more = LR * DECAY * values if "norm" in name or "tok_embeddings" in name else torch.zeros_like(values)
        torch.testing.assert_close(after["listed"][name] - after["plain"][name], more, rtol=1e-9, atol=1e-15)


def test_a_word_that_names_no_parameter_is_refused_before_weights_are_drawn(tmp_path: Path) -> None:
    cfg = job(tmp_path, model_type="LLAMA3", adam__no_decay=EVERY)
    expected = "adam.no_decay: bias: no parameter of this model is one (write no_decay: [norm, embedding])"
    with pytest.raises(ConfigError) as caught:
        run(cfg, tmp_path / "run")
    assert str(caught.value) == expected
    assert "Number of elements on ranks" not in (tmp_path / "run" / "train.log").read_text()

    def body() -> str:
        """The whole model counts: neither stage of two holds all that the list names."""
        staged = job(tmp_path, adam__no_decay=["norm", "embedding"], parallel={"pipeline": {"size": 2}})
        model = make_model(staged, make_mesh(staged.degrees(2)), torch.device("cpu"), drawn=False)
        check_no_decay(model, ["embedding"])
        return " ".join(sorted(names_of_kind(model, "embedding")))

    assert run_on_ranks(body, 2) == ["tok_embeddings.weight", ""]
