"""What tests of the loader read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.corpora import numbered, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = numbered(300, longest=20)
    return write_folder(
        tmp_path / "data" / "train",
        {"en": [documents[:90], documents[90:100], []], "cn": [documents[100:160]], "code": [documents[160:]]},
    )
