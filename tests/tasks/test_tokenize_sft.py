"""Fine-tuning data as steps of a pipeline: records → samples → shards."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import write_sft_file
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from evo_core.errors import ConfigError
from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import Artifact, open_store
from tests.data.corpora import read_bin, texts
from tests.flows.pipeline.conftest import Recorder

PIPELINE = """\
pipeline: sft
steps:
  raw:
    uses: source.files
    params: {root: raw}
  samples:
    uses: data.tokenize_sft
    needs: {raw: raw}
    params: {tokenizer: tokenizer/tokenizer.model}
    runtime: {workers: 1}
  shards:
    uses: data.shard
    needs: {tokens: samples}
    params: {valid_fraction: 0.2}
"""


class Job:
    """The pipeline in a folder."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer/tokenizer.model").write_bytes(tokenizer.path.read_bytes())
        (folder / "sft.yaml").write_text(PIPELINE)
        self.store = open_store(folder / "store")
        for type_ in ("en", "code"):
            self.write(type_, "a", range(20))

    def write(self, type_: str, name: str, numbers: range) -> Path:
        records = [
            {
                "instruction": f"undo {type_} {n}",
                "output": f"redo {n}",
                "messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"{type_} {n}"}],
            }
            for n in numbers
        ]
        path = self.folder / "raw" / type_ / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    def plan(self, *overrides: str) -> Plan:
        return make_plan(load_pipeline(self.folder / "sft.yaml", overrides), self.store)

    def key(self, *overrides: str) -> str:
        return self.plan(*overrides).step("samples").key

    def run(self, *overrides: str) -> tuple[Artifact, Artifact]:
        plan = self.plan(*overrides)
        run_plan(plan, self.store, Recorder(), threading.Event())
        samples, shards = (self.store.artifact(name, plan.step(name).key) for name in ("samples", "shards"))
        return samples, shards


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(texts(), path, vocab_size=600)
    return load_tokenizer(path)


@pytest.fixture
def job(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield Job(tmp_path, tokenizer)
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


def test_records_become_shards_with_every_sample_once(job: Job, tokenizer: Tokenizer) -> None:
    samples, shards = job.run()
    assert samples.manifest["statistics"]["documents"] == 40 and samples.manifest["statistics"]["files_tokenized"] == 2
    for type_ in ("en", "code"):
        expected = job.folder / f"{type_}.bin"
        write_sft_file([job.folder / "raw" / type_ / "a.jsonl"], expected, SftSettings(tokenizer.path))
        sides = [read_bin(path) for s in ("train", "valid") for path in (shards.path / s / type_).glob("*.bin")]
        assert len(sides) == 2
        assert sorted(sides[0] + sides[1]) == sorted(read_bin(expected))
    assert load_tokenizer(shards.path / "tokenizer").digest == tokenizer.digest


def test_the_manifest_names_the_objects_that_are_in_use(job: Job) -> None:
    samples, shards = job.run()
    assert samples.objects == {p.name for p in (job.store.root / "objects").glob("*/*")} != set()
    assert shards.objects == frozenset()  # its shards are its own


def test_only_new_files_are_tokenized(job: Job) -> None:
    job.run()
    job.write("en", "b", range(20, 30))
    samples, _ = job.run()
    assert samples.manifest["statistics"]["files_tokenized"] == 1
    assert samples.manifest["statistics"]["documents"] == 50


def test_a_chat_template_goes_along_and_enters_the_key_by_its_content(job: Job) -> None:
    template = job.folder / "t.jinja"
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template.write_text(text)
    chat = ("steps.samples.params.format=chat", "steps.samples.params.chat_template=t.jinja")
    samples, shards = job.run(*chat)
    assert (shards.path / "tokenizer/chat_template.jinja").read_text() == text
    assert samples.manifest["statistics"]["trained"] > 0
    key = job.key(*chat)
    template.rename(job.folder / "u.jinja")
    assert job.key(chat[0], "steps.samples.params.chat_template=u.jinja") == key
    template.write_text(text + " ")
    assert job.key(*chat) != key
    template.write_text(text)
    assert job.key(*chat) == key


def test_a_users_function_enters_the_key_by_its_file(job: Job) -> None:
    source = job.folder / "mine_sft.py"
    source.write_text("def pieces(record):\n    return [('undo', False), (record['output'], True)]\n")
    own = "steps.samples.params.format=mine_sft:pieces"
    samples, _ = job.run(own)
    key = job.key(own)
    source.write_text("def pieces(record):\n    return [('', False), (record['output'], True)]\n")
    assert job.key(own) != key
    again, _ = job.run(own)
    assert again.manifest["statistics"]["tokens"] < samples.manifest["statistics"]["tokens"]


def test_what_is_wrong_is_said_when_it_is_planned(job: Job) -> None:
    for override, message in {
        "params.format=alpacca": r'steps\.samples\.params\.format: there is no format .* did you mean "alpaca"',
        "params.format=chat": "there is no chat template beside this tokenizer",
        "params.chat_template=sft.yaml": "a chat template is for the format chat, not alpaca",
        "params.max_length=1": "max_length",
        "params.tokenizer=null": r"steps\.samples\.params\.tokenizer: no tokenizer is named",
    }.items():
        with pytest.raises(ConfigError, match=message):
            job.plan(f"steps.samples.{override}")


def test_a_wrong_record_fails_the_step_or_is_counted(job: Job) -> None:
    path = job.write("en", "a", range(20))
    path.write_text(path.read_text() + '{"instruction": "x"}\n')
    with pytest.raises(StepFailed, match=r"a\.jsonl:21: there is no field 'output'"):
        job.run()
    samples, _ = job.run("steps.samples.params.on_error=skip")
    assert samples.manifest["statistics"]["skipped"] == 1
