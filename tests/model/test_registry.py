"""Model types: the shipped ones, a user's own, and mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from evo_core.config import TrainConfig
from evo_core.errors import ConfigError
from evo_core.model import (
    Decoder,
    ModelOutput,
    build_model,
    init_weights,
    known_model_types,
    model_type,
    register_model_type,
    registry,
)
from tests.model.configs import packed, tiny


class BigramConfig(BaseModel):
    vocab_size: int
    dtype: str = "torch.float32"


class Bigram(torch.nn.Module):
    def __init__(self, vocab_size: int, **factory: Any) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.empty(vocab_size, vocab_size, **factory))

    def init_weights(self, seed: int) -> None:
        with torch.no_grad():
            self.table.fill_(seed)

    def forward(self, input_ids, positions, cu_seqlens, labels=None, max_seqlen=None, label_smoothing=0.0):
        logits = self.table[input_ids]
        if labels is None:
            return ModelOutput(logits=logits)
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return ModelOutput(loss=nll.sum() / (labels != -100).sum(), nll=nll, hit=logits.argmax(-1) == labels)


def build_bigram(model_cfg: Any, *, device: Any, dtype: torch.dtype) -> Bigram:
    return Bigram(model_cfg.vocab_size, device=device, dtype=dtype)


@pytest.fixture(autouse=True)
def _registry_as_shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_TYPES", dict(registry._TYPES))
    yield


def test_a_type_of_ones_own_is_built_and_trained() -> None:
    register_model_type("BIGRAM", build_bigram, BigramConfig)
    assert "BIGRAM" in known_model_types()
    assert model_type("BIGRAM").config_model is BigramConfig
    job: dict[str, Any] = {"model_type": "BIGRAM", "model": {"vocab_size": 61, "dtype": "torch.float64"}}
    cfg = TrainConfig.model_validate(job).model
    model = build_model(cfg)
    init_weights(model, cfg, 3)
    output = model(**packed([4, 6]))
    assert output.loss.item() == pytest.approx(torch.log(torch.tensor(61.0)).item())
    output.loss.backward()
    assert model.table.dtype == torch.float64
    job["model"]["hidden"] = 3
    with pytest.raises(ConfigError, match=r"model\.hidden: unknown key"):
        TrainConfig.model_validate(job)


def test_a_builder_may_be_named_and_is_imported_when_used() -> None:
    register_model_type("NAMED", "tests.model.test_registry:build_bigram", BigramConfig)
    model = build_model(SimpleNamespace(model_type="NAMED", vocab_size=5, dtype="bfloat16"), device="meta")
    assert model.table.dtype == torch.bfloat16


def test_a_package_registers_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "FROM_A_PACKAGE"

        def load(self) -> None:
            register_model_type(self.name, build_bigram, BigramConfig)

    monkeypatch.setattr(
        registry, "entry_points", lambda *, group, name=Point.name: [Point()] if name == Point.name else []
    )
    assert "FROM_A_PACKAGE" in known_model_types()
    assert model_type("FROM_A_PACKAGE").builder is build_bigram
    with pytest.raises(ConfigError):
        model_type("FROM_NOWHERE")


def test_a_taken_name_is_kept_unless_asked() -> None:
    with pytest.raises(ConfigError, match="already registered"):
        register_model_type("LLAMA2", build_bigram, BigramConfig)
    register_model_type("LLAMA2", build_bigram, BigramConfig, replace=True)
    assert model_type("LLAMA2").config_model is BigramConfig


def test_an_unknown_type_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"model_type: unknown model type 'INTERNLM2'.*INTERNLM"):
        build_model(SimpleNamespace(model_type="INTERNLM2", dtype="float32"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"num_attention_heads": 32}, "heads of even width"),
        ({"num_kv_attention_heads": 3}, "cannot share 3"),
        ({"apply_post_layer_norm": True, "residual_in_fp32": True}, "residual_in_fp32"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(tiny(**settings), device="meta")


@pytest.mark.parametrize("name", ["float32", "torch.float64", "torch.half", "bf16"])
def test_dtypes_by_name(name: str) -> None:
    cfg = SimpleNamespace(**{**tiny().model_dump(), "dtype": name, "head_dim": 8, "mlp_hidden_size": 64})
    assert isinstance(build_model(cfg, device="meta"), Decoder)


def test_tf32_is_float32_with_fast_products() -> None:
    try:
        assert build_model(tiny(dtype="tf32"), device="meta").dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        build_model(tiny(), device="meta")
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype: unknown dtype 'float8'"):
        build_model(SimpleNamespace(model_type="LLAMA2", dtype="float8"))


def test_importing_the_registry_imports_no_torch() -> None:
    script = (
        "import sys, evo_core, evo_core.model, evo_core.generate, evo_core.model.registry as r; "
        "r.known_model_types(); r.model_type('LLAMA2'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


class WithConfig(Bigram):
    """A class that brings its keys itself."""

    class Config(BaseModel):
        vocab_size: int

    def __init__(self, cfg: Any, *, device: Any, dtype: torch.dtype) -> None:
        super().__init__(cfg.vocab_size, device=device, dtype=dtype)


class WithoutVocabulary(WithConfig):
    class Config(BaseModel):  # type: ignore[assignment]
        width: int


def test_a_class_is_named_by_its_import_path() -> None:
    name = f"{__name__}:WithConfig"
    job = {"model_type": name, "model": {"vocab_size": 9, "dtype": "torch.float32"}}
    cfg = TrainConfig.model_validate(job)
    assert isinstance(build_model(cfg.model), WithConfig)
    assert cfg.identity(1)["model_type"] == name
    register_model_type("SHORT", WithConfig)
    assert model_type("SHORT").config_model is WithConfig.Config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.module:Model", "No module named 'no_such_package'"),
        (f"{__name__}:NoSuchClass", "has no 'NoSuchClass'"),
        (f"{__name__}:Bigram", "does not say which keys its model block may hold"),
        (f"{__name__}:WithoutVocabulary", "its keys lack vocab_size"),
    ],
)
def test_a_path_that_leads_to_no_model_type_is_answered(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.model_validate({"model_type": path, "model": {"vocab_size": 9}})


def test_a_module_that_cannot_be_imported_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing it fails: ZeroDivisionError"):
        model_type("broken_models:Model")
