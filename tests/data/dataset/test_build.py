"""Shards: every document once, a split that depends on the documents alone, a way back to the raw files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evo_core.data.dataset.build import ShardSource, write_shards
from evo_core.data.shards.format import BinReader
from evo_core.data.shards.origins import Origins
from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, CODE, ENGLISH, numbered, read_bin, write_bin

DOCUMENTS = numbered(200)


def _sources(folder: Path, groups: list[list[list[int]]], data_type: str = "en") -> list[ShardSource]:
    return [
        ShardSource(data_type, write_bin(folder / data_type / f"{n}.bin", group), f"{data_type}/raw_{n:02d}.txt")
        for n, group in enumerate(groups)
    ]


def _documents(out: Path, split: str, data_type: str = "en") -> list[list[int]]:
    return [d for path in sorted((out / split / data_type).glob("*.bin")) for d in read_bin(path)]


def test_every_document_is_in_one_shard_once(tmp_path: Path) -> None:
    sources = [
        *_sources(tmp_path, [DOCUMENTS[:90], [], DOCUMENTS[90:100]]),
        *_sources(tmp_path, [DOCUMENTS[100:]], "cn"),
    ]
    out = tmp_path / "out"
    statistics = write_shards(reversed(sources), out, valid_fraction=0.2, shard_tokens=100)  # type: ignore[arg-type]
    train, valid = _documents(out, "train"), _documents(out, "valid")
    assert sorted(train + valid) == sorted(DOCUMENTS[:100])
    assert train == sorted(train), "origins keep their order"
    assert 5 <= len(valid) <= 40
    assert sorted(_documents(out, "train", "cn") + _documents(out, "valid", "cn")) == DOCUMENTS[100:]

    english = statistics["types"]["en"]
    assert list(statistics["types"]) == ["cn", "en"]
    assert english["documents"] == 100
    assert english["train"] == {"documents": len(train), "tokens": sum(map(len, train))}
    assert english["valid"] == {"documents": len(valid), "tokens": sum(map(len, valid))}
    assert english["tokens"] == sum(map(len, DOCUMENTS[:100]))
    json.dumps(statistics)

    shards = {shard["path"]: shard for shard in statistics["shards"]}
    assert set(shards) == {p.relative_to(out).as_posix() for p in out.rglob("*.bin")}
    assert len([path for path in shards if path.startswith("train/en/train_")]) > 3
    for path, shard in shards.items():
        documents = read_bin(out / path)
        assert (shard["documents"], shard["tokens"]) == (len(documents), sum(map(len, documents)))
        assert shard["tokens"] - len(documents[-1]) < 100
        assert shard["bytes"] == (out / path).stat().st_size
        assert all(origin.startswith(shard["type"]) for origin in shard["origins"])


def test_the_split_does_not_depend_on_files(tmp_path: Path) -> None:
    groupings = {"one": [DOCUMENTS], "many": [[d] for d in DOCUMENTS], "turned": [DOCUMENTS[120:], DOCUMENTS[:120]]}
    held_out = []
    for name, groups in groupings.items():
        write_shards(_sources(tmp_path / name, groups), tmp_path / name / "out", valid_fraction=0.1, shard_tokens=50)
        held_out.append(sorted(_documents(tmp_path / name / "out", "valid")))
    assert held_out[0] == held_out[1] == held_out[2]
    write_shards(
        _sources(tmp_path / "s", [DOCUMENTS]), tmp_path / "s" / "out", valid_fraction=0.1, shard_tokens=50, seed=1
    )
    assert sorted(_documents(tmp_path / "s" / "out", "valid")) != held_out[0], "the seed chooses another part"


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    write_shards(_sources(tmp_path, [DOCUMENTS, DOCUMENTS]), tmp_path / "out", valid_fraction=0.3, shard_tokens=10**9)
    train, valid = _documents(tmp_path / "out", "train"), _documents(tmp_path / "out", "valid")
    assert len(train) + len(valid) == 400
    assert not {tuple(d) for d in train} & {tuple(d) for d in valid}


@pytest.mark.parametrize("spelling", ['{"tokens": [%s]}', '{"tokens":[%s]}'])
def test_lines_in_another_spelling_become_ours(tmp_path: Path, spelling: str) -> None:
    sources = _sources(tmp_path, [DOCUMENTS])
    write_shards(sources, tmp_path / "a", valid_fraction=0.1, shard_tokens=10**9)
    lines = []
    for document in DOCUMENTS:
        tight = ",".join(map(str, document))
        spaces = len(json.dumps({"tokens": document})) - len(spelling % tight)  # so that the meta still fits
        lines.append(spelling % (tight + " " * spaces) + "\n")
    sources[0].bin_path.write_text("".join(lines))
    write_shards(sources, tmp_path / "b", valid_fraction=0.1, shard_tokens=10**9)
    shards = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.bin")]
    assert len(shards) == 2
    for shard in shards:
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


def test_no_fraction_no_valid_part(tmp_path: Path) -> None:
    write_shards(_sources(tmp_path, [[[1, 2]]]), tmp_path / "out", valid_fraction=0, shard_tokens=10)
    assert _documents(tmp_path / "out", "train") == [[1, 2]]
    assert not (tmp_path / "out" / "valid").exists()


def test_what_cannot_be_split_is_named_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = [*_sources(tmp_path, [DOCUMENTS]), *_sources(tmp_path, [[[1, 2, 3]]], "cn")]
    with pytest.raises(DataError, match=r"type cn: too few documents \(1\) .* the valid part would have none"):
        write_shards(few, out, valid_fraction=0.001, shard_tokens=10)
    with pytest.raises(DataError, match="the train part would have none"):
        write_shards(few, out, valid_fraction=0.9999, shard_tokens=10)
    with pytest.raises(DataError, match=r"type en: too few documents \(0\)"):
        write_shards([*_sources(tmp_path, [[]]), few[1]], out, valid_fraction=0, shard_tokens=10)
    for nothing in ([], _sources(tmp_path, [[]])):
        with pytest.raises(DataError, match="not a single document"):
            write_shards(nothing, out, valid_fraction=0.1, shard_tokens=10)
    for key, values in {"valid_fraction": (1.0, 10), "shard_tokens": (0.1, 0)}.items():
        with pytest.raises(DataError, match=key):
            write_shards(few, out, valid_fraction=values[0], shard_tokens=int(values[1]))
    with pytest.raises(DataError, match="no name for a data type"):
        write_shards([ShardSource("../x", few[0].bin_path, "raw")], out, valid_fraction=0.1, shard_tokens=10)
    assert not out.exists()


def test_shards_are_not_mixed_with_others(tmp_path: Path) -> None:
    sources = _sources(tmp_path, [DOCUMENTS])
    write_shards(sources, tmp_path / "out", valid_fraction=0.1, shard_tokens=10)
    with pytest.raises(DataError, match="already here"):
        write_shards(sources, tmp_path / "out", valid_fraction=0.1, shard_tokens=10)


def test_every_document_leads_back_to_its_raw_file(tmp_path: Path) -> None:
    groups = [DOCUMENTS[:50], DOCUMENTS[50:53], DOCUMENTS[53:]]
    sources = _sources(tmp_path, groups)
    raw = {tuple(d): s.origin for s, group in zip(sources, groups, strict=True) for d in group}
    statistics = write_shards(sources, tmp_path / "out", valid_fraction=0.2, shard_tokens=300)
    origins = Origins.load(tmp_path / "out")
    assert set(origins.shards) == {shard["path"] for shard in statistics["shards"]}
    for shard in statistics["shards"]:
        documents = read_bin(tmp_path / "out" / shard["path"])
        found = [origins.of(shard["path"], n) for n in range(len(documents))]
        assert found == [raw[tuple(d)] for d in documents]
        assert shard["origins"] == list(dict.fromkeys(found)) == origins.of_shard(shard["path"])
    with pytest.raises(DataError, match="not among the shards"):
        origins.of("train/fr/train_000.bin", 0)


def test_damaged_origins(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not say where"):
        Origins.load(tmp_path)
    for content in ("{", "[]", '{"origins": []}'):
        (tmp_path / "origins.json").write_text(content)
        with pytest.raises(DataError, match="damaged"):
            Origins.load(tmp_path)


def test_a_sentence_is_traced_to_its_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sources = []
    for name, lines in {"a.txt": CHINESE, "b.txt": ENGLISH, "c.txt": CODE}.items():
        (tmp_path / name).write_text(lines)
        tokenize_file(TokenizeSpec(tmp_path / name, tmp_path / f"{name}.bin", tokenizer.path))
        sources.append(ShardSource("mixed", tmp_path / f"{name}.bin", name))
    write_shards(sources, tmp_path / "out", valid_fraction=0.3, shard_tokens=10**6)
    origins = Origins.load(tmp_path / "out")

    def traced(text: str) -> list[str]:
        """The raw files of the documents that hold the text."""
        readers = {shard: BinReader(tmp_path / "out" / shard) for shard in origins.shards}
        return [
            origins.of(shard, document)
            for shard, reader in readers.items()
            for document in range(len(reader))
            if text in tokenizer.decode(reader.tokens(document).tolist())
        ]

    assert traced("努力追逐") == ["a.txt"]
    assert traced("not there") == []


def test_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evo_core.data.dataset import scan

    monkeypatch.setattr(scan, "_INLINE_BYTES", 0)
    monkeypatch.setattr(scan, "_BYTES_PER_TASK", 600)
    sources = _sources(tmp_path, [DOCUMENTS[n : n + 10] for n in range(0, 200, 10)])
    for workers in (1, 2):
        write_shards(
            sources, tmp_path / f"{workers}", valid_fraction=0.2, shard_tokens=300, dedup="near", workers=workers
        )
    paths = [p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file()]
    assert len(paths) > 10
    for path in paths:
        assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes()
    sources[13].bin_path.write_bytes(b"{" + sources[13].bin_path.read_bytes()[1:-1] + b"x")
    with pytest.raises(DataError, match=r"13.bin:10: "):
        write_shards(sources, tmp_path / "3", valid_fraction=0.2, shard_tokens=300, workers=2)
