"""InternEvo's `.py` configurations."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import load_config
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS

TUTORIAL = CONFIGS / "train" / "7B_sft.py"
MODEL = "model = dict(num_layers=2, hidden_size=64, num_attention_heads=4, vocab_size=128)\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "job.py"
    path.write_text(text, encoding="utf-8")
    return path


def error(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def assert_holds(config: Any, stated: dict[str, Any], where: str) -> None:
    for name, value in stated.items():
        if isinstance(value, dict):
            assert_holds(getattr(config, name), value, f"{where}{name}.")
        else:
            assert getattr(config, name) == value, f"{where}{name}"


def test_every_value_of_the_tutorial_comes_out() -> None:
    """The values as the tutorial prints them, independent of the file that we ship."""
    stated: dict[str, Any] = dict(
        job_name="7b_train",
        ckpt=dict(
            enable_save_ckpt=False,
            save_ckpt_folder="local:llm_ckpts",
            load_ckpt_info=dict(path="local:llm_ckpts/xxxx", content=("model",), ckpt_type="internevo"),
            auto_resume=True,
            checkpoint_every=50,
            async_upload=True,
            async_upload_tmp_folder="/dev/shm/internlm_tmp_ckpt/",
            oss_snapshot_freq=25,
        ),
        data=dict(
            seq_len=2048,
            micro_num=4,
            micro_bsz=2,
            valid_micro_num=4,
            valid_every=50,
            pack_sample_into_one=False,
            total_steps=50000,
            skip_batches="",
            rampup_batch_size="",
            min_length=50,
            train_folder=None,
            valid_folder=None,
            empty_cache_and_diag_interval=200,
            diag_outlier_ratio=1.1,
            use_shm=False,
            shm_path="/dev/shm/metacache",
        ),
        grad_scaler=dict(
            fp16=dict(initial_scale=65536, min_scale=1, growth_interval=1000),
            growth_factor=2,
            backoff_factor=0.5,
            max_scale=16777216,
            hysteresis=2,
        ),
        hybrid_zero_optimizer=dict(
            overlap_sync_grad=True,
            overlap_sync_param=False,
            reduce_bucket_size=536870912,
            clip_grad_norm=1.0,
            use_split_tensor_optim=False,
            all_gather_size=536870912,
        ),
        loss=dict(label_smoothing=0),
        adam=dict(lr=1e-4, adam_beta1=0.9, adam_beta2=0.95, adam_beta2_c=0, adam_eps=1e-8, weight_decay=0.01),
        lr_scheduler=dict(total_steps=50000, init_steps=0, warmup_ratio=0.01, eta_min=1e-5, last_epoch=-1),
        beta2_scheduler=dict(init_beta2=0.95, c=0, cur_iter=-1),
        use_fp32_norm=False,
        model=dict(
            checkpoint=False,
            num_attention_heads=32,
            embed_split_hidden=True,
            vocab_size=103168,
            embed_grad_scale=1,
            parallel_output=True,
            hidden_size=4096,
            num_layers=32,
            mlp_ratio=8 / 3,
            apply_post_layer_norm=False,
            dtype="torch.bfloat16",
            norm_type="rmsnorm",
            layer_norm_epsilon=1e-5,
            use_flash_attn=True,
            qk_interleaved=False,
            num_chunks=1,
        ),
        parallel=dict(
            zero1=dict(size=-1, fsdp=False),
            tensor=dict(size=1, mode="mtp"),
            pipeline=dict(size=1, interleaved_overlap=True),
            weight=dict(size=1, overlap=True, memory_pool=True),
        ),
        cudnn_deterministic=False,
        cudnn_benchmark=False,
        monitor=dict(
            alert=dict(
                enable_feishu_alert=False,
                feishu_alert_address=None,
                light_monitor_address=None,
                alert_file_path="llm_alter/7b_train_alert.log",
            ),
            tensorboard=dict(queue_max_length=10),
        ),
    )
    config = load_config(TUTORIAL)
    assert_holds(config, stated, "")
    assert config.model_type == "INTERNLM"
    assert config.model.mlp_hidden_size == 11008
    assert config.micro_num(8) * config.data.packed_length * 8 == 131072


def test_every_value_of_the_file_comes_out() -> None:
    """Nothing the file states is lost on the way."""
    blocks = {name: value for name, value in runpy.run_path(str(TUTORIAL)).items() if name.islower() and name[0] != "_"}
    assert set(blocks) >= {"ckpt", "data", "grad_scaler", "adam", "model", "parallel", "monitor"}
    assert_holds(load_config(TUTORIAL), blocks, "")


def test_a_config_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "weights")
    text = f"""
import os
from pathlib import Path

ROOT = os.environ["BUCKET"]
_private = 3

def half(n):
    return int(n / 2)

class Ignored:
    lr = 1

JOB_NAME = f"job-{{ROOT}}"
{MODEL}
model["num_layers"] = half(8)
data = {{"seq_len": 64, "train_folder": str(Path(ROOT) / "train")}}
adam: dict = dict(lr=1e-3)
parallel = dict(zero1=2)
"""
    config = load_config(write(tmp_path, text), ["adam.adam_eps=1e-6", "JOB_NAME=other"])
    assert (config.model.num_layers, config.data.train_folder) == (4, "weights/train")
    assert (config.adam.lr, config.adam.adam_eps, config.job_name) == (1e-3, 1e-6, "other")
    assert config.parallel.zero1.size == 2


def test_references_to_the_environment_work_and_stay_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "https://secret")
    text = MODEL + 'monitor = dict(alert=dict(feishu_alert_address="${oc.env:HOOK}"))\n'
    config = load_config(write(tmp_path, text))
    assert config.monitor.alert.feishu_alert_address == "https://secret"
    assert "secret" not in config.to_yaml()


def test_a_torch_dtype_is_taken(tmp_path: Path) -> None:
    text = "import torch\n" + MODEL + "model['dtype'] = torch.float16\n"
    assert load_config(write(tmp_path, text)).model.dtype == "torch.float16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{MODEL}modle = dict()\n", 'job.py:2: modle: unknown key; did you mean "model"?'),
        (
            f"{MODEL}adam = dict(\n    lr=1e-3,\n    adam_beta3=1,\n)\n",
            "job.py:4: adam.adam_beta3: unknown key",
        ),
        (f'{MODEL}data = {{\n  "seq_len": "x",\n}}\n', 'job.py:3: data.seq_len: "x" is not a number'),
        ("x = (\n", "job.py:1: not valid Python: '(' was never closed"),
        ("\nA = B\n", "job.py:2: NameError: name 'B' is not defined"),
        ("def f():\n    return 1 / 0\nA = f()\n", "job.py:2: ZeroDivisionError: division by zero"),
        ("raise SystemExit('no')", "job.py:1: SystemExit: no"),
        ("import not_there_at_all", "job.py:1: ModuleNotFoundError"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    assert error(tmp_path, text).startswith(message)


def test_an_override_is_named_as_its_place(tmp_path: Path) -> None:
    assert error(tmp_path, MODEL, "adam.lrr=3") == '--set adam.lrr: adam.lrr: unknown key; did you mean "lr"?'


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.yaml, \.yml or \.py"):
        load_config(tmp_path / "job.json")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(tmp_path / "none.py")


def test_a_misspelt_block_is_told_first_and_once(tmp_path: Path) -> None:
    text = "modle = dict(num_layers=2)\nadm = dict(lr=1)\ndata = dict(seq_len=-1)\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    told = str(caught.value).splitlines()
    assert told[0].endswith('modle: unknown key; did you mean "model"?')
    assert told[1].endswith('adm: unknown key; did you mean "adam"?')
    assert not any("is required" in line for line in told)


def test_what_is_not_loaded_may_name_no_model(tmp_path: Path) -> None:
    text = MODEL + "ckpt = dict(auto_resume={}, load_ckpt_info=dict(path='local:x', content=('sampler',)))\n"
    load_config(write(tmp_path, text.format(True)))
    with pytest.raises(ConfigError, match=r"ckpt.load_ckpt_info.content: without the model"):
        load_config(write(tmp_path, text.format(False)))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "", "a\nb", "x" * 250])
def test_a_job_name_leads_no_folder_out_of_run(name: str, tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MODEL + f"JOB_NAME = {name!r}\n"))
    with pytest.raises(ConfigError, match=r"^job_name: .* cannot be the name of a folder below RUN/"):
        _ = config.run_name
    assert load_config(write(tmp_path, MODEL + "JOB_NAME = '7b/训练 1'\n")).run_name == "7b/训练 1"
