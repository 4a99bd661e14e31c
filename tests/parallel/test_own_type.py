"""A model type of a user's own over tensor ranks: losses, gradients and weights are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from evo_core.checkpoint.tensors import model_tensors
from evo_core.config import TrainConfig
from evo_core.errors import ConfigError
from evo_core.model import Head, ModelOutput, build_model, draw, init_weights
from evo_core.model.ops.linear import Linear
from evo_core.optim.fsdp_adamw import FsdpAdamW
from evo_core.optim.groups import groups_of
from evo_core.parallel.apply import build_parallel, parallelize
from evo_core.parallel.first_weights import draw_first_weights
from evo_core.placement import Placed, placements_of
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

TOKENS, VOCAB, WIDTH, HEADS = 12, 20, 8, 4


class Everything(nn.Module):
    """Uses each way of being cut: fused and plain columns, rows, a tied head, and parameters between them."""

    class Config(BaseModel):
        vocab_size: int = VOCAB
        tied: bool = True
        dtype: str = "torch.float64"

    def __init__(self, cfg: Any, *, device: Any, dtype: torch.dtype) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.heads = HEADS
        self.words = nn.Embedding(cfg.vocab_size, WIDTH, **made)
        self.norm = nn.LayerNorm(WIDTH, **made)
        self.pair = nn.Linear(WIDTH, 3 * WIDTH, **made)  # two tensors in one, WIDTH and 2 * WIDTH wide
        self.gate = Linear(WIDTH, WIDTH, bias=False, **made)
        self.scale = nn.Parameter(torch.empty(WIDTH, **made))
        self.of_each_head = nn.Parameter(torch.empty(WIDTH // HEADS, **made))
        self.out = nn.Linear(WIDTH, WIDTH, **made)
        tied: dict[str, Any] = {"tied_to": self.words} if cfg.tied else {}
        self.head = Head(WIDTH, cfg.vocab_size, grad_scale=0.5, **tied, **made)
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, WIDTH, **made))

    def init_weights(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            draw(parameter, 0.5, seed=seed, name=name)
        self.get_buffer("ramp").mul_(2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> ModelOutput:
        hidden = self.norm(self.words(input_ids)) * self.get_buffer("ramp")
        first, second = self.pair(hidden).split([WIDTH * self.heads // HEADS, 2 * WIDTH * self.heads // HEADS], dim=-1)
        mixed = F.silu(first) * self.gate(hidden) * self.scale + second.unflatten(-1, (2, -1)).sum(-2)
        mixed = (mixed.unflatten(-1, (self.heads, -1)) * self.of_each_head).flatten(-2)
        hidden = hidden + self.out(mixed)
        loss, nll, hit = self.head.loss(hidden, labels)
        return ModelOutput(loss=loss, nll=nll, hit=hit, logits=self.head.logits(hidden))

    def parallelize(self, tensor: Any) -> None:
        self.heads = tensor.share(self.heads, "heads")
        tensor.embedding(self, "words")
        tensor.column(self, "pair", segments=(WIDTH, WIDTH, WIDTH))
        tensor.column(self, "gate")
        tensor.parameter(self, "scale")
        tensor.partial(self, "of_each_head")
        tensor.row(self, "out")
        tensor.head(self, "head")


def config(**model: Any) -> Any:
    job = {"model_type": "tests.parallel.test_own_type:Everything", "model": model, "parallel": {"tensor": 2}}
    return TrainConfig.model_validate(job).model


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.arange(TOKENS) * 7 % VOCAB
    return ids, ids.roll(-1).index_fill(0, torch.tensor([3, TOKENS - 1]), -100)


def one_process(cfg: Any) -> tuple[nn.Module, ModelOutput]:
    model = build_model(cfg)
    init_weights(model, cfg, 5)
    output = model(*batch())
    output.loss.backward()
    return model, output


@pytest.mark.parametrize(("ranks", "size", "tied"), [(2, 2, True), (4, 4, False), (4, 2, True)])
def test_losses_gradients_and_weights_are_those_of_one_process(ranks: int, size: int, tied: bool) -> None:
    cfg = config(tied=tied)

    def work() -> dict[str, Any]:
        torch.manual_seed(dist.get_rank())  # constructors of torch draw numbers, which are not to matter
        mesh = mesh_of(1, tensor=size)
        model = build_parallel(cfg, mesh, "cpu")
        draw_first_weights(model, cfg, 5, mesh)
        output = model(*batch())
        output.loss.backward()
        placements = placements_of(model)
        summed = {name for group in groups_of(model, mesh) if mesh.tensor in group.reduce for name in group.parameters}
        for name, parameter in model.named_parameters():
            if name in summed:
                dist.all_reduce(parameter.grad, group=mesh.tensor.group)
        return {
            "loss": output.loss.item(),
            "logits": output.logits.detach(),
            "hit": output.hit,
            "ramp": model.get_buffer("ramp"),
            "weights": {name: (p.detach(), placements[name]) for name, p in model.named_parameters()},
            "gradients": {name: (p.grad, placements[name]) for name, p in model.named_parameters()},
        }

    reference, output = one_process(cfg)
    assert output.loss is not None and output.hit is not None
    loss = output.loss.item()
    parameters = dict(reference.named_parameters())
    results = run_on_ranks(work, ranks)
    for rank in results:
        assert rank["loss"] == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(rank["logits"], output.logits, rtol=1e-12, atol=1e-13)
        assert torch.equal(rank["hit"], output.hit)
        assert torch.equal(rank["ramp"], reference.get_buffer("ramp"))
        assert rank["weights"].keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(whole(results, "weights", name), parameter)
        assert parameter.grad is not None
        deviation = (whole(results, "gradients", name) - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert deviation <= 1e-12, name


def whole(results: list[dict[str, Any]], what: str, name: str) -> Tensor:
    """A tensor put together from the ranks' pieces; ranks that hold the same have the same numbers in it."""
    local, placement = results[0][what][name]
    values = torch.full(placement.shape, torch.nan, dtype=local.dtype)
    for rank in results:
        for piece, view in Placed(*rank[what][name]).pieces():
            there = piece.where.of(values)
            assert there.isnan().all() or torch.equal(there, view)
            there.copy_(view)
    return values


class Pairs(nn.Module):
    """Embeds ids that lie in a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, WIDTH)

    def parallelize(self, tensor: Any) -> None:
        tensor.embedding(self, "words")


def test_ids_of_any_shape_are_embedded() -> None:
    weight = torch.arange(VOCAB * WIDTH, dtype=torch.float32).view(VOCAB, WIDTH)
    ids = torch.arange(6).view(3, 2) * 3

    def embedded() -> Tensor:
        model = Pairs()
        parallelize(model, mesh_of(1, tensor=2))
        Placed(model.words.weight.data, placements_of(model)["words.weight"]).fill(weight)
        return model.words(ids).detach()

    for rows in run_on_ranks(embedded, 2):
        assert torch.equal(rows, weight[ids])


def test_each_rank_holds_its_part() -> None:
    ranks = 4

    def shapes() -> dict[str, tuple[int, ...]]:
        model = build_parallel(config(tied=False), mesh_of(1, tensor=ranks), "cpu")
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    assert run_on_ranks(shapes, ranks)[0] == {
        "scale": (WIDTH // ranks,),
        "of_each_head": (WIDTH // HEADS,),
        "words.weight": (VOCAB // ranks, WIDTH),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "pair.weight": (3 * WIDTH // ranks, WIDTH),
        "pair.bias": (3 * WIDTH // ranks,),
        "gate.weight": (WIDTH // ranks, WIDTH),
        "out.weight": (WIDTH, WIDTH // ranks),
        "out.bias": (WIDTH,),
        "head.weight": (VOCAB // ranks, WIDTH),
    }


def test_stages_do_not_each_train_all_of_it() -> None:
    def told() -> str:
        with pytest.raises(ConfigError) as caught:
            parallelize(nn.Linear(2, 2), mesh_of(1, pipeline=2))
        return str(caught.value)

    assert run_on_ranks(told, 2) == 2 * ["parallel.pipeline.size: Linear has no stages (set it to 1)"]


def test_what_cannot_be_cut_is_told() -> None:
    class Narrow(nn.Linear):
        """Might compute something else than its parent."""

    def told() -> list[str]:
        mesh, found = mesh_of(1, tensor=3), []
        narrow, padded, tied = build_model(config()), build_model(config()), build_model(config())
        narrow.heads = padded.heads = tied.heads = 3
        narrow.words, narrow.pair = nn.Embedding(VOCAB + 1, WIDTH), Narrow(WIDTH, 3 * WIDTH)
        padded.words = nn.Embedding(VOCAB + 1, WIDTH, padding_idx=0)
        wide = build_model(config())
        wide.parallelize = lambda tensor: tensor.column(wide, "pair", segments=(3, 6))
        tied.parallelize = lambda tensor: tensor.head(tied, "head")
        for model in (build_model(config()), narrow, padded, tied, wide, nn.Linear(2, 2)):
            with pytest.raises(ConfigError) as caught:
                parallelize(model, mesh)
            found.append(str(caught.value))
        return found

    assert run_on_ranks(told, 3)[2] == [
        "parallel.tensor.size: heads 4 does not divide over 3 ranks (nearest: 2 or 4)",
        "model_type: parallelize names pair, which is a Narrow "
        "(make it a torch.nn.modules.linear.Linear or evo_core.model.ops.linear.Linear)",
        "model_type: parallelize names words, which is an embedding with padding_idx, max_norm or scale_grad_by_freq",
        "model_type: parallelize names head, which is a head tied to an embedding that is not cut yet",
        "model_type: parallelize names pair, which is 24 outputs wide and not 9 as its segments",
        "parallel.tensor.size: Linear does not say how it is cut (give the class a method parallelize: docs/models.md)",
    ]


class Tied(Pairs):
    """Pairs with an output that has the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, VOCAB, bias=False)
        self.out.weight = self.words.weight

    def parallelize(self, tensor: Any) -> None:
        super().parallelize(tensor)
        tensor.column(self, "out")


def test_a_tied_weight_is_not_cut_apart() -> None:
    def refused() -> str:
        with pytest.raises(ConfigError) as error:
            parallelize(Tied(), mesh_of(1, tensor=2))
        return error.value.message

    said = run_on_ranks(refused, 2)
    assert said == ["parallelize makes two weights of words.weight and out.weight, which are one"] * 2


@pytest.mark.parametrize(("ranks", "size", "tied"), [(2, 1, True), (4, 2, False), (4, 2, True)])
def test_its_parameters_are_shared(ranks: int, size: int, tied: bool) -> None:
    """By data ranks (fsdp), beside those of which tensor ranks hold parts."""
    cfg = config(tied=tied)

    def work() -> dict[str, Placed]:
        mesh = mesh_of({"size": 2, "fsdp": True}, tensor=size)  # type: ignore[arg-type]
        model = build_parallel(cfg, mesh, "cpu")
        draw_first_weights(model, cfg, 5, mesh)
        optimizer = FsdpAdamW(model, groups_of(model, mesh), mesh)
        optimizer.backward(model(*batch()).loss, last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        assert all(buffer.equal(build_of_one[name]) for name, buffer in model.named_buffers())
        weights = {name: placed.local for name, placed in model_tensors(model).items()}
        for name, placed in optimizer.gradients().items():
            for piece, view in Placed(weights[name], placed.placement).pieces():
                assert torch.equal(view, piece.where.of(expected[name].detach()))
        return optimizer.gradients()

    one, _ = one_process(cfg)
    expected, build_of_one = dict(one.named_parameters()), dict(one.named_buffers())
    for gradients in run_on_ranks(work, ranks):
        assert gradients.keys() == expected.keys()
        for name, placed in gradients.items():
            whole_grad = expected[name].grad
            assert whole_grad is not None
            for piece, view in placed.pieces():
                torch.testing.assert_close(view, piece.where.of(whole_grad), rtol=1e-12, atol=1e-14)
