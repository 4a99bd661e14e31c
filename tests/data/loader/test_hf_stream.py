"""A Hugging Face data set as training data: its texts packed greedily, and resumed without reading them again."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as st

from evo_core.config import TrainConfig, load_config
from evo_core.data.loader import hf_stream
from evo_core.data.loader.hf_stream import StreamData
from evo_core.data.loader.prefetch import Prefetch, open_source
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import ConfigError, DataError
from tests.data.corpora import job

WORDS = ("over", "view", "un", "do", "re", "act", "pre", "take", "run", "out")


def texts(count: int, *, seed: int = 0, longest: int = 12) -> list[str]:
    """Texts that all differ."""
    random = np.random.RandomState(seed)
    return [
        " ".join([f"{number}", *(WORDS[i] for i in random.randint(len(WORDS), size=random.randint(1, longest)))])
        for number in range(count)
    ]


def write_files(folder: Path, files: Sequence[Sequence[str]], key: str = "text") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(files):
        lines = "".join(json.dumps({"id": n, key: text}) + "\n" for n, text in enumerate(content))
        (folder / f"part-{number}.jsonl").write_text(lines)
    return folder


def hf_job(folder: Path | str, tokenizer: Tokenizer, **data: Any) -> TrainConfig:
    return job(Path(folder), **({"vocab_size": 600, "type": "hf", "tokenizer_path": str(tokenizer.path)} | data))


def rows(batch: Any) -> list[tuple]:
    return [
        (
            batch.input_ids[i].tolist(),
            batch.labels[i].tolist(),
            batch.cu_seqlens[i].tolist(),
            batch.positions[i].tolist(),
        )
        for i in range(batch.micro_num)
    ]


def greedy(documents: Sequence[Sequence[int]], seq_len: int, packed_length: int, packs: int) -> list[tuple]:
    """The packs of documents over and over, as the description says, one token at a time."""
    endless = itertools.cycle(documents)
    document = list(next(endless))[:seq_len]
    result = []
    for _ in range(packs):
        ids: list[int] = []
        labels: list[int] = []
        cuts = [0]
        while len(ids) + len(document) <= packed_length:
            ids += document
            labels += [*document[1:], -100]
            cuts.append(len(ids))
            document = list(next(endless))[:seq_len]
        while len(ids) < packed_length:
            padding = min(seq_len, packed_length - len(ids))
            ids += [0] * padding
            labels += [-100] * padding
            cuts.append(len(ids))
        positions = [n for start, end in itertools.pairwise(cuts) for n in range(end - start)]
        result.append((ids, labels, cuts, positions))
    return result


def test_packs_are_those_of_the_description(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = texts(40)
    folder = write_files(tmp_path / "d", [content[:15], content[15:]])
    data = StreamData(hf_job(folder, tokenizer, seq_len=16, micro_bsz=2, micro_num=2), dp_rank=0, dp_size=1)
    documents = tokenizer.encode_batch(content, bos=True, eos=True)
    assert max(map(len, documents)) > 16, "some are cut"
    expected = greedy(documents, 16, 32, 60)
    batches = [data.draw(step)[0] for step in range(30)]
    assert [row for batch in batches for row in rows(batch)] == expected
    assert batches[0].input_ids.shape == (2, 32)
    assert {t.dtype for b in batches for t in (b.input_ids, b.labels, b.positions, b.type_ids)} == {torch.int64}
    assert all(cu.dtype == torch.int32 for cu in batches[0].cu_seqlens)


def test_rows_of_one_document_each(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = texts(7)
    folder = write_files(tmp_path / "d", [content])
    cfg = hf_job(folder, tokenizer, seq_len=16, micro_bsz=2, use_packed_dataset=False)
    data = StreamData(cfg, dp_rank=0, dp_size=1)
    documents = [ids[:16] for ids in tokenizer.encode_batch(content, bos=True, eos=True)]
    found = [data.draw(step)[0].input_ids.view(2, 16).tolist() for step in range(3)]
    assert [row for batch in found for row in batch] == [ids + [0] * (16 - len(ids)) for ids in documents[:6]]


@pytest.mark.parametrize(("files", "ranks"), [(2, 2), (3, 2), (1, 2)])
def test_ranks_share_the_texts(tmp_path: Path, tokenizer: Tokenizer, files: int, ranks: int) -> None:
    content = texts(24)
    size = len(content) // files
    folder = write_files(tmp_path / "d", [content[n * size : (n + 1) * size] for n in range(files)])
    cfg = hf_job(folder, tokenizer, seq_len=32, micro_bsz=1, micro_num=1, use_packed_dataset=False)
    seen = []
    for rank in range(ranks):
        data = StreamData(cfg, dp_rank=rank, dp_size=ranks)
        seen += [tuple(data.draw(step)[0].input_ids[0].tolist()) for step in range(len(content) // ranks)]
    expected = [(*ids, *[0] * (32 - len(ids))) for ids in tokenizer.encode_batch(content, bos=True, eos=True)]
    assert sorted(seen) == sorted(expected)


@given(stop=st.integers(1, 25), ahead=st.integers(0, 1), buffer=st.integers(1, 9), ranks=st.integers(1, 2))
@trying(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
def test_it_goes_on_from_any_cursor(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, stop: int, ahead: int, buffer: int, ranks: int
) -> None:
    """Texts are tokenized in small groups here, so that cursors lie in the middle of them and at their ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_stream, "_TEXTS", buffer)
        content = texts(31)
        folder = write_files(tmp_path_factory.mktemp("d"), [content[:11], content[11:13], content[13:]])
        cfg = hf_job(folder, tokenizer, seq_len=16, micro_bsz=2)
        whole = StreamData(cfg, dp_rank=ranks - 1, dp_size=ranks)
        expected = [rows(whole.draw(step)[0]) for step in range(stop + 20)]
        with Prefetch(open_source(cfg, dp_rank=ranks - 1, dp_size=ranks), 0, 100, workers=ahead) as feed:
            for step in range(stop):
                assert rows(feed.batch(step)) == expected[step]
            cursor = json.loads(json.dumps(feed.cursor))
        data = StreamData(cfg, dp_rank=ranks - 1, dp_size=ranks)
        data.restore(cursor)
        with Prefetch(data, stop, stop + 20, workers=ahead) as feed:
            assert [rows(feed.batch(step)) for step in range(stop, stop + 20)] == expected[stop:]


def test_what_was_read_is_not_read_again(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_stream, "_TEXTS", 5)
    folder = write_files(tmp_path / "d", [texts(200)[n * 20 : n * 20 + 20] for n in range(10)])
    cfg = hf_job(folder, tokenizer, seq_len=16, micro_bsz=1)
    data = StreamData(cfg, dp_rank=0, dp_size=1)
    cursors = [data.draw(step)[1] for step in range(150)]
    again = StreamData(cfg, dp_rank=0, dp_size=1)
    again.restore(cursors[-1])
    tokenized: list[str] = []
    encode = Tokenizer.encode_batch

    def counting(self: Tokenizer, texts: Sequence[str], **options: bool) -> list[list[int]]:
        tokenized.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(Tokenizer, "encode_batch", counting)
    again.draw(150)
    assert len(tokenized) <= 10


def test_subset_field_and_formats(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = texts(5)
    write_files(tmp_path / "d" / "stories", [content], key="story")
    write_files(tmp_path / "d" / "other", [["no"]], key="story")
    whole = write_files(tmp_path / "e", [content])
    with gzip.open(tmp_path / "one.jsonl.gz", "wt") as file:
        file.write((whole / "part-0.jsonl").read_text())
    (tmp_path / "lines.txt").write_text("\n".join(content) + "\n")
    jobs = [
        hf_job(tmp_path / "d", tokenizer, subset_name="stories", text_key="story"),
        hf_job(whole, tokenizer),
        hf_job(f"local:{whole}", tokenizer),
        hf_job(tmp_path / "one.jsonl.gz", tokenizer),
        hf_job(tmp_path / "lines.txt", tokenizer),
    ]
    first = [rows(StreamData(cfg, dp_rank=0, dp_size=1).draw(0)[0]) for cfg in jobs]
    assert first == first[:1] * 5


def test_the_digest_is_of_data_and_packing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = texts(5)
    a, b = write_files(tmp_path / "a", [content]), write_files(tmp_path / "b", [content])
    c = write_files(tmp_path / "c", [content[:-1]])

    def digest(folder: Path, **data: Any) -> str:
        return open_source(hf_job(folder, tokenizer, **data), dp_rank=0, dp_size=1).digest

    assert digest(a) == digest(b)
    assert len({digest(a), digest(c), digest(a, seq_len=4), digest(a, min_length=2)}) == 4


def test_wrong_data_are_named(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(folder: Path | str, **data: Any) -> str:
        with pytest.raises(DataError) as caught:
            StreamData(hf_job(folder, tokenizer, **data), dp_rank=0, dp_size=1).draw(0)
        return str(caught.value)

    assert "there is no such data set" in error(tmp_path / "missing" / "x" / "y")
    assert "unknown format" in error(tokenizer.path)
    other = write_files(tmp_path / "other", [["a"]], key="story")
    assert "data.text_key: a record without text in text, but with id, story" in error(other)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "cannot be read" in error(broken)
    short = write_files(tmp_path / "short", [["a"] * 3])
    assert "finds no text of at least 50 tokens" in error(short, min_length=50)
    with pytest.raises(DataError, match="do not fit the model's vocabulary of 100"):
        cfg = hf_job(short, tokenizer)
        StreamData(
            cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": 100})}), dp_rank=0, dp_size=1
        )


def test_the_shipped_configurations_are_the_tutorials(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = Path(__file__).parents[3] / "configs" / "train"
    both = [load_config(folder / f"tinystories.{form}") for form in ("yaml", "py")]
    assert both[0].to_plain() == both[1].to_plain()
    data = both[0].data
    assert (data.type, data.train_folder, data.tokenizer_path) == (
        "hf",
        "roneneldan/TinyStories",
        "internlm/internlm-7b",
    )
    assert (data.seq_len, data.micro_num, data.micro_bsz, data.min_length) == (2048, 1, 1, 50)
    stories = write_files(tmp_path / "d", [texts(200, longest=200)])
    overrides = [f"data.train_folder={stories}", f"data.tokenizer_path={tokenizer.path}"]
    batch = StreamData(load_config(folder / "tinystories.py", overrides), dp_rank=0, dp_size=1).draw(0)[0]
    assert batch.input_ids.shape == (1, 2048)
    assert int(batch.cu_seqlens[0].diff()[:-1].min()) >= 50


def test_the_identity_names_the_data(tokenizer: Tokenizer) -> None:
    """Nothing else does: there is no artifact that the data come from."""
    one = hf_job("a", tokenizer, global_batch_tokens=64)
    assert one.identity(2) == hf_job("a", tokenizer, global_batch_tokens=64).identity(2)
    others = [one.identity(1), hf_job("b", tokenizer, global_batch_tokens=64).identity(2)]
    others.append(hf_job("a", tokenizer, global_batch_tokens=64, text_key="story").identity(2))
    assert one.identity(2) not in others


def test_a_hub_id_without_a_hub(tokenizer: Tokenizer) -> None:
    code = """
import sys
from evo_core.data.loader.hf_dataset import open_stream
from evo_core.errors import DataError
try:
    open_stream("roneneldan/TinyStories")
except DataError as error:
    print(error)
"""
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("data.train_folder: the hub's data set roneneldan/TinyStories cannot be opened (")
    assert "name a local folder" in done.stdout
    assert done.stdout.count("\n") == 1


def test_contradictions(tokenizer: Tokenizer) -> None:
    for setting in ({"packing": "internevo"}, {"type_weights": {"en": 1}}, {"min_length_dict": {"a": 1}}):
        with pytest.raises(ConfigError, match=rf"data\.{next(iter(setting))}: is for token shards"):
            hf_job("folder", tokenizer, **setting)
    with pytest.raises(ConfigError, match=r"data\.train_folder: is required with data\.type hf"):
        job(None, type="hf", tokenizer_path="x")


def test_null_in_the_place_of_a_text_is_passed_over(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """As if it were not there, wherever a run stops and goes on; said once, counted at the end of the first pass."""
    caplog.set_level("INFO", logger="evo_core")
    content = texts(30)
    write_files(tmp_path / "whole", [content])
    with_null: list[Any] = [*content[:10], None, *content[10:20], "", None, *content[20:], None]
    write_files(tmp_path / "null", [with_null])
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"text": with_null}), tmp_path / "parquet/a.parquet")

    def source(name: str) -> StreamData:
        return StreamData(hf_job(tmp_path / name, tokenizer, seq_len=16), dp_rank=0, dp_size=1)

    whole = source("whole")
    expected = [rows(whole.draw(step)[0]) for step in range(60)]
    for name in ("null", "parquet"):
        caplog.clear()
        data = source(name)
        drawn = [data.draw(step) for step in range(60)]
        assert [rows(batch) for batch, _ in drawn] == expected
        assert caplog.text.count("records with null in text are passed over") == 1
        assert caplog.text.count("3 records held null in text") == 1
        assert caplog.text.count("of 1 texts the tokenizer left nothing") == 1
        resumed = source(name)
        resumed.restore(drawn[20][1])
        assert rows(resumed.draw(21)[0]) == expected[21]


def test_what_is_neither_text_nor_null(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="a record without text in text, but with a value of type int"):
        StreamData(hf_job(tmp_path / "a.jsonl", tokenizer), dp_rank=0, dp_size=1).draw(0)


def test_a_first_batch_without_a_target(tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """Texts of one token each have nothing to predict."""
    write_files(tmp_path / "short", [["\u2581"] * 30])
    cfg = hf_job(tmp_path / "short", tokenizer, seq_len=1, use_packed_dataset=True, min_length=0)
    data = StreamData(cfg, dp_rank=0, dp_size=1)
    data.draw(0)
    data.draw(1)
    assert caplog.text.count("the first batch holds no token to train on") == 1
