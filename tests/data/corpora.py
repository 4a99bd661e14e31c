"""Small corpora: texts, token files as other tools write them, and configurations that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evo_core.config import TrainConfig

CHINESE = (
    "感恩生活中的每一个细节，才能真正体会到幸福的滋味。\n"
    "梦想是人生的动力源泉，努力追逐，才能实现自己的目标。\n"
    "学会宽容和理解，才能建立真正和谐的人际关系。"
)
ENGLISH = "The quick brown fox  jumps over the lazy dog.\n\nIt barked - twice! - at 10:45.\t(Nobody heard.)\n"
CODE = '''def fold(items, *, start=0):
    """Doc."""
    for item in items:
        if item is not None:\t# tabs and spaces
            start += item["n"] ** 2

    return start


class Empty: pass
'''


def texts() -> list[str]:
    """Documents in three languages, enough for a vocabulary of 600."""
    words = [f"{a}{b}" for a in ("re", "un", "pre", "over", "out") for b in ("act", "do", "run", "view", "take")]
    return [CHINESE, ENGLISH, CODE, *(f"{word} and {other}" for word in words for other in words)]


def write_bin(path: Path, documents: Sequence[Sequence[int]], *, meta_dtype: Any = np.int64) -> Path:
    """A token file written by nothing of ours, as the format's description says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta, offset = [], 0
    with path.open("wb") as file:
        for document in documents:
            line = json.dumps({"tokens": list(document)}).encode() + b"\n"
            file.write(line)
            meta.append((offset, len(document)))
            offset += len(line)
    with Path(f"{path}.meta").open("wb") as file:
        np.save(file, np.array(meta, dtype=meta_dtype))
    return path


def read_bin(path: Path) -> list[list[int]]:
    """The documents of a token file, read by nothing of ours."""
    content = path.read_bytes()
    documents = []
    for offset, length in np.load(f"{path}.meta"):
        documents.append(json.loads(content[offset:].partition(b"\n")[0])["tokens"])
        assert len(documents[-1]) == length
    return documents


def write_folder(folder: Path, types: Mapping[str, Sequence[Sequence[Sequence[int]]]]) -> Path:
    """``{"en": [documents of the first file, of the second, …]}`` as a folder of token shards."""
    for name, files in types.items():
        for number, documents in enumerate(files):
            write_bin(folder / name / f"train_{number:03d}.bin", documents)
    return folder


def numbered(count: int, *, first: int = 1, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Documents in which every token has another id, from `first` on."""
    random = np.random.RandomState(seed)
    documents = []
    for _ in range(count):
        length = int(random.randint(1, longest + 1))
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def job(train_folder: Path | None, *, seed: int = 7, vocab_size: int = 100_000, **data: Any) -> TrainConfig:
    """A training job on a folder of token shards."""
    return TrainConfig.model_validate(
        {
            "seed": seed,
            "data": {
                "seq_len": 8,
                "micro_bsz": 2,
                "train_folder": None if train_folder is None else str(train_folder),
                **data,
            },
            "model": {
                "vocab_size": vocab_size,
                "hidden_size": 8,
                "num_layers": 1,
                "num_attention_heads": 1,
                "mlp_ratio": 2,
            },
        }
    )
