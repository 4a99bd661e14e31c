"""Checkpoints that somebody made to do harm: nothing in them runs, and nothing outside of their folder is read."""

from __future__ import annotations

import builtins
import copyreg
import functools
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.checkpoint import TrainState, load, load_model, save
from evo_core.checkpoint.records import file_record
from evo_core.checkpoint.stored import read_metadata
from evo_core.checkpoint.tensors import read_tensors, stored_shapes, write_tensors
from evo_core.config import load_config
from evo_core.convert.command import main as convert
from evo_core.errors import CheckpointError
from evo_core.model import build_model
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.weights import open_weights
from evo_core.weights.pickles import read_settings
from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks
from tests.weights.models import model

JOB = """
model_type: INTERNLM2_PUBLIC
model: {num_layers: 1, hidden_size: 16, num_attention_heads: 2, num_kv_attention_heads: 1, vocab_size: 32,
        dtype: torch.float32}
"""


def optimizer_of(made: Any) -> Zero1AdamW:
    return zero1_adamw(made, mesh_of(1), bucket_size=1000)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    (root / "job.yaml").write_text(JOB)

    def write() -> None:
        cfg = load_config(root / "job.yaml")
        made = build_model(cfg.model)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
        save(root / "ckpt", cfg, made, optimizer_of(made).state(), TrainState(step=1))

    run_on_ranks(write, 1)
    return root / "ckpt" / "1"


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def replace_file(checkpoint: Path, name: str, content: bytes) -> None:
    """Put another content into a file, and its digest into the manifest, as whoever hands out a checkpoint can."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    record = file_record(checkpoint / name)
    manifest["files"][name] = {"size": record.size, "digest": record.digest}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


class Call:
    """Unpickled as it is meant to be, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def opens(mark: Path) -> dict[str, Any]:
    """Payloads that make a file when they are unpickled."""
    text = f"open({str(mark)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Call(open, str(mark), "w"), inner)
    return {
        "open": Call(open, str(mark), "w"),
        "eval": Call(builtins.eval, text),
        "system": Call(os.system, f"touch {mark}"),
        "getattr": Call(getattr, "text", "encode"),
        "partial": Call(functools.partial(open, str(mark), "w")),
        "from bytes": Call(torch.storage._load_from_bytes, inner.getvalue()),  # type: ignore[attr-defined]
        "copyreg": Call(copyreg._reconstructor, Call(open, str(mark), "w"), object, None),  # type: ignore[attr-defined]
    }


def test_a_good_one_is_read(checkpoint: Path) -> None:
    assert stored_shapes(checkpoint / "model")["tok_embeddings.weight"] == (32, 16)
    load_model(checkpoint)


NAMES = ["open", "eval", "system", "getattr", "partial", "from bytes", "copyreg"]


@pytest.mark.parametrize("payload", NAMES)
def test_no_code_of_the_metadata_runs(checkpoint: Path, tmp_path: Path, payload: str) -> None:
    mark = tmp_path / "EXECUTED"
    replace_file(checkpoint, "model/.metadata", pickle.dumps(opens(mark)[payload]))
    for read in (
        load_model,
        lambda folder: open_weights(folder).tensors,
        lambda folder: stored_shapes(folder / "model"),
    ):
        with pytest.raises(CheckpointError, match=r"model/.metadata: .*was not run"):
            read(checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["storage_meta", "planner_data", "state_dict_metadata", "storage_data", "version"])
def test_nor_code_in_metadata_that_are_otherwise_sound(checkpoint: Path, tmp_path: Path, place: str) -> None:
    mark, file = tmp_path / "EXECUTED", checkpoint / "model" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    setattr(metadata, place, Call(open, str(mark), "w"))
    replace_file(checkpoint, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="was not run"):
        load_model(checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "Metadata.__init__.__globals__", "os"])
def test_nor_is_anything_reached_through_the_classes_that_are_known(tmp_path: Path, name: str) -> None:
    protocol_4 = b"\x80\x04\x8c\x29torch.distributed.checkpoint.metadata" + b"\x8c" + bytes([len(name)]) + name.encode()
    (tmp_path / ".metadata").write_bytes(protocol_4.replace(b"\x29", b"\x25", 1) + b"\x93.")
    with pytest.raises(CheckpointError, match=f"names torch.distributed.checkpoint.metadata.{name}"):
        read_metadata(tmp_path)


def test_a_class_that_is_known_cannot_be_changed(checkpoint: Path) -> None:
    """BUILD sets attributes on what lies on the stack, a class too."""
    setting = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N(dVstate\nI1\nstb."
    (checkpoint / "model" / ".metadata").write_bytes(setting)
    with pytest.raises(CheckpointError, match="no tensors can be read"):
        read_metadata(checkpoint / "model")
    assert stored_shapes(checkpoint / "optimizer")  # still reads others


def test_the_optimizer_s_is_read_as_carefully(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "EXECUTED"
    replace_file(checkpoint, "optimizer/.metadata", pickle.dumps(Call(open, str(mark), "w")))

    def resume() -> str:
        made = build_model(load_config(checkpoint / "config.yaml").model)
        with pytest.raises(CheckpointError) as caught:
            load(checkpoint, made, optimizer_of(made))
        return str(caught.value)

    assert "optimizer/.metadata" in run_on_ranks(resume, 1)[0]
    assert not mark.exists()


def test_a_tensor_that_is_said_to_be_bytes_is_not_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    """torch reads entries of that kind with weights_only=False."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    mark, file = tmp_path / "EXECUTED", checkpoint / "model" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    name = next(iter(metadata.state_dict_metadata))
    payload = io.BytesIO()
    torch.save(Call(open, str(mark), "w"), payload)
    (data,) = (checkpoint / "model").glob("*.distcp")
    place = next(value for index, value in metadata.storage_data.items() if index.fqn == name)
    place.offset, place.length = data.stat().st_size, len(payload.getvalue())
    metadata.state_dict_metadata[name] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex(name)] = place
    replace_file(checkpoint, f"model/{data.name}", data.read_bytes() + payload.getvalue())
    replace_file(checkpoint, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=name):
        load_model(checkpoint)
    assert not mark.exists()


def test_nor_is_a_tensor_s_own_pickle(checkpoint: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "EXECUTED", checkpoint / "model" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    payload = io.BytesIO()
    torch.save([Call(open, str(mark), "w"), torch.zeros(5000)], payload)  # as long as any tensor that it stands for
    (data,) = (checkpoint / "model").glob("*.distcp")
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, len(payload.getvalue())
    replace_file(checkpoint, f"model/{data.name}", payload.getvalue())
    replace_file(checkpoint, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load_model(checkpoint)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["../elsewhere.distcp", "/etc/passwd", "a/../../elsewhere", "", 7, None, "a\0b"])
def test_tensors_in_other_folders_are_refused(checkpoint: Path, place: Any) -> None:
    file = checkpoint / "model" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    for stored in metadata.storage_data.values():
        stored.relative_path = place
    replace_file(checkpoint, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"outside of it|not the name of a file"):
        load_model(checkpoint)


def _no_chunks(entry: Any) -> None:
    entry.chunks = []


def _beyond(entry: Any) -> None:
    entry.chunks[0].offsets = torch.Size([1, 0])


def _no_type(entry: Any) -> None:
    entry.properties = None


def _no_size(entry: Any) -> None:
    entry.size = ["a"]


@pytest.mark.parametrize("change", [_no_chunks, _beyond, _no_type, _no_size])
def test_metadata_that_contradict_themselves_are_refused(checkpoint: Path, change: Callable[[Any], None]) -> None:
    file = checkpoint / "model" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata.state_dict_metadata["tok_embeddings.weight"])
    replace_file(checkpoint, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"model/.metadata: no tensors can be read here"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", b"\x80\x04N.", b"\x80\x04]\x94.", b"\x80\x05\x96" + b"\xff" * 8]
)
def test_what_is_no_metadata_is_refused_in_a_line(checkpoint: Path, content: bytes) -> None:
    replace_file(checkpoint, "model/.metadata", content)
    with pytest.raises(CheckpointError, match=r"model/.metadata: no tensors can be read here"):
        load_model(checkpoint)


def test_the_command_says_it_in_a_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "EXECUTED"
    replace_file(checkpoint, "model/.metadata", pickle.dumps(Call(open, str(mark), "w")))
    with pytest.raises(SystemExit) as ended:
        convert([str(checkpoint), str(tmp_path / "out")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "it may be code, and was not run" in said
    assert "Traceback" not in said
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["../outside", "/tmp", 7, ["tokenizer"], "a\0b"])
def test_a_tokenizer_elsewhere_is_not_read(checkpoint: Path, place: Any) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": place}))
    for read in (load_model, open_weights):
        with pytest.raises(CheckpointError, match=r"manifest.json"):
            read(checkpoint)


@pytest.mark.parametrize("payload", NAMES)
def test_no_code_of_other_pickles_runs(tmp_path: Path, payload: str) -> None:
    """model_config.pt of InternEvo, pytorch_model.bin and InternEvo's own weights."""
    mark, source = tmp_path / "EXECUTED", opens(tmp_path / "EXECUTED")[payload]
    torch.save({"num_layers": source}, tmp_path / "model_config.pt")
    with pytest.raises(CheckpointError, match="cannot be read as plain settings"):
        read_settings(tmp_path / "model_config.pt")
    made = model("INTERNLM")
    torch.save({**made.state_dict(), "norm.weight": source}, tmp_path / "model_tp0_pp0.pt")
    with pytest.raises(CheckpointError):
        open_weights(tmp_path, model=made.cfg)
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    torch.save({"lm_head.weight": source}, hf / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        open_weights(hf)
    assert not mark.exists()


def test_a_partly_written_tensor_is_said_in_a_line(tmp_path: Path) -> None:
    run_on_ranks(lambda: write_tensors(tmp_path, {"a": torch.arange(1000.0)}), 1)
    (data,) = tmp_path.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"\.distcp: is too short for its part of a") as caught:
        read_tensors(tmp_path, {"a": torch.zeros(1000)})
    assert "\n" not in str(caught.value)
