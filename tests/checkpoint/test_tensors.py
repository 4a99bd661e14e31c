"""Optimizer state written at one layout and read at another; corruption; strictness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evo_core.checkpoint.allowed import Allow, Difference
from evo_core.checkpoint.manifest import Manifest, read_manifest, write_manifest
from evo_core.checkpoint.records import FileRecord, file_record
from evo_core.checkpoint.soundness import damage, unchecked
from evo_core.checkpoint.tensors import (
    model_tensors,
    read_model,
    read_tensors,
    stored_shapes,
    unread,
    write_tensors,
)
from evo_core.errors import CheckpointError
from evo_core.optim.zero1 import Zero1AdamW
from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks


def net(seed: int) -> nn.Module:
    """Sizes that do not divide, and a parameter with fewer elements than ranks."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).bfloat16()


def state(zero1: int, seed: int) -> tuple[nn.Module, Zero1AdamW]:
    """An optimizer whose every element is known: n-th element of a parameter's moment is n."""
    model = net(seed)
    optimizer = zero1_adamw(model, mesh_of(zero1), bucket_size=12)
    for offset, flat in enumerate((optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.master)):
        start = 0
        for bucket in optimizer.buckets:
            for slot in bucket.slots:
                owned = slot.owned(optimizer.groups[0].zero.rank)
                first = optimizer.groups[0].zero.rank * slot.width
                at = start + slot.start
                flat[at : at + owned] = torch.arange(first, first + owned) + 1000 * offset + seed
            start += bucket.width
    return model, optimizer


def write(folder: Path, zero1: int) -> None:
    write_tensors(folder, state(zero1, 0)[1].state())


def differences(folder: Path, zero1: int) -> list[float]:
    """Read into an optimizer that holds other numbers; distance from what should be there."""
    _, optimizer = state(zero1, 7)
    read_tensors(folder, optimizer.state())
    _, expected = state(zero1, 0)
    pairs = zip(optimizer.state().values(), expected.state().values(), strict=True)
    return [float((a.local - b.local).abs().sum()) for a, b in pairs]


SHORT, LONG = [(1, 1), (2, 2), (4, 2)], [(4, 4), (4, 1)]
LAYOUTS = SHORT + LONG


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ranks", "zero1"), [*SHORT, *(pytest.param(*each, marks=pytest.mark.slow) for each in LONG)], ids=str
)
def test_state_moves_between_layouts(tmp_path: Path, ranks: int, zero1: int) -> None:
    run_on_ranks(write, ranks, tmp_path, zero1)
    for other_ranks, other_zero1 in LAYOUTS:
        for result in run_on_ranks(differences, other_ranks, tmp_path, other_zero1):
            assert result == [0.0] * 12


def test_what_is_stored_where(tmp_path: Path) -> None:
    run_on_ranks(write, 4, tmp_path, 2)
    shapes = stored_shapes(tmp_path)
    assert shapes["exp_avg.0.weight"] == (3, 5)
    assert shapes["master.1.bias"] == (2,)
    assert len(shapes) == 12


class Tied(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def test_one_weight_under_two_names_is_one_in_the_checkpoint_too(tmp_path: Path) -> None:
    def save_and_read() -> None:
        for tied in (True, False):
            folder, model = tmp_path / str(tied), Tied(tied=tied)
            write_tensors(folder, model_tensors(model))
            other = Tied(tied=True)
            if tied:
                read_model(folder, other)
                assert other.head.weight is other.embedding.weight
                assert torch.equal(other.head.weight, model.head.weight)
            else:
                with pytest.raises(CheckpointError, match=r"embedding.weight and head.weight are two weights there"):
                    read_model(folder, other)

    run_on_ranks(save_and_read, 1)


def test_a_second_name_that_is_missing_is_not_a_new_tensor(tmp_path: Path) -> None:
    """Its weight is read by the other; only where both are missing does the weight need to be drawn."""
    stored = Tied(tied=True).embedding.state_dict(prefix="embedding.")
    run_on_ranks(lambda: write_tensors(tmp_path, stored | {"other": torch.ones(2)}), 1)
    allow = Allow(missing=("head.weight",), unexpected=("other",))
    difference = read_model(tmp_path, model := Tied(tied=True), allow)
    assert difference == Difference(("head.weight",), ("other",))
    assert torch.equal(model.head.weight, stored["embedding.weight"])
    assert unread(model, difference.missing) == []
    assert unread(Tied(tied=False), difference.missing) == ["head.weight"]
    assert unread(model, ("embedding.weight", "head.weight")) == ["embedding.weight", "head.weight"]


def test_missing_names_wrong_shapes_and_leftovers_are_refused(tmp_path: Path) -> None:
    run_on_ranks(lambda: write_tensors(tmp_path, net(0).state_dict()), 1)
    read_model(tmp_path, other := net(1))
    assert torch.equal(other[0].weight, net(0)[0].weight)  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"has 0.bias, 0.weight.*which this model does not have"):
        read_model(tmp_path, nn.Sequential(nn.Identity(), nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match=r"1.weight has shape \[2, 3\] there and \[3, 2\] here"):
        read_model(tmp_path, nn.Sequential(nn.Linear(5, 3), nn.Linear(2, 3)))
    with pytest.raises(CheckpointError, match=r"lacks 2.bias, 2.weight"):
        read_model(tmp_path, nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2), nn.Linear(1, 1)))
    with pytest.raises(CheckpointError, match="no tensors can be read"):
        read_model(tmp_path / "nowhere", net(0))


def test_other_types_are_rounded(tmp_path: Path) -> None:
    run_on_ranks(lambda: write_tensors(tmp_path, net(0).state_dict()), 1)
    read_model(tmp_path, wide := net(1).double())
    assert torch.equal(wide[0].weight, net(0)[0].weight.double())  # type: ignore[index]


def test_the_manifest_is_written_once_and_finds_every_damage(tmp_path: Path) -> None:
    for name in ("same", "flipped", "cut", "gone"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 100)
    files = {path.name: file_record(path) for path in tmp_path.iterdir()}
    written = Manifest(step=3, tokens=99, data_digest="d", files=files)
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written
    with pytest.raises(FileExistsError):
        write_manifest(tmp_path, written)
    assert damage(tmp_path, written, files) == []

    content = bytearray((tmp_path / "flipped").read_bytes())
    content[12800] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    (tmp_path / "cut").write_bytes(bytes(10))
    (tmp_path / "gone").unlink()
    assert damage(tmp_path, written, sorted(files)) == [
        "cut has 10 bytes instead of 25600",
        "flipped does not have the digest it was written with",
        "gone is missing",
    ]


NO_WRITER = '{"format": 2, "step": 1, "tokens": 1, "data_digest": "", "files": {}, "written_by": "evo"}'


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 1}', '{"format": 99, "files": {}}', NO_WRITER])
def test_a_damaged_manifest_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: (damaged manifest|written by another version)"):
        read_manifest(tmp_path)


def test_the_file_of_a_rank_with_nothing_to_write_is_whole(tmp_path: Path) -> None:
    own = run_on_ranks(lambda: dict(write_tensors(tmp_path / "model", {"one row": torch.ones(1, 8)})), 2)
    records = {f"model/{name}": record for each in own for name, record in each.items()}
    assert 0 in {record.size for record in records.values()}
    read = {name: FileRecord.parsed(record.plain) for name, record in records.items()}
    manifest = Manifest(1, 1, "", read)
    assert not unchecked(manifest, read)
    assert damage(tmp_path, manifest, read) == []
