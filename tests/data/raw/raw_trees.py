"""A folder of raw files as people have them: links, loops, hidden names, odd names, endings in capitals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_LINE = '{"text": "words of a document", "instruction": "say it", "output": "it"}\n'

LISTED = (
    "ROOT.JSONL",
    "a-b.jsonl",
    "a.jsonl",
    "a/z.jsonl",
    "cn/一 二.jsonl",
    "elsewhere/deep/x.Jsonl",
    "en/[x]*?.jsonl",
    "en/100%#.jsonl",
    "en/again.jsonl",
    "en/empty.jsonl",
    "en/new\nline.jsonl",
    "en/🙂.jsonl",
    f"en/{'n' * 200}.jsonl",
)
"""What every command and step finds in the tree, below its root."""

HIDDEN = (".git/x.jsonl", ".git/y.jsonl", ".hidden.jsonl", "en/.ipynb_checkpoints/x.jsonl", "en/._a.jsonl")
"""What is there as well."""

LEFT_OUT = {"hidden": 4, "linked again": 2, "linked to nothing": 2, "no regular file": 1}


def make_raw_tree(folder: Path) -> Path:
    """The tree, below `folder`; its root is a link too."""
    root, outside = folder / ".real", folder / "outside"
    for name in LISTED:
        path = outside / name.removeprefix("elsewhere/") if name.startswith("elsewhere/") else root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "empty" in name else _LINE)
    for hidden in HIDDEN:
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_text(_LINE)
    (root / "en" / "again.jsonl").unlink()
    (root / "en" / "again.jsonl").symlink_to(root / "a.jsonl")  # a file by another name
    (root / "elsewhere").symlink_to(outside)
    (root / "en" / "loop").symlink_to(root)
    (root / "zz").symlink_to(outside)  # a second link to one folder
    (root / "gone.jsonl").symlink_to(folder / "nowhere")
    (root / "itself").symlink_to("itself")
    os.mkfifo(root / "pipe.jsonl")
    (folder / "raw").symlink_to(root)
    return folder / "raw"


def upload(root: Path, client: Any, bucket: str, prefix: str) -> None:
    """Put every file that the root leads to, hidden ones as well, into a bucket under its path."""
    for path in [*LISTED, *HIDDEN]:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=(root / path).read_bytes())
