"""No code that lies with weights, a tokenizer or a data set runs, through whichever door they come in."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import load_model
from evo_core.command_line.program import run
from evo_core.config import load_saved_config
from evo_core.convert.command import main as convert
from evo_core.data import BinWriter
from evo_core.data.commands import app as data_app
from evo_core.data.loader.hf_dataset import open_stream
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.errors import CheckpointError, ConfigError, DataError
from evo_core.evaluate.command import main as evaluate
from evo_core.generate.command import main as generate
from evo_core.serve.command import load as load_service
from evo_core.train import train
from evo_core.weights import open_weights, write_weights
from evo_core.weights.hf.names import ARCHITECTURES
from tests.train.jobs import job
from tests.weights.models import same
from tests.weights.published import FORMS, ROWS, SENTENCES, letters, trap


class Folder:
    """A published folder with code in it, which every import in this process would find first."""

    def __init__(self, form: str, root: Path, tokenizer: Path) -> None:
        self.root, self.path, self.trace = root, root / "published", root / "trace"
        self.model = FORMS[form](self.path, tokenizer, self.trace)
        self.modules = [path.stem for path in self.path.glob("*.py")]
        with BinWriter(root / "valid" / "en" / "train_000.bin") as writer:
            for text in SENTENCES:
                writer.write(load_tokenizer(tokenizer).encode(text, bos=True, eos=True))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(params=["internlm-7b", "internlm2-7b"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    found = Folder(request.param, tmp_path, tokenizer)
    monkeypatch.chdir(found.path)
    monkeypatch.syspath_prepend(found.path)
    yield found
    assert not found.trace.exists(), found.trace.read_text()
    name = next(name for name in found.modules if name.startswith("modeling_"))
    importlib.import_module(name)
    del sys.modules[name]
    assert found.trace.read_text() == f"{name}\n", "the trap is one"


def by_convert(folder: Folder) -> None:
    convert([str(folder.path), str(folder.root / "evo")])
    assert same(load_model(folder.root / "evo")[0], folder.model)  # type: ignore[arg-type]
    convert([str(folder.root / "evo"), str(folder.root / "hf")])
    assert same(load_model(folder.root / "hf")[0], folder.model)  # type: ignore[arg-type]
    assert not list((folder.root / "hf").glob("*.py"))


def by_training(folder: Folder) -> None:
    shape = {name: getattr(folder.model.cfg, name) for name in ("num_kv_attention_heads", "no_bias", "rope_base")}
    cfg = job(
        folder.root,
        model_type=folder.model.cfg.model_type,
        model={**shape, "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": ROWS}
        | {"mlp_ratio": 2.0, "multiple_of": 8, "dtype": "torch.float32"},
        data__total_steps=1,
        data__tokenizer_path=str(folder.path),
        ckpt={
            "enable_save_ckpt": False,
            "auto_resume": False,
            "load_ckpt_info": {"path": str(folder.path), "content": ["model"], "ckpt_type": "hf_model"},
        },
    )
    train(cfg, folder=folder.root / "run")
    assert (folder.root / "run" / "metrics.jsonl").stat().st_size


def by_generation(folder: Folder) -> None:
    block = {"ckpt_folder": str(folder.path), "output_folder": str(folder.root / "said"), "max_new_tokens": 2}
    model = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": ROWS}
    job_file = folder.root / "generate.yaml"
    job_file.write_text(json.dumps({"model": model, "generation": {**block, "prompts": ["the cat"]}}))
    generate(["--config", str(job_file)])
    assert (folder.root / "said" / "samples.jsonl").stat().st_size


def by_evaluation(folder: Folder) -> None:
    evaluate(["--model", str(folder.path), "--data", str(folder.root / "valid")])


def by_serving(folder: Folder) -> None:
    load_service(str(folder.path))


def by_tokenizing(folder: Folder) -> None:
    texts, tokens = folder.root / "texts.txt", folder.root / "tokens.bin"
    texts.write_text("the cat sat\n")
    words = [str(texts), "--output", str(tokens), "--tokenizer", str(folder.path), "--workers", "1"]
    run(data_app, ["tokenize", *words], "evo data")
    assert tokens.stat().st_size


DOORS = (by_convert, by_training, by_generation, by_evaluation, by_serving, by_tokenizing)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_published_code_does_not_run(folder: Folder, door: Callable[[Folder], None]) -> None:
    door(folder)


def test_a_model_that_needs_its_code_is_refused_with_what_there_is(tmp_path: Path, tokenizer: Path) -> None:
    found = Folder("internlm-7b", tmp_path, tokenizer)
    config: dict[str, Any] = json.loads((found.path / "config.json").read_text())
    changes: tuple[dict[str, Any], ...] = (
        {"architectures": ["ChatGLMModel"], "model_type": "chatglm"},
        {"architectures": None, "model_type": "baichuan"},
        {"architectures": [], "model_type": None},
    )
    for change in changes:
        (found.path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError) as caught:
            open_weights(found.path)
        said = str(caught.value)
        assert "it brings code of its own, which is not run" in said
        assert all(name in said for name in ARCHITECTURES)
        assert "model_type: package.module:Class (docs/models.md)" in said
    assert not found.trace.exists()


def test_a_tokenizer_that_is_code_alone_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    found = Folder("internlm-7b", tmp_path, tokenizer)
    (found.path / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"expected tokenizer\.json.*its class \(auto_map\) is code of its own"):
        load_tokenizer(found.path)
    assert not found.trace.exists()


def test_a_model_type_of_a_module_beside_a_checkpoint(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkpoint of Evo names a type by its import path; the path leads to the checkpoint where one stands in it."""
    write_weights(open_weights(folder.path), folder.root / "evo", "evo")
    config = folder.root / "evo" / "config.yaml"
    (folder.root / "evo" / "package").mkdir()
    trap(folder.root / "evo" / "package", folder.trace, "inside")
    trap(folder.root / "evo", folder.trace, "beside_weights")
    monkeypatch.chdir(folder.root / "evo")
    monkeypatch.syspath_prepend(".")
    for name in ("beside_weights:Model", "package.inside:Model"):
        config.write_text(config.read_text().replace(folder.model.cfg.model_type, name))
        with pytest.raises(ConfigError, match=f"model_type: {name} is code that came with the weights"):
            load_saved_config(Path("config.yaml"))
        config.write_text(config.read_text().replace(name, folder.model.cfg.model_type))


def test_a_model_type_of_ones_own_beside_the_folder_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from pydantic import BaseModel\nclass Model:\n    class Config(BaseModel):\n        vocab_size: int\n"
    (tmp_path / "my_own_model.py").write_text(source)
    (tmp_path / "ckpt").mkdir()
    text = "model_type: my_own_model:Model\nmodel: {vocab_size: 5}\n"
    (tmp_path / "ckpt" / "config.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_saved_config(tmp_path / "ckpt" / "config.yaml").model.vocab_size == 5


def test_the_script_of_a_data_set_does_not_run(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "stories").mkdir()
    trap(tmp_path / "stories", tmp_path / "trace", "stories")
    with pytest.raises(DataError, match="the data set cannot be read"):
        next(iter(open_stream(str(tmp_path / "stories"))))
    (tmp_path / "stories" / "train.jsonl").write_text('{"text": "the cat"}\n')
    shutil.rmtree(tmp_path / "stories" / "__pycache__", ignore_errors=True)
    try:
        rows = list(open_stream(str(tmp_path / "stories")))
    except DataError:
        rows = []  # a version that refuses whatever has a script
    assert rows in ([], [{"text": "the cat"}])
    assert not (tmp_path / "trace").exists()
