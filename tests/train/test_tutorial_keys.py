"""Every key of the tutorial's 7B_sft.py is carried out, or without effect here and said to be, or refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from evo_core.config import TrainConfig, load_config
from evo_core.model import build_model, count_parameters
from evo_core.monitor.alerts import Alerts
from evo_core.monitor.heartbeat import Heartbeat
from evo_core.train.checkpointing import Cadence, save_folder
from evo_core.train.memory import clean_up_interval
from evo_core.train.optimizer import make_scaler, make_schedules
from evo_core.train.run import set_kernels
from evo_core.train.sinks import Tensorboard, open_sinks
from tests.train.jobs import curve, run, write_tokens
from tests.train.test_internevo_config import CONFIG, SIZES

ROOT = Path(__file__).parents[2]

ALSO_SHOWN = ("parallel.zero1.fsdp", "data.shm_path")
"""Keys that the tutorial explains, and its file leaves out."""

WITHOUT_EFFECT = {
    "data.valid_micro_num": "pipeline.size is 1: they are evaluated one by one",
    "model.parallel_output": "tensor.size is 1",
    "model.embed_split_hidden": "tensor.size is 1",
    "parallel.pipeline.interleaved_overlap": "pipeline.size is 1",
    "parallel.weight.overlap": "weight.size is 1",
    "parallel.weight.memory_pool": "weight.size is 1",
    "ckpt.async_upload": "nothing is saved",
    "ckpt.async_upload_tmp_folder": "nothing is uploaded in the background",
    "monitor.alert.alert_file_path": "no alerts are sent",
}
"""In the file as it is, on a GPU."""

WITHOUT_EFFECT_IF_SET = {
    "adam.adam_beta2": (0.5, "beta2_scheduler.init_beta2 goes before it"),
    "adam.adam_beta2_c": (0.5, "beta2_scheduler.c goes before it"),
    "data.shm_path": ("/x", "no index is kept in shared memory"),
    "data.use_shm": (True, "random data has no index"),
    "hybrid_zero_optimizer.use_split_tensor_optim": (True, "tensors are split evenly anyway"),
    "model.num_chunks": (2, "pipeline.size is 1"),
    "monitor.alert.feishu_alert_address": ("https://x", "enable_feishu_alert is false"),
}

_OVERLAPS = "train/test_internevo_config.py::test_its_overlap_keys_change_no_number"

SHOWN_IN = {
    "ckpt.load_ckpt_info.path": "train/test_start.py::test_weights_alone",
    "ckpt.load_ckpt_info.content": "train/test_start.py::test_everything_goes_on_where_it_stopped",
    "ckpt.load_ckpt_info.ckpt_type": "train/test_foreign_start.py",
    "ckpt.auto_resume": "train/test_start.py::test_auto_resume_does_not_read_load_ckpt_info_and_warns",
    "ckpt.async_upload": "train/test_background_saves.py",
    "ckpt.async_upload_tmp_folder": "train/test_saved_in_store.py",
    "data.diag_outlier_ratio": "monitor/test_diagnosis.py::test_it_is_clamped_and_read_from_the_job",
    "data.use_shm": "train/test_stages.py::test_the_curve_of_one_process",
    "data.valid_folder": "train/test_step.py::test_evaluate_gives_the_held_out_scores_as_fields",
    "data.valid_micro_num": "train/test_stages.py::test_valid_micro_num_is_what_stages_are_handed_at_once",
    "hybrid_zero_optimizer.overlap_sync_grad": _OVERLAPS,
    "hybrid_zero_optimizer.overlap_sync_param": _OVERLAPS,
    "hybrid_zero_optimizer.reduce_bucket_size": _OVERLAPS,
    "hybrid_zero_optimizer.all_gather_size": _OVERLAPS,
    "generation.prompts": "generate/test_command.py",
    "generation.output_folder": "generate/test_command.py",
    "generation.max_length": "generate/test_command.py",
    "model.use_flash_attn": "model/test_attention.py",
    "model.checkpoint": "model/test_decoder.py",
    "parallel.zero1.fsdp": "train/test_fsdp_runs.py::test_the_curve_of_one_process",
    "parallel.tensor.mode": "train/test_tensor_ranks.py::test_the_curve_of_one_process",
    "parallel.weight.overlap": "parallel/weight/test_events.py",
}
"""Tests of what a run of one process on a CPU does not show."""


class Change(NamedTuple):
    """Another value of a setting, and what shows that it is read."""

    value: Any
    seen: Callable[[TrainConfig, Path], Any]
    beside: tuple[str, ...] = ()
    """Settings of both jobs."""


def trained(cfg: TrainConfig, folder: Path) -> Any:
    """The curve of a short run on one process."""
    run(cfg, folder)
    kept = ("loss", "grad_norm", "lr", "loss_scale", "adam_beta2", "micro_num", "num_consumed_tokens", "val/en_loss")
    return [[record.get(name) for name in kept] for record in curve(folder)]


def rates(cfg: TrainConfig, folder: Path) -> Any:
    """Learning rate and beta2 over the whole of a schedule."""
    return [[schedule(t) for schedule in make_schedules(cfg)] for t in range(0, 60_000, 300)]


def scaler(cfg: TrainConfig, folder: Path) -> Any:
    return make_scaler(cfg, build_model(cfg.model, device="meta"))


def parameters(cfg: TrainConfig, folder: Path) -> Any:
    model = build_model(cfg.model, device="meta")
    return count_parameters(model), {name: param.dtype for name, param in model.named_parameters()}


def degrees(cfg: TrainConfig, folder: Path) -> Any:
    return cfg.degrees(4)


def saves(cfg: TrainConfig, folder: Path) -> Any:
    return Cadence.of(cfg), save_folder(cfg)


def kernels(cfg: TrainConfig, folder: Path) -> Any:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    set_kernels(cfg)
    seen = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    return seen


def board(cfg: TrainConfig, folder: Path) -> Any:
    *_, tensorboard = open_sinks(cfg, folder, 0)
    assert isinstance(tensorboard, Tensorboard)
    tensorboard.close()
    return tensorboard._writer.max_queue


HOOK = "http://127.0.0.1:9/hook"
_SAVED = ("ckpt.enable_save_ckpt=true",)
_SCALED = ("model.dtype=torch.bfloat16",)
_ON_TEXT = ("data.train_folder=DATA", "data.valid_folder=DATA")

CHANGES = {
    "JOB_NAME": Change("another", lambda cfg, folder: cfg.run_name),
    "ckpt.enable_save_ckpt": Change(True, saves),
    "ckpt.save_ckpt_folder": Change("local:other", saves, _SAVED),
    "ckpt.checkpoint_every": Change(7, saves, _SAVED),
    "ckpt.oss_snapshot_freq": Change(7, saves, _SAVED),
    "data.seq_len": Change(32, trained),
    "data.micro_num": Change(2, trained),
    "data.micro_bsz": Change(1, trained),
    "data.valid_every": Change(2, trained, _ON_TEXT),
    "data.pack_sample_into_one": Change(True, trained, _ON_TEXT),
    "data.total_steps": Change(1, trained),
    "data.skip_batches": Change("0-1", trained),
    "data.rampup_batch_size": Change("2 1 1", trained),
    "data.min_length": Change(20, trained, _ON_TEXT),
    "data.train_folder": Change("DATA", trained),
    "data.empty_cache_and_diag_interval": Change(7, lambda cfg, folder: clean_up_interval(cfg)),
    "grad_scaler.fp16.initial_scale": Change(4, scaler, _SCALED),
    "grad_scaler.fp16.min_scale": Change(4, scaler, _SCALED),
    "grad_scaler.fp16.growth_interval": Change(4, scaler, _SCALED),
    "grad_scaler.growth_factor": Change(4, scaler, _SCALED),
    "grad_scaler.backoff_factor": Change(0.25, scaler, _SCALED),
    "grad_scaler.max_scale": Change(2**20, scaler, _SCALED),
    "grad_scaler.hysteresis": Change(4, scaler, _SCALED),
    "hybrid_zero_optimizer.clip_grad_norm": Change(1e-9, trained),
    "loss.label_smoothing": Change(0.1, trained),
    "adam.lr": Change(1e-3, trained),
    "adam.adam_beta1": Change(0.5, trained, ("data.total_steps=3",)),  # the first update is without a past
    "adam.adam_eps": Change(1e-2, trained),
    "adam.weight_decay": Change(0.5, trained),
    "lr_scheduler.total_steps": Change(60000, rates),
    "lr_scheduler.init_steps": Change(1, rates),
    "lr_scheduler.warmup_ratio": Change(0.1, rates),
    "lr_scheduler.eta_min": Change(0, rates),
    "lr_scheduler.last_epoch": Change(7, rates),
    "beta2_scheduler.init_beta2": Change(0.5, rates),
    "beta2_scheduler.c": Change(0.8, rates),
    "beta2_scheduler.cur_iter": Change(9, rates, ("beta2_scheduler.c=0.8",)),
    "use_fp32_norm": Change(True, parameters, _SCALED),
    "model.num_attention_heads": Change(2, trained),
    "model.apply_post_layer_norm": Change(True, trained),
    "model.vocab_size": Change(128, parameters),
    "model.embed_grad_scale": Change(0.1, trained),
    "model.hidden_size": Change(64, parameters),
    "model.num_layers": Change(1, parameters),
    "model.mlp_ratio": Change(16, parameters),
    "model.dtype": Change("torch.float32", parameters),
    "model.norm_type": Change("layernorm", parameters),
    "model.layer_norm_epsilon": Change(1e-2, trained),
    "model.qk_interleaved": Change(True, trained),
    "parallel.zero1.size": Change(2, degrees),
    "parallel.tensor.size": Change(2, degrees),
    "parallel.pipeline.size": Change(2, degrees),
    "parallel.weight.size": Change(2, degrees, ("parallel.tensor.mode=isp",)),
    "cudnn_deterministic": Change(True, kernels),
    "cudnn_benchmark": Change(True, kernels),
    "monitor.alert.enable_feishu_alert": Change(
        True, lambda cfg, folder: Alerts(cfg, rank=0, attempt="").on, (f"monitor.alert.feishu_alert_address={HOOK}",)
    ),
    "monitor.alert.light_monitor_address": Change(HOOK, lambda cfg, folder: Heartbeat(cfg, beats=True)._delivery),
    "monitor.tensorboard.queue_max_length": Change(7, board, ("enable_tb=true",)),
}


@functools.cache
def small() -> str:
    """The file with small constants."""
    text = CONFIG.read_text()
    for name, value in SIZES.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    return text


def job(folder: Path, *settings: str) -> TrainConfig:
    """The small job of two steps in float64; DATA among the settings is text to train on."""
    if any("DATA" in setting for setting in settings) and not (folder / "data").is_dir():
        write_tokens(folder / "data")
    (folder / "small.py").write_text(small())
    usual = ("data.total_steps=2", "enable_tb=false", "model.dtype=torch.float64")
    return load_config(folder / "small.py", [*usual, *(s.replace("DATA", str(folder / "data")) for s in settings)])


def keys() -> set[str]:
    """Every key that the file states, and what the tutorial says beside it."""
    stated: dict[str, Any] = {}
    exec(compile(CONFIG.read_text(), str(CONFIG), "exec"), stated)

    def leaves(block: dict[str, Any], where: str) -> set[str]:
        found: set[str] = set()
        for name, value in block.items():
            found |= leaves(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}"}
        return found

    blocks = {name: value for name, value in stated.items() if name.islower() and name[0] != "_"}
    return leaves(blocks, "") | {"JOB_NAME", *ALSO_SHOWN}


def test_each_key_is_of_one_of_the_kinds() -> None:
    kinds = (WITHOUT_EFFECT, WITHOUT_EFFECT_IF_SET, SHOWN_IN, CHANGES)
    assert {key for kind in kinds for key in kind} == keys()
    assert not CHANGES.keys() & (WITHOUT_EFFECT.keys() | SHOWN_IN.keys())


def named(cfg: TrainConfig) -> dict[str, str]:
    """The settings that the log names as without effect, with why."""
    return {line.partition(" (")[0]: line.partition(" (")[2][:-1] for line in cfg.settings_without_effect("cuda")}


def test_what_has_no_effect_is_named_with_the_reason() -> None:
    assert named(load_config(CONFIG)) == WITHOUT_EFFECT
    on_cpu = load_config(CONFIG).settings_without_effect("cpu")
    assert len(on_cpu) == len(WITHOUT_EFFECT) + 1
    assert "model.use_flash_attn (there is no such kernel on a CPU)" in on_cpu


@pytest.mark.parametrize("key", WITHOUT_EFFECT_IF_SET)
def test_what_would_have_no_effect_is_named(key: str) -> None:
    value, why = WITHOUT_EFFECT_IF_SET[key]
    assert named(load_config(CONFIG, [f"{key}={str(value).lower()}"])) == WITHOUT_EFFECT | {key: why}


@pytest.mark.parametrize("key", CHANGES)
def test_what_is_carried_out_changes_something(key: str, tmp_path: Path, usual: Callable[..., Any]) -> None:
    value, seen, beside = CHANGES[key]
    name = "job_name" if key == "JOB_NAME" else key
    (tmp_path / "changed").mkdir()
    changed = job(tmp_path / "changed", *beside, f"{name}={'true' if value is True else value}")
    assert seen(changed, tmp_path / "changed" / "run") != usual(seen, *beside)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What shows of the file without a change, each found once."""

    @functools.cache
    def find(seen: Callable[[TrainConfig, Path], Any], *beside: str) -> Any:
        folder = tmp_path_factory.mktemp("usual")
        return seen(job(folder, *beside), folder / "run")

    return find


@pytest.mark.parametrize("key", SHOWN_IN)
def test_the_tests_that_are_named_are_there(key: str) -> None:
    path, _, name = SHOWN_IN[key].partition("::")
    text = (ROOT / "tests" / path).read_text()
    assert f"def {name}" in text and key.rpartition(".")[2] in text
