"""What `make gpu` measures, on a CPU: the same functions, tiny shapes; and on a GPU where there is one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_decode, gpu_models, gpu_train
from benchmarks.gpu import Board, Budget
from benchmarks.gpu_models import SHAPES, Device
from benchmarks.gpu_worker import Task, Worker, answer
from evo_core.generate.continuation import generate
from evo_core.generate.fixed import FixedDecoding
from evo_core.generate.forward import Forward
from evo_core.model import build_model, count_parameters
from tests.model.configs import randomise, tiny

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
ROOT = Path(__file__).parents[2]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"model_type": "LLAMA2"},
    {"model_type": "QWEN3"},
    {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe_type": "MegaBlock-D"},
]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("shape", "billions"), [("1.8B", 1.889), ("7B", 7.738)])
def test_shapes_are_internlm2s(shape: str, billions: float) -> None:
    model = build_model(gpu_models.config(SHAPES[shape], torch.bfloat16), device="meta")
    assert count_parameters(model) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert model.cfg.mlp_hidden_size == SHAPES[shape].ffn and model.cfg.head_dim == 128


def test_attention_is_counted_as_it_is_masked() -> None:
    cfg = gpu_models.config(SHAPES["tiny"], torch.bfloat16)
    of_block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128  # q and out, k and v, the MLP
    tokens, pairs = 3 * 10, 3 * sum(range(1, 11))
    # A product of m x k and k x n is 2 m k n; the backward pass has two for each. Scores and values, 4 heads of 16.
    products = 3 * 2 * (2 * of_block + 64 * 256) * tokens
    attention = 3 * 2 * 2 * (2 * 4 * 16) * pairs
    assert gpu_train.needed_flops(cfg, 10, 3) == products + attention
    # At 32768 tokens a document attention as it is masked is half of the whole square.
    whole = 12 * 24 * 16 * 128 * 32768**2
    long = gpu_models.config(SHAPES["1.8B"], torch.bfloat16)
    of_pairs = gpu_train.needed_flops(long, 32768, 1) - 32768 * gpu_train.model_flops(long).per_token
    assert of_pairs / whole == pytest.approx(0.5, abs=1e-4)


def test_rates() -> None:
    assert gpu_train.rates(2.0, 1000, 4e12, 1e13) == {"tokens_per_second": 500.0, "mfu": 0.2}
    assert gpu_train.rates(2.0, 1000, 4e12, None)["mfu"] is None


def test_the_first_way_that_fits_is_taken() -> None:
    tried: list[int] = []

    def attempt(number: int, fits: bool) -> dict[str, Any]:
        tried.append(number)
        if not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity")
        return {"number": number}

    device = Device("cpu")
    ways = [lambda n=n: attempt(n, n >= 1) for n in range(3)]  # type: ignore[misc]
    assert gpu_train.first_that_fits(ways, device) == {"number": 1}
    assert tried == [0, 1]
    with pytest.raises(gpu_train.DoesNotFit, match=r"^CUDA out of memory. Tried to allocate 3.00 GiB$"):
        gpu_train.first_that_fits(ways[:1], device)
    assert gpu_train.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    with pytest.raises(ZeroDivisionError):
        gpu_train.first_that_fits([lambda: {"never": 1 / 0}, *ways], device)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few steps and calls as there may be."""
    monkeypatch.setattr(gpu_train, "SECONDS", 0.0)
    monkeypatch.setattr(gpu_decode, "SECONDS", 0.0)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", DEVICES)
def test_a_training_row_has_one_loss_whatever_is_computed_again(kind: str) -> None:
    device = Device(kind)
    found = gpu_train.measure("evo", "tiny", 32, 2, device)
    assert found["loss"] == pytest.approx(math.log(256), rel=0.1)
    assert found["tokens_per_second"] == pytest.approx(64 / found["seconds"]) and found["steps"] >= gpu_train.LEAST
    assert "0 of 2 blocks computed again" in found["how"]
    made = gpu_train.make_evo(SHAPES["tiny"], gpu_train.batch(SHAPES["tiny"], 32, 2, device.torch), device, 1.0)
    assert gpu_train.timed(made, device)["loss"] == pytest.approx(found["loss"], rel=1e-3)
    assert "2 of 2 blocks computed again" in made.how
    assert all(parameter.grad is not None for parameter in made.model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_transformers_has_the_same_loss_and_gradients(kind: str, share: float) -> None:
    device = Device(kind)
    ids = gpu_train.batch(SHAPES["tiny"], 32, 2, device.torch)
    ours = gpu_train.make_evo(SHAPES["tiny"], ids, device, share)
    theirs = gpu_train.make_transformers(SHAPES["tiny"], ids, device, share)
    expected = gpu_train.timed(ours, device)["loss"]
    assert gpu_train.timed(theirs, device)["loss"] == pytest.approx(expected, rel=1e-2)
    head, other = ours.model.head.weight.grad, theirs.model.lm_head.weight.grad  # type: ignore[union-attr]
    assert (head - other).abs().max() / head.abs().max() < 0.05
    assert theirs.model.config._attn_implementation in theirs.how


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_compiled_it_has_them_too_and_makes_no_mask(kind: str, share: float) -> None:
    device, masks = Device(kind), []
    ids = gpu_train.batch(SHAPES["tiny"], 32, 2, device.torch)
    expected = gpu_train.timed(gpu_train.make_transformers(SHAPES["tiny"], ids, device, share), device)["loss"]
    made = gpu_train.make_transformers(SHAPES["tiny"], ids, device, share, compiled=True)
    for layer in made.model.model.layers:  # type: ignore[union-attr]
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
    assert gpu_train.timed(made, device)["loss"] == pytest.approx(expected, rel=1e-2)
    assert masks and all(mask is None for mask in masks) and "compiled" in made.how


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", DEVICES)
def test_decoding_rows_continue_the_same_prompts(kind: str) -> None:
    device = Device(kind)
    found = {name: gpu_decode.measure(name, "tiny", 3, device, prompt=12, new=6) for name in ("evo", "evo generate")}
    for figures in found.values():
        assert [len(row) for row in figures["tokens"]] == [6, 6, 6]
        assert figures["tokens_per_second"] == pytest.approx(18 / figures["seconds"])
    # In bfloat16 likely tokens change places by rounding; the first of every row does not.
    assert gpu_decode.alike(found["evo"]["tokens"], found["evo generate"]["tokens"]) >= 1 / 18


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", DEVICES)
def test_transformers_continues_them_too(kind: str) -> None:
    device = Device(kind)
    ours, theirs = (gpu_decode.measure(name, "tiny", 3, device, prompt=12, new=6) for name in ("evo", "transformers"))
    assert [len(row) for row in theirs["tokens"]] == [6, 6, 6]
    assert gpu_decode.alike(ours["tokens"], theirs["tokens"]) >= 1 / 18


@pytest.mark.parametrize("kind", [pytest.param("cpu", marks=pytest.mark.slow), DEVICES[1]])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_fixed_steps_give_the_tokens_of_generate(kind: str, settings: dict[str, Any]) -> None:
    """On CUDA a graph repeats them. In float32 from large weights, where no rounding decides."""
    model = build_model(tiny(num_kv_attention_heads=2, **settings))
    randomise(model, scale=0.5)
    model.to(kind).eval()
    fixed = FixedDecoding(Forward(model), 3, 40)
    for prompts in ([[1, 7, 30, 4], [5], [9] * 8], [[60, 2], [3], [4]]):
        results = generate(model, None, prompts, max_new_tokens=12, do_sample=False, batch_size=3)
        assert fixed.greedy(prompts, 12) == [result.ids for result in results]


@pytest.mark.parametrize("kind", DEVICES)
def test_generate_reads_a_cache_that_grows_without_a_plan_for_each_length(kind: str) -> None:
    model = build_model(tiny(num_kv_attention_heads=2, dtype="bfloat16"))
    randomise(model, scale=0.5)
    model.to(kind).eval()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        generate(model, None, [[1, 7, 30, 4], [5]], max_new_tokens=5, do_sample=False, batch_size=2)
    attention = {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}
    assert attention and not any("cudnn" in name for name in attention)


def test_alike_is_up_to_the_first_difference() -> None:
    assert gpu_decode.alike([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]]) == 6 / 8


def test_a_budget_leaves_out_what_would_not_fit_and_ends_what_hangs() -> None:
    clock = Clock()
    budget = Budget(100, clock)
    short, long = Task("train", "evo", seconds=10), Task("train", "evo", seconds=60)
    assert budget.limit(short) == 50 and budget.limit(long) == 100
    clock.now = 55
    assert budget.limit(long) == 0 and budget.limit(short) == 45
    clock.now = 101
    assert budget.limit(short) == 0


def test_lines_of_answers() -> None:
    said: list[str] = []
    board = Board(said.append)
    ours = Task("train", "evo", "7B", 2048, 8)
    board.note(ours, {"device": "H100", "peak": 9.894e14, "tokens_per_second": 9000.0, "mfu": 0.431, "loss": 11.5,
                      "bytes": 61.2e9, "how": "flash-attn-3, 16 of 32 blocks computed again"})  # fmt: skip
    theirs = Task("train", "transformers", "7B", 2048, 8)
    board.note(theirs, {"tokens_per_second": 7500.0, "mfu": None, "loss": 11.6, "bytes": None, "how": "sdpa"})
    board.note(Task("train", "evo", "7B", 32768), {"does_not_fit": "out of memory"})
    board.note(Task("decode", "evo", "7B", 1, 128), {"error": "RuntimeError: broken"})
    board.leave_out(Task("decode", "evo", "7B", 8, 128, 12), "it takes about 12 s, and 3 s are left")
    assert said == [
        "H100, 989.4 teraflops at most by its maker",
        "train 7B, 8 x 2048 tokens: evo: 9,000 tokens/s, MFU 43.1%, 61.2 GB at most, flash-attn-3, 16 of 32 blocks "
        "computed again",
        "train 7B, 8 x 2048 tokens: transformers: 7,500 tokens/s, sdpa, evo is 1.20x, losses differ by 9e-03",
        "train 7B, 1 x 32768 tokens: evo: does not fit into this memory (out of memory)",
        "decode 7B, batch 1: evo failed: RuntimeError: broken",
        "decode 7B, batch 8: evo: left out, it takes about 12 s, and 3 s are left",
    ]
    assert board.failed and board.passed_over == 3
    assert [(row.row, row.value, row.peer, row.ratio) for row in board.rows] == [
        ("train 7B, 8 x 2048 tokens: evo", 9000.0, None, None),
        ("train 7B, 8 x 2048 tokens", 9000.0, "transformers", 1.2),
    ]


def test_an_error_is_an_answer() -> None:
    device = Device("cpu")
    found = answer(Task("train", "nobody", "tiny", 8), device)
    assert found["error"].startswith("KeyError")


@pytest.mark.slow
def test_a_run_on_a_cpu_ends_what_hangs_and_goes_on() -> None:
    said: list[str] = []
    board = Board(said.append)
    tasks = [
        Task("train", "evo", "tiny", 32, 2, seconds=60),
        Task("train", "transformers", "tiny", 32, 2, seconds=60),
        Task("train", "nobody", "tiny", 32, 2, seconds=60),
        Task("decode", "evo", "tiny", 2, 4, seconds=60),
        Task("products", "torch.mm", size=64, seconds=1e6),
    ]
    gpu.run(tasks, Budget(2000), board, kind="cpu")
    assert [line.partition(": ")[2].partition(":")[0] for line in said[1:]] == [
        "evo", "transformers", "nobody failed", "evo", "torch.mm",
    ]  # fmt: skip
    assert "left out, it takes about 1000000 s" in said[-1]
    assert len(board.rows) == 3 and board.failed
    worker = Worker("cpu")
    assert worker.ask(tasks[0], 0.001, 200)["error"] == "it took longer than 0 s and was ended"
    assert worker.ask(tasks[0], 200, 0.001)["error"] == "it took longer than 0 s to start and was ended"
    assert "error" not in worker.ask(tasks[0], 200, 200)
    assert worker.ask(tasks[0], 200, 0.001)["error"] == "it took longer than 0 s and was ended"  # no more is left
    worker.end()


def test_every_task_is_one_that_is_known() -> None:
    makers = {"train": gpu_train.MAKERS, "decode": gpu_decode.MAKERS}
    tasks = gpu.plan()
    assert all(task.contestant in makers.get(task.kind, {"torch.mm"}) for task in tasks)
    assert {task.size for task in tasks if task.kind == "train"} == {2048, 8192, 32768}
    assert {task.size for task in tasks if task.kind == "decode"} == {1, 8, 32}
    assert len({task.name for task in tasks}) == len(tasks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout.startswith("no GPU here: torch ") and done.stdout.count("\n") == 1 and not done.stderr


def test_files_of_tests_for_a_gpu_are_found() -> None:
    assert {"tests/model/test_attention.py", "tests/benchmarks/test_gpu.py"} <= set(gpu.marked())


def test_rows_are_written_as_the_suite_reads_them() -> None:
    from benchmarks.results import read_rows

    board = Board(lambda line: None)
    board.note(Task("products", "torch.mm", size=64), {"flops": 1e12, "mfu": 0.5})
    assert read_rows(json.loads(json.dumps([row.as_json() for row in board.rows])), None) == board.rows
