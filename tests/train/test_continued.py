"""A run that goes on from published weights begins with the loss that these weights have on its first batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.checkpoint import load_model
from evo_core.checkpoint.records import file_record
from evo_core.config import TrainConfig
from evo_core.config.open_shape import network_of, read_open_job
from evo_core.data import BinWriter, open_source
from evo_core.errors import CheckpointError, DataError
from evo_core.train import train
from evo_core.train.start import Start
from evo_core.weights import cast, open_weights, write_weights
from tests.s3_server import S3Server
from tests.train.jobs import curve, losses
from tests.weights.models import same
from tests.weights.published import FORMS, PIECES, SENTENCES, letters, put

KINDS = {"internlm-7b": "hf_model", "meta-llama": "llama", "evo": "evo"}
JOB: dict[str, Any] = {
    "enable_tb": False,
    "data": {"seq_len": 32, "micro_bsz": 1, "global_batch_tokens": 64, "total_steps": 4},
    "model": {"dtype": "torch.float64"},
    "adam": {"lr": 1e-2},
    "lr_scheduler": {"warmup_ratio": 0.25, "eta_min": 1e-3},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters(tmp_path_factory.mktemp("tokenizer"))


def open_job(folder: Path, weights: Path, tokenizer: Path, **changes: Any) -> TrainConfig:
    """A job without a shape, closed by that of the weights, on data of the tokenizer."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    with BinWriter(folder / "data" / "en" / "train_000.bin") as writer:
        for _ in range(4):
            for text in SENTENCES:
                writer.write(load_tokenizer(tokenizer).encode(text, bos=True, eos=True))
    data = {"train_folder": str(folder / "data"), "tokenizer_path": str(tokenizer), **JOB["data"]}
    plain = {**JOB, "data": data, "ckpt": {"save_ckpt_folder": f"local:{folder / 'ckpt'}"}, **changes}
    (folder / "job.yaml").write_text(json.dumps(plain))
    found = read_open_job(folder / "job.yaml", [], {})
    assert found is not None
    return found.closed(network_of(open_weights(weights).config))


def imported(source: Path, target: Path) -> Path:
    write_weights(open_weights(source), target, "evo")
    return target


def go_on(cfg: TrainConfig, weights: Path | None, folder: Path) -> None:
    """Train from weights, or from what the job names."""
    torch.set_num_threads(1)
    train(cfg, folder=folder, init=None if weights is None else Start(weights, ("model",), resumes=False))


def with_start(cfg: TrainConfig, info: dict[str, Any]) -> TrainConfig:
    ckpt = {"enable_save_ckpt": False, "auto_resume": False, "load_ckpt_info": info}
    return TrainConfig.model_validate({**cfg.to_plain(), "ckpt": ckpt})


def first_loss(cfg: TrainConfig, logits: Any) -> float:
    """The mean over micro-batches of the mean over targets, of a model given document by document.

    Args:
        logits: ids [n] to [n, vocabulary].
    """
    batch = open_source(cfg, dp_rank=0, dp_size=1).draw(0)[0]
    per_micro = []
    for ids, labels, ends in zip(batch.input_ids, batch.labels, batch.cu_seqlens, strict=True):
        total, targets = torch.zeros((), dtype=torch.float64), 0
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            if end > start:
                found: Tensor = logits(ids[start:end])[:, : cfg.model.vocab_size]
                total += F.cross_entropy(found.double(), labels[start:end], ignore_index=-100, reduction="sum")
                targets += int((labels[start:end] != -100).sum())
        per_micro.append(total / max(targets, 1))
    return float(torch.stack(per_micro).mean())


def ours(weights: Path) -> Any:
    model, _ = load_model(weights, dtype=torch.float64)

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            ends = torch.tensor([0, len(ids)], dtype=torch.int32)
            return model(ids, torch.arange(len(ids)), ends).logits

    return logits


def theirs(weights: Path) -> Any:
    """A Llama of transformers with the folder's tensors, which up to the trained length is what InternLM's class is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if files := sorted(weights.glob("pytorch_model-*.bin")):
        settings = json.loads((weights / "config.json").read_text())
        kept = {name: value for name, value in settings.items() if name not in ("auto_map", "architectures", "rotary")}
        model = LlamaForCausalLM(LlamaConfig(**kept, attention_bias=settings["bias"])).double().eval()
        model.load_state_dict({name: x for file in files for name, x in torch.load(file, weights_only=True).items()})
    else:
        model = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float64).eval()

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids[None]).logits[0]

    return logits


@pytest.mark.parametrize("form", FORMS)
def test_the_first_loss_is_that_of_the_weights(form: str, tmp_path: Path, tokenizer: Path) -> None:
    FORMS[form](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    cfg = open_job(tmp_path, tmp_path / "theirs", tokenizer)
    oracle = theirs if form in ("internlm-7b", "hf-llama") else ours
    expected = first_loss(cfg, oracle(tmp_path / "theirs"))
    go_on(cfg, imported(tmp_path / "theirs", tmp_path / "evo"), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(expected, rel=1e-8)  # transformers has Llama 3's frequencies in float32
    assert len(found) == 4 and found[-1] < found[0]
    assert not (tmp_path / "trace").exists()


def test_data_of_another_tokenizer_are_refused_before_the_first_step(tmp_path: Path, tokenizer: Path) -> None:
    FORMS["internlm-7b"](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    cfg = open_job(tmp_path, tmp_path / "theirs", tokenizer, ckpt={"enable_save_ckpt": False})
    (tmp_path / "other").mkdir()
    other = letters(tmp_path / "other", ["quick brown foxes jump over lazy dogs", "sphinx of black quartz"])
    data = cfg.data.model_copy(update={"tokenizer_path": str(other)})
    there = {"foreign": tmp_path / "theirs", "evo": imported(tmp_path / "theirs", tmp_path / "evo")}
    for name, weights in there.items():
        start = Start(weights, ("model",), resumes=False, source=str(weights))
        with pytest.raises(CheckpointError, match=r"data\.tokenizer_path: the data were tokenized with") as told:
            train(cfg.model_copy(update={"data": data}), folder=tmp_path / name, init=start)
        assert f"of {PIECES} ids" in str(told.value)
        train(cfg, folder=tmp_path / f"{name}-right", init=start)
        assert curve(tmp_path / f"{name}-right")[0]["step"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_weights_keep_their_type_and_their_bits(dtype: torch.dtype, tmp_path: Path, tokenizer: Path) -> None:
    """At a rate of next to nothing they are after four steps what they were: the copies of an optimizer too."""
    FORMS["internlm-7b"](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    write_weights(cast(open_weights(tmp_path / "theirs"), dtype), tmp_path / "evo", "evo")
    rate = {"adam": {"lr": 1e-30, "weight_decay": 0}, "lr_scheduler": {"eta_min": 0}}
    cfg = open_job(tmp_path, tmp_path / "evo", tokenizer, model={}, **rate)
    assert cfg.model.dtype == str(dtype)
    go_on(cfg, tmp_path / "evo", tmp_path / "run")
    assert same(load_model(tmp_path / "ckpt")[0], load_model(tmp_path / "evo")[0])  # type: ignore[arg-type]


def test_a_tied_head_is_tied_all_the_way(tmp_path: Path, tokenizer: Path) -> None:
    """From Hugging Face's folder through training to one that transformers reads."""
    FORMS["hf-llama"](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    cfg = open_job(tmp_path, tmp_path / "theirs", tokenizer)
    go_on(cfg, imported(tmp_path / "theirs", tmp_path / "evo"), tmp_path / "run")
    write_weights(open_weights(tmp_path / "ckpt"), tmp_path / "hf", "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"] is True
    found, expected = first_loss(cfg, theirs(tmp_path / "hf")), first_loss(cfg, ours(tmp_path / "ckpt"))
    assert found == pytest.approx(expected, rel=1e-8)
    assert expected < losses(tmp_path / "run")[0]


@pytest.mark.s3
@pytest.mark.parametrize("form", ["internlm-7b", "meta-llama", "evo"])
def test_from_a_store(
    form: str, tmp_path: Path, tokenizer: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is that of the same weights on disk; data of another tokenizer are refused there too."""
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    FORMS["internlm-7b" if form == "evo" else form](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    folder, uri = tmp_path / "theirs", f"s3://{s3.new_bucket()}/models/weights"
    cfg = open_job(tmp_path, folder, tokenizer, ckpt={"enable_save_ckpt": False})
    if form == "evo":
        folder = imported(folder, tmp_path / "evo")
    put(folder, uri)
    for name, place in (("disk", str(folder)), ("store", uri)):
        info = {"path": place, "content": ["model"], "ckpt_type": KINDS[form]}
        go_on(with_start(cfg, info), None, tmp_path / name)
    assert losses(tmp_path / "store") == losses(tmp_path / "disk")
    (tmp_path / "other").mkdir()
    other = letters(tmp_path / "other", ["quick brown foxes jump over lazy dogs", "sphinx of black quartz"])
    data = cfg.data.model_copy(update={"tokenizer_path": str(other)})
    with pytest.raises(CheckpointError, match="another tokenizer"):
        go_on(with_start(cfg, info).model_copy(update={"data": data}), None, tmp_path / "wrong")


def test_ids_without_a_row_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    FORMS["meta-llama"](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    cfg = open_job(tmp_path, tmp_path / "theirs", tokenizer)
    with BinWriter(tmp_path / "data" / "en" / "train_001.bin") as writer:
        writer.write([1, 5, 304, 2])
    with pytest.raises(DataError, match="token id 304 is outside the vocabulary of 304"):
        go_on(cfg, imported(tmp_path / "theirs", tmp_path / "evo"), tmp_path / "run")


def test_weights_with_settings_of_another_version(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FORMS["meta-llama"](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    cfg = open_job(tmp_path, tmp_path / "theirs", tokenizer)
    config = imported(tmp_path / "theirs", tmp_path / "evo") / "config.yaml"
    config.write_text(config.read_text() + "of_a_later_version: 1\n")
    manifest = json.loads((tmp_path / "evo" / "manifest.json").read_text())
    record = file_record(config)
    manifest["files"]["config.yaml"] = {"size": record.size, "digest": record.digest}
    (tmp_path / "evo" / "manifest.json").write_text(json.dumps(manifest))
    go_on(cfg, tmp_path / "evo", tmp_path / "run")
    said = capsys.readouterr().out
    assert "the settings of these weights are not compared with this run's:" in said
    assert "of_a_later_version" in said


def test_what_is_said_of_schedule_and_settings(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FORMS["meta-llama"](tmp_path / "theirs", tokenizer, tmp_path / "trace")
    cfg = open_job(tmp_path, tmp_path / "theirs", tokenizer, model={"rope_base": 5e5, "dtype": "torch.float64"})
    go_on(cfg, imported(tmp_path / "theirs", tmp_path / "evo"), tmp_path / "run")
    said = capsys.readouterr().out
    assert "model.rope_base is 10000.0 with these weights and 500000.0 in this run" in said
    assert "the schedule starts anew, over 4 steps: 1 of warm-up to 0.01, then down to 0.001" in said
