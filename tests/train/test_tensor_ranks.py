"""A run over tensor ranks, from outside: its curve is that of one process, told once, and its stream goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import TrainConfig
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run


def parallel(size: int, mode: str) -> dict[str, Any]:
    return {"zero1": {"size": -1}, "tensor": {"size": size, "mode": mode}}


def files_read(cfg: TrainConfig, folder: Path) -> set[str]:
    """Train in this process; the folders of the token files that it opened, as Python's audit events tell."""
    opened: list[Path] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            opened.append(Path(str(arguments[0])))

    sys.addaudithook(note)
    run(cfg, folder)
    return {path.parents[1].name for path in opened if path.suffix in (".bin", ".meta")}


@pytest.mark.parametrize(("ranks", "size", "mode"), [(2, 2, "mtp"), (4, 2, "msp"), (4, 4, "fsp")])
def test_the_curve_of_one_process(tmp_path: Path, ranks: int, size: int, mode: str) -> None:
    settings: dict[str, Any] = {"data__valid_every": 4, "ckpt__enable_save_ckpt": False, "data__micro_bsz": 2}
    run(job(tmp_path, **settings), tmp_path / "one")
    cfg = job(tmp_path, parallel=parallel(size, mode), **settings)
    read = run_on_ranks(files_read, ranks, cfg, tmp_path / "many")
    assert read == [{"data", "valid"} if rank % size == 0 else set() for rank in range(ranks)]
    one, many = curve(tmp_path / "one"), curve(tmp_path / "many")
    assert len(many) == len(one) == 8
    for expected, found in zip(one, many, strict=True):
        for key, value in expected.items():
            if key == "step" or key.split("/")[0] in ("loss", "acc", "tokens", "perplexity", "grad_norm", "lr", "val"):
                assert found[key] == pytest.approx(value, rel=1e-9), key
    assert [len([key for key in record if key.startswith("val/")]) for record in many] == [0, 0, 0, 9, 0, 0, 0, 9]
    said = (tmp_path / "many" / "train.log").read_text()
    names, *rows = [line.split() for line in said.partition("ranks:\n")[2].splitlines()[: ranks + 1]]
    assert names[:5] == ["rank", "dp", "zero", "tp", "local"]
    expected_rows = [[n, n // size, n // size, n % size, n] for n in range(ranks)]
    assert [[int(number) for number in row[:5]] for row in rows] == expected_rows
    assert said.count("evaluation after step=") == 2
