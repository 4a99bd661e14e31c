"""The whole way, by the command line: raw text to samples, reuse, reasons, a trace back to the raw files."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from evo_core.config.canonical_json import canonical_json
from tests.endtoend.conftest import HERE, STEPS, Evo

TINY = str(HERE / "tiny.yaml")


def test_it_makes_scores_and_samples_of_each_type(whole: Evo) -> None:
    scores = json.loads((whole.artifact("scores") / "scores.json").read_text())
    assert set(scores["model"]) >= {"cn", "en", "code"}
    for type_, row in scores["model"].items():
        assert row["loss"] > 0
        assert scores["baselines"]["unigram"][type_]["tokens"] == row["tokens"]
    samples = [json.loads(line) for line in (whole.artifact("samples") / "samples.jsonl").read_text().splitlines()]
    assert [sample["type"] for sample in samples] == ["cn", "en", "code"]
    assert all(sample["text"] for sample in samples)


def test_a_second_run_reuses_every_step(whole: Evo) -> None:
    start = time.monotonic()
    printed = whole("run", TINY, "--no-server")
    assert "0 steps made, 7 reused" in printed
    assert time.monotonic() - start < 30  # no torch is imported: about 2 s


def test_a_training_parameter_reruns_training_and_what_follows(whole: Evo) -> None:
    plan = whole.plan(TINY, "--set", "steps.model.params.adam.lr=2e-2")
    assert [name for name in STEPS if plan[name]["action"] == "run"] == ["model", "scores", "samples"]
    assert plan["model"]["why"] == "job.adam.lr: 0.01 -> 0.02"
    printed = whole("why", TINY, "samples", "--set", "steps.model.params.adam.lr=2e-2")
    assert "job.adam.lr: 0.01 -> 0.02" in printed


def test_another_number_of_ranks_gives_the_same_keys_and_losses(whole: Evo, evo: Evo) -> None:
    planned = whole.plan(TINY, "--set", "vars.ranks=1")
    assert [planned[step]["action"] for step in STEPS] == ["reuse"] * 7
    printed = evo("run", TINY, "--no-server", "--set", "vars.ranks=1", "--targets", "model")
    assert "5 steps made" in printed
    assert evo.plan(TINY)["model"]["key"] == planned["model"]["key"]
    ours, theirs = evo.curve(), whole.curve()
    assert [step for step, _ in ours] == [step for step, _ in theirs] == list(range(24))
    for (_, one), (_, two) in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_a_generated_text_is_traced_to_the_raw_files(whole: Evo) -> None:
    sample = json.loads((whole.artifact("samples") / "samples.jsonl").read_text().splitlines()[1])
    found = json.loads(whole("trace", sample["prompt"] + sample["text"], "--json"))
    assert found["sample"]["text"] == sample["text"]
    assert {entry["kind"] for entry in found["lineage"]} == {
        "generate.samples", "train.pretrain", "data.shard", "data.tokenize", "tokenizer.train", "source.sample_text"
    }  # fmt: skip
    assert {file["path"].partition("/")[0] for file in found["raw_files"]} == {"cn", "en", "code"}
    assert all("git" in entry and entry["argv"] for entry in found["lineage"])
    whole("trace", "words that no model wrote", status=2)


def test_the_checkpoint_itself_names_its_dataset_code_and_settings(whole: Evo) -> None:
    manifests = {step: json.loads((whole.artifact(step).parents[1] / "manifest.json").read_text()) for step in STEPS}
    about = json.loads((whole.artifact("model") / "model" / "manifest.json").read_text())["about"]
    digests = {file["path"]: file["digest"] for file in manifests["shards"]["files"]}
    assert about["dataset"] == f"blake3:{digests['statistics.json']}"
    job = canonical_json(manifests["model"]["identity"]["params"]["job"])
    assert about["identity_digest"] == f"sha256:{hashlib.sha256(job.encode()).hexdigest()}"
    git = manifests["model"]["provenance"]["git"]
    assert about["commit"] == (git and git["commit"])
    assert about["metrics"]["step"] == 23
    made_by = manifests["model"]["statistics"]["made_by"]
    assert {"commit", "dataset", "identity_digest"} <= made_by.keys()
    assert made_by == {name: about[name] for name in made_by}


def test_status_and_dag(whole: Evo) -> None:
    assert "7/7" in whole("status")
    assert "train.pretrain" in whole("dag", TINY)
    assert whole("dag", TINY, "--format", "mermaid").startswith("flowchart LR")


def test_nothing_is_left_running_or_half_made(whole: Evo) -> None:
    assert whole.processes() == []
    attempts = whole.root.glob("artifacts/*/attempts/*")
    assert all((attempt / "attempt.json").exists() for attempt in attempts)
    assert not list(whole.root.rglob("claim.json"))
    assert not list(whole.root.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["run", TINY, "--set", "steps.model.uses=train.pretain"], 'did you mean "train.pretrain"'),
        (["run", TINY, "--set", "steps.model.params.adam.lrr=1"], 'adam.lrr: unknown key; did you mean "lr"'),
        (["run", TINY, "--set", "steps.tokenizer.params.vocab_size=5000"], "do not fit the model's vocabulary of 512"),
        (["run", TINY, "--set", "vars.cluster=nowhere"], "nowhere"),
        (["run", TINY, "--set", "vars.cluster=slurm"], "slurm"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_any_work(evo: Evo, words: list[str], message: str) -> None:
    printed = evo(*words, "--no-server", status=2)
    assert message in printed
    assert printed.startswith("evo: ")
    assert len(printed.splitlines()) == 1
    assert not (evo.root / "artifacts").exists()


def test_a_corpus_too_small_for_the_vocabulary(evo: Evo) -> None:
    words = ["--set", "steps.raw.params.max_bytes={cn: 4000, en: 4000, code: 4000}", "--no-server"]
    assert "evo: " in evo("run", TINY, *words, status=1)
    assert evo.processes() == []
