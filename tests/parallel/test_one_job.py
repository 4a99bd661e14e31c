"""Ranks that were given different jobs all say so, in the same words, before any work."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.config import load_config
from evo_core.errors import ConfigError
from evo_core.parallel.one_job import check_one_job, options_of, settings_of
from tests.ranks import run_on_ranks
from tests.train.jobs import write_job

HINT = " (start every rank with the same file and the same options)"
RANKS = 4


def told(*said: Callable[[int], Any]) -> list[str | None]:
    """What every rank is told of each of these, of which a rank says what it was given; None where nothing is amiss."""

    def outcome(said: Callable[[int], Any]) -> str | None:
        try:
            check_one_job(said(dist.get_rank()))
        except ConfigError as error:
            return str(error)
        return None

    everyone = run_on_ranks(lambda: [outcome(one) for one in said], RANKS)
    assert all(one == everyone[0] for one in everyone)
    return everyone[0]


def test_the_first_setting_that_differs_is_named_with_its_values_and_ranks(tmp_path: Path) -> None:
    path = write_job(tmp_path)

    def settings(*overrides: str) -> Any:
        return settings_of(load_config(path, overrides))

    other = ["adam.lr=0.02", "loss.label_smoothing=0.1", "parallel.tensor.size=2"]
    one_job, two, many, family, options, no_options = told(
        lambda rank: settings(),
        lambda rank: settings(*(other if rank > 1 else [])),
        lambda rank: settings(f"seed={rank}"),
        lambda rank: settings(*(["model_type=LLAMA2"] if rank == 2 else [])),
        lambda rank: options_of(data=tmp_path, max_length=rank or None),
        lambda rank: options_of(data=tmp_path, max_length=None),
    )
    assert one_job is None
    assert two == (
        f"loss.label_smoothing: is 0 on ranks 0-1, 0.1 on ranks 2-3; adam.lr, parallel.tensor.size differ too{HINT}"
    )
    assert many == f"seed: is 0 on rank 0, 1 on rank 1, 2 on rank 2, ...{HINT}"
    assert family == (
        f'model_type: is "INTERNLM2_PUBLIC" on ranks 0-1, 3, "LLAMA2" on rank 2; model.qk_interleaved differs too{HINT}'
    )
    assert options == f"--max-length: is null on rank 0, 1 on rank 1, 2 on rank 2, ...{HINT}"
    assert no_options is None


def test_what_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values are told by nobody. Where data lies it may say otherwise on every node."""
    monkeypatch.setenv("HERE", "0.01")
    secret = write_job(tmp_path, adam={"lr": "${oc.env:HERE}"}).rename(tmp_path / "secret.yaml")
    scratch = write_job(tmp_path, data__train_folder="${oc.env:HERE}/train", data__tokenizer_path="${oc.env:HERE}/t")

    def settings(path: Path, rank: int, *overrides: str) -> Any:
        os.environ["HERE"] = f"0.0{rank + 1}"
        return settings_of(load_config(path, overrides))

    rate, place, written = told(
        lambda rank: settings(secret, min(rank, 1)),
        lambda rank: settings(scratch, rank),
        lambda rank: settings(scratch, rank, f"data.train_folder=/{rank % 2}"),
    )
    assert rate == f"adam.lr: ${{oc.env:HERE}} stands for 2 values: one on rank 0, another on ranks 1-3{HINT}"
    assert place is None
    assert written == f'data.train_folder: is "/0" on ranks 0, 2, "/1" on ranks 1, 3{HINT}'


def ends(main: Callable[[list[str]], None], words: list[str]) -> str:
    """What a command says that ends with a mistake of the user's."""
    with redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return output.getvalue()


def test_commands_end_on_every_rank_before_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each rank would find a mistake of its own: a layout that does not fit, a model that is not there."""
    from evo_core.evaluate import command as evaluate
    from evo_core.generate import command as generate
    from evo_core.train import command as train

    monkeypatch.chdir(tmp_path)
    job = ["--config", str(write_job(tmp_path))]

    def work() -> list[str]:
        rank = dist.get_rank()
        tensor = ["--set", f"parallel.tensor.size={rank + 1}"]
        samples = ["--set", f"generation.output_folder=local:{tmp_path / 'samples'}"]
        return [
            ends(train.main, [*job, "--set", "parallel.tensor.size=4"]),
            ends(train.main, [*job, "--set", "parallel.tensor.size=3"]),
            ends(train.main, [*job, *tensor, "--folder", str(tmp_path / "run")]),
            ends(generate.main, [*job, *samples, "--seed", str(rank)]),
            ends(evaluate.main, ["--model", str(tmp_path / str(rank)), "--data", str(tmp_path)]),
        ]

    first, second = run_on_ranks(work, 2)
    assert first == second
    too_many, unfit, trained, generated, evaluated = first
    assert too_many == (
        "evo_core.train: error: parallel.tensor.size: 2 ranks do not divide into pipeline.size 1 x tensor.size 4 "
        "(nearest: tensor.size 2, or 4 ranks)\n"
    )
    assert unfit.startswith("evo_core.train: error: ")
    assert "parallel.tensor.size: 3 ranks cannot share vocab_size 64, num_attention_heads 4, " in unfit
    assert trained == f"evo_core.train: error: parallel.tensor.size: is 1 on rank 0, 2 on rank 1{HINT}\n"
    assert generated == f"evo_core.generate: error: seed: is 0 on rank 0, 1 on rank 1{HINT}\n"
    assert evaluated.startswith("evo_core.evaluate: error: --model: is ")
    assert not {path.name for path in tmp_path.iterdir()} & {"run", "RUN", "ckpt", "samples"}
