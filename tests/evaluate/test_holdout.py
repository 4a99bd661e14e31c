"""Held-out scores: against sums by hand, over ranks, and as a command with a file and a table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.checkpoint import load_model
from evo_core.data import BinReader
from evo_core.errors import DataError
from evo_core.evaluate.command import main
from evo_core.evaluate.holdout import holdout
from evo_core.evaluate.results import table
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks
from tests.train.jobs import TYPES, job, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, valid and ckpt of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    run(job(folder, data__total_steps=10), folder / "run")
    return folder


def by_hand(folder: Path) -> dict[str, Any]:
    """One document at a time, every token but the first, from logits."""
    model, _ = load_model(folder / "ckpt")
    result = {}
    for name in TYPES:
        reader = BinReader(folder / "valid" / name / "train_000.bin")
        nll = hits = tokens = 0.0
        for i in range(len(reader)):
            ids = torch.as_tensor(reader.tokens(i).astype("int64"))
            for start in range(0, len(ids) - 1, 32):  # windows of seq_len
                window = ids[start : start + 33]
                n = len(window) - 1
                with torch.no_grad():
                    logits = model(window[:-1], torch.arange(n), torch.tensor([0, n], dtype=torch.int32)).logits
                logp = torch.log_softmax(logits.double(), -1)
                nll -= float(logp[torch.arange(n), window[1:]].sum())
                hits += float((logits.argmax(-1) == window[1:]).sum())
                tokens += n
        result[name] = {
            "loss": nll / tokens,
            "perplexity": math.exp(nll / tokens),
            "acc": hits / tokens,
            "tokens": tokens,
        }
    return result


@pytest.mark.parametrize("micro_bsz", [1, 3])
def test_every_token_but_the_first_once(trained: Path, micro_bsz: int) -> None:
    model, _ = load_model(trained / "ckpt")
    model.train()
    scores = holdout(model, trained / "valid", seq_len=32, micro_bsz=micro_bsz)
    assert model.training
    expected = by_hand(trained)
    assert list(scores) == list(TYPES)
    for name, score in scores.items():
        assert {key: score[key] for key in expected[name]} == pytest.approx(expected[name], rel=1e-10)


def test_ranks_share_the_work(trained: Path) -> None:
    def part() -> Any:
        model, _ = load_model(trained / "ckpt")
        return holdout(model, trained / "valid", seq_len=32, mesh=mesh_of(1))

    one = run_on_ranks(part, 1)[0]
    for many in run_on_ranks(part, 3):
        for name in TYPES:
            for part_of_it in ("nll", "hits", "targets"):
                assert many[name]["blocks"][part_of_it] == pytest.approx(one[name]["blocks"][part_of_it], rel=1e-12)
            plain = [key for key in one[name] if key != "blocks"]
            assert [many[name][key] for key in plain] == pytest.approx([one[name][key] for key in plain], rel=1e-12)


def scores_in_groups(folder: Path) -> tuple[dict[str, Any], list[int]]:
    """The scores that a rank of a group of two gets, and the length of each of its passes through the model.

    Only the first of a group finds data, and only its model is the trained one: a second one reads and counts nothing.
    """
    mesh = mesh_of(1, tensor={"size": 2})
    model, _ = load_model(folder / "ckpt")
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0])))
    if mesh.tensor.rank == 1:
        torch.nn.init.zeros_(next(model.parameters()))
    valid = folder / "valid" if mesh.tensor.rank == 0 else Path("/nowhere")
    return holdout(model, valid, seq_len=32, micro_bsz=2, mesh=mesh), lengths


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_a_tensor_group_go_through_the_same_batches(trained: Path, ranks: int) -> None:
    model, _ = load_model(trained / "ckpt")
    alone = holdout(model, trained / "valid", seq_len=32, micro_bsz=2)
    results = run_on_ranks(scores_in_groups, ranks, trained)
    for scores, lengths in results:
        assert scores == results[0][0]
        assert lengths == [64] * len(results[0][1])  # as in training, so it divides where that does
        if ranks == 2:
            assert scores == alone
        for name in TYPES:
            for key in ("loss", "acc", "tokens"):
                assert scores[name][key] == pytest.approx(alone[name][key], rel=1e-12)


def test_an_error_is_raised_on_all_of_a_tensor_group(trained: Path) -> None:
    def part() -> str:
        mesh = mesh_of(1, tensor={"size": 2})
        model, _ = load_model(trained / "ckpt")
        try:
            holdout(model, trained / "valid", seq_len=32, mesh=mesh, vocab_size=20)
        except DataError as error:
            return str(error)
        return "no error"

    said = run_on_ranks(part, 2)
    assert said[0] == said[1]
    assert "train_000.bin:" in said[0]


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "scores.json"
    arguments = ["--model", str(trained / "ckpt"), "--data", str(trained / "valid"), "--output", str(output)]
    main([*arguments, "--baselines", str(trained / "data")])
    scores = json.loads(output.read_text())
    expected = by_hand(trained)
    for name in TYPES:
        found = {key: scores["model"][name][key] for key in expected[name]}
        assert found == pytest.approx(expected[name], rel=1e-10)
        assert scores["baselines"]["unigram"][name]["tokens"] == expected[name]["tokens"]
        assert scores["baselines"]["bigram"][name]["loss"] < scores["baselines"]["unigram"][name]["loss"]
    assert scores["step"] == 10
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["type", "tokens", "loss", "perplexity", "acc", "unigram", "loss", "bigram", "loss"]
    assert [line.split()[0] for line in printed[1:]] == list(TYPES)


def test_the_table_without_baselines() -> None:
    score = {"loss": 1.0, "perplexity": math.e, "acc": 0.25, "tokens": 1234}
    assert table({"model": {"en": score}, "baselines": {}}).splitlines()[1].split() == [
        "en",
        "1,234",
        "1.0000",
        "2.72",
        "0.2500",
    ]


@pytest.mark.parametrize("missing", ["model", "data"])
def test_users_mistakes(trained: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"model": str(trained / "ckpt"), "data": str(trained / "valid"), missing: str(tmp_path / "nowhere")}
    with pytest.raises(SystemExit) as exit_status:
        main(["--model", places["model"], "--data", places["data"], "--output", str(tmp_path / "out.json")])
    assert exit_status.value.code == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
