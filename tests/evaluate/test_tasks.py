"""Tasks through lm-eval: choices scored by hand from logits, over ranks, as a command, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evo_core.checkpoint import load_model
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import UserError
from evo_core.evaluate.command import main
from tests.evaluate.conftest import TASKS
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

pytest.importorskip("lm_eval", reason='needs lm-eval (pip install "evo-lm[eval]")')

from lm_eval.api.instance import Instance

from evo_core.evaluate.harness.model import HarnessModel
from evo_core.evaluate.harness.run import run_tasks


def _adapter(checkpoints: Path, **options: Any) -> HarnessModel:
    model, tokenizer = load_model(checkpoints)
    assert tokenizer is not None
    return HarnessModel(model, tokenizer, **{"max_length": 64, "pack_tokens": 128} | options)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / name).read_text().splitlines()]


@torch.no_grad()
def _log_probability(model: nn.Module, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, bool]:
    """log p of a text after another, a token at a time; what belongs to which is where the context alone ends."""
    assert tokenizer.bos_id is not None
    before = [tokenizer.bos_id, *tokenizer.encode(context)]
    whole = [tokenizer.bos_id, *tokenizer.encode(context + continuation)]
    total, greedy = 0.0, True
    for place in range(len(before), len(whole)):
        seen = torch.tensor(whole[:place])
        cu_seqlens = torch.tensor([0, place], dtype=torch.int32)
        logits = model(seen, torch.arange(place), cu_seqlens).logits[-1]
        total += float(torch.log_softmax(logits, -1)[whole[place]])
        greedy &= int(logits.argmax()) == whole[place]
    return total, greedy


def _stderr(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def test_every_task_by_hand(checkpoints: Path) -> None:
    model, tokenizer = load_model(checkpoints)
    assert tokenizer is not None
    found = run_tasks(_adapter(checkpoints), TASKS)
    assert set(found["tasks"]) == {"capitals_en", "chengyu_cn", "last_word"}

    acc, acc_norm = [], []
    for row in _rows("capitals_en.jsonl"):
        context = f"The capital of {row['country']} is"
        scores = [_log_probability(model, tokenizer, context, f" {choice}")[0] for choice in row["choices"]]
        acc.append(float(max(range(4), key=scores.__getitem__) == row["answer"]))
        by_length = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        acc_norm.append(float(max(range(4), key=by_length.__getitem__) == row["answer"]))
    task = found["tasks"]["capitals_en"]
    assert task["values"] == {"acc": acc, "acc_norm": acc_norm}
    assert task["metrics"]["acc"] == {
        "value": pytest.approx(statistics.mean(acc)),
        "stderr": pytest.approx(_stderr(acc)),
        "higher_is_better": True,
    }
    assert (task["documents"], task["shots"], task["version"]) == (7, 0, 1.0)

    shown = _rows("chengyu_cn_shots.jsonl")[0]
    solved = f"成语填空：{shown['begin']}{shown['choices'][shown['answer']]}\n\n"
    chengyu = []
    for row in _rows("chengyu_cn.jsonl"):
        context = f"{solved}成语填空：{row['begin']}"
        scores = [_log_probability(model, tokenizer, context, choice)[0] for choice in row["choices"]]
        chengyu.append(float(max(range(4), key=scores.__getitem__) == row["answer"]))
    assert found["tasks"]["chengyu_cn"]["values"]["acc"] == chengyu
    assert found["tasks"]["chengyu_cn"]["shots"] == 1

    likely, right = [], []
    for row in _rows("last_word.jsonl"):
        context, _, word = row["text"].rpartition(" ")
        log_probability, greedy = _log_probability(model, tokenizer, context, f" {word}")
        likely.append(log_probability)
        right.append(float(greedy))
    cloze = found["tasks"]["last_word"]
    assert cloze["values"]["acc"] == right
    assert cloze["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(-statistics.mean(likely)), rel=1e-9)
    assert cloze["metrics"]["perplexity"]["higher_is_better"] is False

    together = found["groups"]["knowledge"]["metrics"]["acc"]["value"]
    assert together == pytest.approx(statistics.mean(acc + chengyu))


def test_two_ranks_as_one(checkpoints: Path) -> None:
    def part() -> Any:
        return run_tasks(_adapter(checkpoints, mesh=mesh_of(1)), TASKS)

    one = run_on_ranks(part, 1)[0]
    first, second = run_on_ranks(part, 2)
    assert first == one
    assert second["tasks"]["capitals_en"] == one["tasks"]["capitals_en"]


def test_whole_texts_in_windows(checkpoints: Path) -> None:
    model, tokenizer = load_model(checkpoints)
    assert tokenizer is not None and tokenizer.bos_id is not None
    text = " ".join(row["text"] for row in _rows("last_word.jsonl"))
    short = "Rome is"
    requests = [Instance("loglikelihood_rolling", {}, (one,), 0) for one in (text, short)]
    found = _adapter(checkpoints, max_length=16).loglikelihood_rolling(requests)
    for given, value in zip((text, short), found, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(given)]
        expected = 0.0
        for start in range(1, len(ids), 16):
            stop = min(start + 16, len(ids))  # the last window reads as much before it as there is room for
            seen = torch.tensor(ids[max(stop - 17, 0) : stop])
            n = len(seen) - 1
            with torch.no_grad():
                logits = model(seen[:-1], torch.arange(n), torch.tensor([0, n], dtype=torch.int32)).logits
            rows = torch.log_softmax(logits, -1)[torch.arange(n), seen[1:]]
            expected += float(rows[-(stop - start) :].sum())
        assert value == pytest.approx(expected, rel=1e-10)


def test_generation_until_a_text(checkpoints: Path) -> None:
    from evo_core.generate import generate

    model, tokenizer = load_model(checkpoints)
    prompts = ["The capital of France is", "成语填空：", "Two and two"]
    whole = [one.text for one in generate(model, tokenizer, prompts, max_new_tokens=12, do_sample=False)]
    stop = whole[0][3:5]
    assert stop
    asked = [
        {"until": [stop, "never written"], "max_gen_toks": 12},
        {"max_gen_toks": 12},
        {"until": "", "max_gen_toks": 12},
    ]
    requests = [Instance("generate_until", {}, pair, 0) for pair in zip(prompts, asked, strict=True)]

    def part() -> Any:
        return _adapter(checkpoints, mesh=mesh_of(1)).generate_until(requests)

    expected = [whole[0].split(stop)[0], *whole[1:]]
    assert run_on_ranks(part, 1)[0] == expected
    assert run_on_ranks(part, 2) == [expected] * 2


def test_the_command_and_a_comparison(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for step, file in enumerate(files, 1):
        main(
            ["--model", str(checkpoints / str(step)), "--tasks", str(TASKS / "capitals_en.yaml"), "--output", str(file)]
        )
    a, b = (json.loads(file.read_text()) for file in files)
    assert (a["step"], b["step"], list(a["tasks"])) == (1, 2, ["capitals_en"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["task", "documents", "shots", "metric", "value", "stderr"]
    assert printed[1].split()[:4] == ["capitals_en", "7", "0", "acc"]

    main(["--compare", *map(str, files), "--output", str(tmp_path / "both.json")])
    rows = {row["metric"]: row for row in json.loads((tmp_path / "both.json").read_text())["rows"]}
    differences = [
        y - x for x, y in zip(*(r["tasks"]["capitals_en"]["values"]["acc_norm"] for r in (a, b)), strict=True)
    ]
    assert any(differences)
    assert rows["acc_norm"]["paired"] and rows["acc_norm"]["same"]
    assert rows["acc_norm"]["difference"] == pytest.approx(statistics.mean(differences))
    assert rows["acc_norm"]["stderr"] == pytest.approx(_stderr(differences))
    assert f"{statistics.mean(differences):+.4f} ± {_stderr(differences):.4f}" in capsys.readouterr().out


def _changed(tmp_path: Path, name: str, old: str, new: str) -> Path:
    folder = tmp_path / "changed"
    shutil.copytree(TASKS, folder)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("capitals_en.yaml", "dataset_path: json", "dataset_path: org/name", "local files only"),
        ("capitals_en.yaml", "test: capitals_en.jsonl", "test: gone.jsonl", "gone.jsonl: cannot be read"),
        ("capitals_en.jsonl", '"France", ', '"France" ', "capitals_en.jsonl:1: not JSON"),
        ("capitals_en.yaml", "metric: acc_norm", "metric: acc_norn", "unknown metric 'acc_norn'.*acc_norm"),
        ("capitals_en.yaml", "output_type: multiple_choice", "output_type: choice", "capitals_en.yaml.*choice"),
        ("knowledge.yaml", "capitals_en, ", "capital_en, ", "capital_en.*capitals_en"),
        ("last_word.yaml", "task: last_word", "task: capitals_en", "the task capitals_en is in"),
    ],
)
def test_users_mistakes(checkpoints: Path, tmp_path: Path, name: str, old: str, new: str, complaint: str) -> None:
    from evo_core.evaluate.harness.task_files import load_tasks

    with pytest.raises(UserError, match=complaint):
        load_tasks(_changed(tmp_path, name, old, new))


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    from evo_core.evaluate.harness.task_files import load_tasks

    with pytest.raises(UserError, match="no such task file"):
        load_tasks(tmp_path / "gone")
    with pytest.raises(UserError, match="no task in this folder"):
        load_tasks(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--model: is missing"),
        (["--model", "m"], "nothing to evaluate on"),
        (["--model", "m", "--tasks", "t", "--baselines", "b"], "--baselines: are measured on --data"),
        (["--compare", "a", "b", "--model", "m"], "leave out --model"),
        (["--compare", "a.json", "b.json"], "a.json: cannot be read"),
    ],
)
def test_command_lines_that_ask_for_nothing(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2
    assert complaint in capsys.readouterr().err
