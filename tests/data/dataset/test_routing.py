"""Types of documents: by path, by what the records said, and by what the text looks like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evo_core.data.dataset.build import ShardSource, write_shards
from evo_core.data.dataset.detect import Detector
from evo_core.data.dataset.routing import TypeRouting, type_of_path
from evo_core.data.dataset.scan import ScanSpec, scan
from evo_core.data.shards.format import BinReader, BinWriter
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin, write_bin

# A tokenizer of bytes: it gives back every text.
TOKENIZER = Path(__file__).parents[2] / "tasks" / "tokenizer.json"

TEXTS = {
    "cn": [
        "感恩生活中的每一个细节，才能真正体会到幸福的滋味。梦想是人生的动力源泉。",
        "却说孔明既斩马谡，将首级遍示各营已毕，用线缝在尸上，具棺葬之。",
    ],
    "en": [
        "The quick brown fox jumps over the lazy dog, and it barked at the moon all night long.",
        "She walked down the street (it was raining) and thought about what he had said the day before.",
    ],
    "ja": ["これは日本語の文章です。今日はとても良い天気ですね。明日も晴れるといいと思います。"],
    "ar": ["هذا نص مكتوب باللغة العربية لاختبار التعرف على اللغة في هذا النظام الجديد"],
    "de": ["Der Hund lief über die Straße, weil er auf der anderen Seite einen Freund gesehen hatte."],
    "code": [
        'import os\n\n\ndef main(argv):\n    """Run."""\n    for name in os.listdir(argv[1]):\n'
        "        if name.endswith('.py'):\n            print(name, len(name))\n    return 0\n",
        "#include <stdio.h>\n\nint main(int argc, char **argv) {\n    for (int i = 0; i < argc; i++) {\n"
        '        printf("%s\\n", argv[i]);\n    }\n    return 0;\n}\n',
    ],
    "other": ["42 17 9 8821 3 55 1009", "—— …… ——"],
}


def test_types_of_paths() -> None:
    patterns = {"web/*/zh-*": "cn", "web/*": "en", "*.py.txt": "code"}
    assert type_of_path("web/2020/zh-a.jsonl", patterns) == "cn"
    assert type_of_path("web/2020/en-a.jsonl", patterns) == "en"
    assert type_of_path("src/deep/a.py.txt", patterns) == "code"
    assert type_of_path("books/a.txt", patterns) == "books"


def _bin(path: Path, texts: Sequence[str], tokenizer: Tokenizer) -> Path:
    with BinWriter(path) as writer:
        for ids in tokenizer.encode_batch(list(texts)):
            writer.write(ids)
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_detection(name: str) -> None:
    detector = Detector(load_tokenizer(TOKENIZER))
    assert [detector.type_of(text) for text in TEXTS[name]] == [name] * len(TEXTS[name])


def test_detection_looks_at_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    # The head of the Chinese text is cut within a character: a byte is a token here.
    long = [("感恩生活中的每一个细节，才能真正体会到幸福的滋味。" * 30), "word " * 2 + TEXTS["en"][0] * 20]
    path = _bin(tmp_path / "a.bin", [*long, TEXTS["code"][0]], tokenizer)
    spec = ScanSpec(path, "", TypeRouting("detect", TOKENIZER), 0.1, 0)
    found = scan(spec)
    assert [found.types[number] for number in found.type_numbers] == ["cn", "en", "code"]
    again = scan(spec)
    assert found.type_numbers.tolist() == again.type_numbers.tolist()


def _detected(folder: Path, **options: object) -> tuple[Path, dict]:
    tokenizer = load_tokenizer(TOKENIZER)
    texts = [text for of_type in TEXTS.values() for text in of_type]
    source = ShardSource("", _bin(folder / "mixed.bin", texts, tokenizer), "mixed.jsonl")
    out = folder / f"out{len(list(folder.iterdir()))}"
    routing = TypeRouting("detect", TOKENIZER, **options)  # type: ignore[arg-type]
    return out, write_shards([source], out, valid_fraction=0, shard_tokens=10**6, routing=routing)


def test_shards_by_what_is_detected(tmp_path: Path) -> None:
    out, statistics = _detected(tmp_path)
    assert {name: of_type["documents"] for name, of_type in statistics["types"].items()} == {
        name: len(texts) for name, texts in sorted(TEXTS.items())
    }
    tokenizer = load_tokenizer(TOKENIZER)
    for name, texts in TEXTS.items():
        documents = read_bin(out / "train" / name / "train_000.bin")
        assert [tokenizer.decode(ids) for ids in documents] == texts


def test_documents_of_other_types(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mixed.jsonl: document \d+ is of type '\w+', which is not among"):
        _detected(tmp_path, types=frozenset({"cn", "en", "code"}))
    out, statistics = _detected(tmp_path, types=frozenset({"cn", "en", "code"}), others="drop")
    assert sorted(statistics["types"]) == ["cn", "code", "en"]
    assert statistics["dropped"] == {"ar": 1, "de": 1, "ja": 1, "other": 2}
    assert sorted(path.name for path in (out / "train").iterdir()) == ["cn", "code", "en"]
    with pytest.raises(DataError, match="types: there is no document of type kaoshi"):
        _detected(tmp_path, types=frozenset({"cn", "kaoshi"}), others="drop")


def test_types_that_the_records_name(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", [[1], [2], [3, 3], [4], [5]])
    # As the tokenizer leaves them: runs of (first document, type).
    Path(f"{path}.types").write_text(json.dumps({"types": ["en", "cn"], "runs": [[0, 0], [2, 1], [4, 0]]}))
    source = ShardSource("", path, "a.jsonl")
    write_shards([source], tmp_path / "out", valid_fraction=0, shard_tokens=100, routing=TypeRouting("field"))
    assert read_bin(tmp_path / "out" / "train" / "en" / "train_000.bin") == [[1], [2], [5]]
    assert read_bin(tmp_path / "out" / "train" / "cn" / "train_000.bin") == [[3, 3], [4]]


def test_a_record_may_not_name_a_folder_elsewhere(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", [[1], [2]])
    Path(f"{path}.types").write_text(json.dumps({"types": ["../x"], "runs": [[0, 0]]}))
    for types in (None, frozenset({"../x"})):
        routing = TypeRouting("field", types=types)
        with pytest.raises(DataError, match="no name for a data type"):
            write_shards(
                [ShardSource("", path, "a")], tmp_path / "out", valid_fraction=0, shard_tokens=9, routing=routing
            )


@pytest.mark.parametrize("runs", [[[1, 0]], [[0, 1]], [[0, 0], [3, 0]], [[0, 0], [1, 0], [0, 0]], []])
def test_types_of_another_file(tmp_path: Path, runs: list[list[int]]) -> None:
    path = write_bin(tmp_path / "a.bin", [[1], [2]])
    Path(f"{path}.types").write_text(json.dumps({"types": ["en"], "runs": runs}))
    with pytest.raises(DataError, match=r"a.bin.types: the types do not fit the 2 documents of a.bin"):
        scan(ScanSpec(path, "", TypeRouting("field"), 0, 0))


def test_a_tokenizer_is_needed_to_detect(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", [[1]])
    with pytest.raises(DataError, match="a tokenizer is needed"):
        scan(ScanSpec(path, "", TypeRouting("detect"), 0, 0))
    assert len(BinReader(path)) == 1
