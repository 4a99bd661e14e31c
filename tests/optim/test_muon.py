"""Muon against torch's own and against the singular values, fused projections, and its shares over ZeRO ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evo_core.errors import ConfigError
from evo_core.model import build_model
from evo_core.optim.groups import data_parallel
from evo_core.optim.loss_scaler import LossScaler
from evo_core.optim.muon import COEFFICIENTS, Matrices, Muon, operations, orthogonal, update
from evo_core.optim.slots import dealt, evenly, evenly_dealt
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.mesh import Mesh
from evo_core.train.matrices import matrices_of
from evo_core.train.optimizer import wait_where_read
from tests.model.configs import tiny
from tests.optim.held import storages
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

LR, DECAY, STEPS = 0.02, 0.1, 4
SHAPES = [(6, 6), (4, 10), (12, 5)]


def by_singular_values(matrix: Tensor, steps: int) -> Tensor:
    """What the iteration is, a polynomial of the singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / s.norm()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5, 8])
def test_the_iteration_is_a_polynomial_of_the_singular_values(shape: tuple[int, int], steps: int) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = by_singular_values(matrix, steps)
    found = orthogonal(matrix, steps, torch.float64)
    assert (found - expected).abs().max() < 1e-12
    assert (orthogonal(matrix.float(), steps, torch.float32) - expected).abs().max() < 1e-4
    if steps == 5:
        singular = torch.linalg.svdvals(found)
        assert singular.min() > 0.6 and singular.max() < 1.3


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonal(torch.zeros(3, 4), 5, torch.float32).any()


def gradients(shape: tuple[int, int], steps: int = STEPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("momentum", "nesterov", "steps"), [(0.95, True, 5), (0.5, False, 3), (0.0, True, 5)])
def test_an_update_is_that_of_torch(shape: tuple[int, int], momentum: float, nesterov: bool, steps: int) -> None:
    """Of which the products are in bfloat16 on every device."""
    start = torch.randn(shape)
    theirs, ours, mean = nn.Parameter(start.clone()), start.clone(), torch.zeros(shape)
    settings: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": steps}
    torchs = torch.optim.Muon([theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw", **settings)
    muon = Muon(**settings, products=torch.bfloat16)
    for grad in gradients(shape):
        theirs.grad = grad.clone()
        torchs.step()
        update(ours, grad, mean, Matrices(1, shape[:1]), muon, lr=LR, weight_decay=DECAY)
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(mean, torchs.state[theirs]["momentum_buffer"], rtol=0, atol=1e-6)


def test_products_are_narrow_on_a_gpu_alone() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for dtype in (torch.float32, torch.float64):
        assert Muon().product_dtype(dtype, cpu) == dtype
    assert Muon().product_dtype(torch.float32, gpu) == torch.bfloat16
    assert Muon().product_dtype(torch.float64, gpu) == torch.float64


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Matrices of several shapes, of some more than of others, beside vectors and a matrix that is AdamW's."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)]
    return nn.Sequential(*layers, nn.Linear(3, 2)).to(dtype)


def is_matrix(name: str) -> bool:
    return name.endswith("weight") and not name.startswith("5.")


def two_matrices(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Fewer than four ranks, and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).to(dtype)


def optimizer_of(model: nn.Module, mesh: Mesh, **settings: Any) -> Zero1AdamW:
    named = list(model.named_parameters())
    matrices = {name: Matrices(1, (param.shape[0],)) for name, param in named if is_matrix(name)}
    groups = [
        data_parallel(((n, p) for n, p in named if not is_matrix(n)), mesh),
        data_parallel(((n, p) for n, p in named if is_matrix(n)), mesh, matrices=matrices),
    ]
    return Zero1AdamW(groups, mesh.world, weight_decay=DECAY, **settings)


def micro_batches(step: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).to(torch.promote_types(x.dtype, torch.float32)).square().mean()


def trained(
    zero1: int,
    dtype: torch.dtype = torch.float64,
    clip: float = 0.5,
    make: Callable[[torch.dtype], nn.Module] = net,
    **settings: Any,
) -> tuple[list[float], dict[str, Tensor]]:
    mesh, model = mesh_of(zero1), make(dtype)
    if mesh.data.rank:
        with torch.no_grad():
            for param in model.parameters():  # every rank gets the first one's
                param.add_(mesh.data.rank)
    optimizer = optimizer_of(model, mesh, clip_grad_norm=clip, **settings)
    wait_where_read(model, optimizer)
    norms = []
    for step in range(STEPS):
        own = micro_batches(step, dtype)[mesh.data.rank :: mesh.data.size]
        optimizer.begin()
        for number, x in enumerate(own):
            optimizer.backward(loss_of(model, x) / len(own), last=number == len(own) - 1)
        norms.append(optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm)
        assert optimizer.step(LR, 0.95)
    optimizer.settle()
    return norms, {name: param.detach().clone() for name, param in model.named_parameters()}


class BySingularValues(torch.optim.Optimizer):
    """Muon written out: what `torch.optim.Muon` does, in the type of the parameters."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {})
        self.means = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for param, mean in zip(self.param_groups[0]["params"], self.means, strict=True):
            mean.mul_(0.95).add_(0.05 * param.grad)
            direction = by_singular_values(0.05 * param.grad + 0.95 * mean, 5)
            param.mul_(1 - LR * DECAY).sub_(LR * 0.2 * max(param.shape) ** 0.5 * direction)


def one_process(dtype: torch.dtype, muon: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> dict[str, Tensor]:
    """A Muon beside torch's AdamW, and its clipping."""
    model = net(dtype)
    of = {kind: [p for n, p in model.named_parameters() if is_matrix(n) == kind] for kind in (True, False)}
    adamw = torch.optim.AdamW(of[False], lr=LR, betas=(0.9, 0.95), weight_decay=DECAY)
    both = [muon(of[True]), adamw]
    for step in range(STEPS):
        model.zero_grad()
        for x in micro_batches(step, dtype):
            (loss_of(model, x) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for each in both:
            each.step()
    return {name: param.detach() for name, param in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_torchs_muon_and_adamw(dtype: torch.dtype) -> None:
    """With products in bfloat16, as torch's are."""

    def torchs(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Muon(params, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")

    _, found = run_on_ranks(lambda: trained(1, dtype, muon=Muon(products=torch.bfloat16)), 1)[0]
    for name, expected in one_process(dtype, torchs).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_steps_in_the_type_of_the_master_values(dtype: torch.dtype, within: float) -> None:
    _, found = run_on_ranks(trained, 1, 1, dtype)[0]
    for name, expected in one_process(torch.float64, BySingularValues).items():
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=within)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ranks", "zero1", "make"), [(2, 1, net), (2, 2, net), (4, 2, net), (4, 4, net), (4, 4, two_matrices)]
)
def test_equals_one_process(ranks: int, zero1: int, make: Callable[[torch.dtype], nn.Module]) -> None:
    norms, params = run_on_ranks(lambda: trained(1, make=make), 1)[0]
    ways: list[dict[str, Any]] = [
        {"bucket_size": 10**9, "overlap": False},
        {"bucket_size": 20, "gather_size": 5},
        {"bucket_size": 80, "gather_size": 30, "overlap_params": True},
    ]
    for found in run_on_ranks(lambda: [trained(zero1, make=make, **way) for way in ways], ranks):
        for got_norms, got in found:
            assert got_norms == pytest.approx(norms, rel=1e-12)
            assert all((got[name] - expected).abs().max() < 1e-12 for name, expected in params.items())


def test_sixteen_bit_weights_on_two_ranks() -> None:
    (_, one), (_, two) = run_on_ranks(trained, 1, 1, torch.bfloat16)[0], run_on_ranks(trained, 2, 2, torch.bfloat16)[0]
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=0.02) for name in one)


def test_a_matrix_has_one_owner_and_one_moment() -> None:
    def body() -> tuple[int, dict[str, list[int]]]:
        optimizer = optimizer_of(net(torch.bfloat16), mesh_of(-1))
        state = optimizer.state()
        return optimizer.share, {name: list(placed.local.shape) for name, placed in state.items()}

    ranks = run_on_ranks(body, 2)
    shapes = {name: param.shape for name, param in net().named_parameters()}
    for name, shape in shapes.items():
        kinds = ("momentum", "master") if is_matrix(name) else ("exp_avg", "exp_avg_sq", "master")
        for kind in kinds:
            rows = [state.pop(f"{kind}.{name}")[0] for _, state in ranks]
            assert sum(rows) == shape[0]
            assert not is_matrix(name) or sorted(rows) == [0, shape[0]]
    assert all(not state for _, state in ranks)
    assert sum(share for share, _ in ranks) == sum(shape.numel() for shape in shapes.values())


SMALL, LARGE = 64 * 64, 2 * 64 * 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("small", "most"), [(0, LARGE), (1, LARGE), (4, SMALL + LARGE)])
def test_of_matrices_of_other_ranks_a_rank_holds_gradients_alone(small: int, most: int, dtype: torch.dtype) -> None:
    """Of some small ones and a large one on four ranks: `most` is what the rank owns that owns most."""

    def body() -> tuple[dict[str, int], int]:
        layers = [nn.Linear(64, 64, bias=False) for _ in range(small)]
        model = nn.Sequential(*layers, nn.Linear(64, 128, bias=False)).to(dtype)
        matrices = {name: Matrices(1, (param.shape[0],)) for name, param in model.named_parameters()}
        mesh = mesh_of(-1)
        optimizer = Zero1AdamW([data_parallel(model.named_parameters(), mesh, matrices=matrices)], mesh.world)
        for _ in range(2):
            optimizer.begin()
            optimizer.backward(loss_of(model, torch.ones(2, 64, dtype=dtype)), last=True)
            optimizer.reduce(torch.zeros(0, dtype=torch.float64))
            assert optimizer.step(LR, 0.95)
        return storages(optimizer.held()), optimizer.publishing.nbytes

    elements, counts = small * SMALL + LARGE, 8  # of AdamW's updates
    assert most < elements / 4 + LARGE  # as docs/training.md states
    for found, buffer in run_on_ranks(body, 4):
        expected = {"gradients": 4 * (elements + most), "master values": 4 * most, "moments": 4 * most + counts}
        assert found == expected
        assert buffer == dtype.itemsize * max(small * SMALL, LARGE)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_what_a_rank_gets_is_told_by_arithmetic(ranks: int) -> None:
    """As `evo estimate` tells it: of each shape fewer than ranks, as many, or more."""
    shapes = {(8, 8): 8, (8, 12): 5, (30, 8): 19}
    named = [
        (str((*shape, n)), torch.empty(shape, device="meta")) for shape, count in shapes.items() for n in range(count)
    ]
    parts = evenly_dealt([(name, nn.Parameter(tensor)) for name, tensor in named], 10**9, ranks)
    loads = [dealt([param.numel() for _, param in part], ranks)[1] for part in parts]
    uneven = [sum(each) for each in loads if min(each) != max(each)]
    sizes = tuple((rows * columns, count) for (rows, columns), count in shapes.items())
    assert evenly(sizes, ranks)[:2] == (sum(map(max, loads)), sum(uneven))


def test_an_overflow_leaves_the_running_mean() -> None:
    def body() -> list[bool]:
        model = net(torch.float32).half()
        optimizer = optimizer_of(model, mesh_of(-1), scaler=LossScaler(scale=8.0, hysteresis=1), clip_grad_norm=1.0)
        before = [param.detach().clone() for param in model.parameters()]
        updated = []
        for x in (torch.full((1, 5), 60000.0), torch.ones(1, 5)):
            optimizer.begin()
            optimizer.backward(model(x.half()).float().mean() * 10, last=True)
            optimizer.reduce(torch.zeros(0, dtype=torch.float64))
            updated.append(optimizer.step(0.1, 0.95))
            updated.append(bool(optimizer.matrices.momentum.any()))
            updated.append(any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
        return updated

    assert run_on_ranks(body, 2) == [[False, False, False, True, True, True]] * 2


def test_matrices_are_dealt_out_without_padding_but_for_those_left_over() -> None:
    def named(count: int, *shape: int) -> list[tuple[str, nn.Parameter]]:
        return [(f"{shape}{number}", nn.Parameter(torch.empty(shape, device="meta"))) for number in range(count)]

    parameters = [*named(9, 4, 4), *named(5, 8, 4), *named(4, 2, 3)]
    parts = evenly_dealt(parameters, 70, 4)
    sizes = [[param.numel() for _, param in part] for part in parts]
    assert sizes == [[16] * 4, [16] * 4, [32] * 4, [6] * 4, [16, 32]]
    assert [len(part) for part in evenly_dealt(named(9, 4, 4), 150, 4)] == [8, 1]
    assert sorted(name for part in parts for name, _ in part) == sorted(name for name, _ in parameters)


def test_operations() -> None:
    assert operations(4, 6, 5) == operations(6, 4, 5) == 5 * (2 * 4 * 4 * 6 + 2 * 4**3 + 2 * 4 * 4 * 6)
    assert Matrices(2, (4, 1, 1)).operations(6, 5) == operations(8, 6, 5) + 2 * operations(2, 6, 5)


FAMILIES = {"INTERNLM2_PUBLIC": "attention.wqkv", "INTERNLM": "mixer.Wqkv", "LLAMA2": None}
HEADS, KV_HEADS, WIDTH = 8, 2, 4


def fused(family: str, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Projections of queries, keys and values as a family keeps them."""
    if family == "LLAMA2":
        return {"attention.wq.weight": q, "attention.wk.weight": k, "attention.wv.weight": v}
    if family == "INTERNLM":
        return {"mixer.Wqkv.weight": torch.cat([q, k, v])}
    groups = [each.view(KV_HEADS, -1, WIDTH, each.shape[1]) for each in (q, k, v)]
    return {"attention.wqkv.weight": torch.cat(groups, dim=1).view(-1, q.shape[1])}


def test_an_update_does_not_depend_on_what_a_family_fuses() -> None:
    hidden = HEADS * WIDTH
    generator = torch.Generator().manual_seed(0)
    rows = (hidden, KV_HEADS * WIDTH, KV_HEADS * WIDTH)
    weights, grads = ([torch.randn(n, hidden, generator=generator).double() for n in rows] for _ in range(2))
    after = {}
    for family in FAMILIES:
        cfg = tiny(
            model_type=family, num_layers=1, hidden_size=hidden, num_attention_heads=HEADS, num_kv_attention_heads=2
        )
        matrices = matrices_of(build_model(cfg, device="meta"))
        here, grad = fused(family, *(w.clone() for w in weights)), fused(family, *grads)
        for name, weight in here.items():
            of = next(each for full, each in matrices.items() if full.endswith(name))
            mean = torch.zeros_like(weight)
            for _ in range(2):
                update(weight, grad[name], mean, of, Muon(), lr=LR, weight_decay=DECAY)
        after[family] = here
    q, k, v = after["LLAMA2"].values()
    for family in FAMILIES:
        for name, expected in fused(family, q, k, v).items():
            assert (after[family][name] - expected).abs().max() < 1e-13, family


MLP = {"feed_forward.w1", "feed_forward.w2", "feed_forward.w3"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, {"attention.wqkv", "attention.wo", *MLP}),
        ({"model_type": "LLAMA3", "tie_word_embeddings": True}, {f"attention.w{x}" for x in "qkvo"} | MLP),
        ({"model_type": "QWEN3", "head_dim": 8}, {f"attention.w{x}" for x in "qkvo"} | MLP),
        ({"model_type": "INTERNLM", "use_swiglu": False}, {"mixer.Wqkv", "mixer.out_proj", "mlp.fc1", "mlp.fc2"}),
        (
            {"model_type": "INTERNLM_MoE", "num_experts": 2, "moe_use_residual": True},
            {"mixer.Wqkv", "mixer.out_proj"}
            | {f"mlp.residual_mlp.w{x}" for x in "123"}
            | {f"mlp.moe_layer.experts.wrapped_experts.{e}.w{x}" for e in "01" for x in "123"},
        ),
    ],
    ids=["INTERNLM2", "LLAMA3, tied", "QWEN3", "INTERNLM, gelu", "MoE"],
)
def test_the_matrices_of_each_family(model: dict[str, Any], expected: set[str]) -> None:
    """Neither embedding nor head, no norm and no bias, no router, and not what weighs a residual MLP."""
    found = matrices_of(build_model(tiny(num_layers=1, **model), device="meta"))
    names = {name.split(".0.", 1)[1].removesuffix(".weight") for name in found}
    assert names == expected


def test_a_model_of_ones_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.name: muon updates the matrices of a decoder's blocks"):
        matrices_of(net())
