"""Raw files on disk and in other stores: opened by one function, with one kind of error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evo_core.data.raw.documents import read_documents
from evo_core.data.raw.listing import find_files as find
from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError, UserError
from evo_core.storage.files import file_exists, file_size, open_file, read_error, write_file
from evo_core.storage.location import LocationError
from tests.data.corpora import read_bin
from tests.s3_server import S3Server


@pytest.fixture
def store(s3: S3Server) -> str:
    """A folder in S3."""
    bucket, client = s3.new_bucket(), s3.client()
    files = {"raw/b.txt": b"two\nthree\n", "raw/a.txt": b"one\n", "raw/sub/c.txt": b"x", "raw/.hidden.txt": b"no"}
    for key, content in files.items():
        client.put_object(Bucket=bucket, Key=key, Body=content)
    return f"s3://{bucket}/raw"


def find_files(location: str) -> list[str]:
    return [file.uri for file in find(location).files]


def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    for location in (path, str(path), f"local:{path}", f"file://{path}"):
        assert file_exists(location)
        assert file_size(location) == 4
        with open_file(location) as file:
            file.seek(2)
            assert file.read() == b"xt"
    assert not file_exists(tmp_path)


def test_local_files_need_no_libraries_of_stores(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\n")
    code = (
        "import sys; from evo_core.data.raw.documents import read_documents\n"
        f"assert list(read_documents({str(tmp_path / 'a.txt')!r})) == ['text']\n"
        "assert not {'boto3', 'botocore', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.s3
def test_another_store(store: str) -> None:
    assert file_exists(f"{store}/b.txt")
    assert not file_exists(f"{store}/nothing.txt")
    assert file_size(f"{store}/b.txt") == 10
    assert list(read_documents(f"{store}/b.txt")) == ["two", "three"]
    assert list(read_documents(f"{store}/b.txt", byte_range=(3, 10))) == ["three"]


@pytest.mark.s3
def test_what_folders_and_patterns_mean(store: str, tmp_path: Path) -> None:
    assert find_files(store) == [f"{store}/a.txt", f"{store}/b.txt", f"{store}/sub/c.txt"]
    assert find_files(f"{store}/?.txt") == [f"{store}/a.txt", f"{store}/b.txt"]
    assert find_files(f"{store}/b.txt") == [f"{store}/b.txt"]
    for name in ("b.txt", "a.txt", ".hidden/x.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(str(tmp_path)) == [str(tmp_path / name) for name in ("a.txt", "b.txt", "sub/c.txt")]
    assert find_files(str(tmp_path / "**" / "*.txt"))[-1] == str(tmp_path / "sub" / "c.txt")
    for nothing in (f"{store}/x*.txt", str(tmp_path / "x*.txt"), f"{store}/none"):
        with pytest.raises(DataError, match=r"there is (no such file|nothing here)"):
            find_files(nothing)


@pytest.mark.s3
def test_what_cannot_be_read(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (tmp_path / "a.txt", f"{store}/z.txt"):
        for look in (open_file, file_size):
            with pytest.raises(DataError, match=r"[az]\.txt: there is no such file"):
                look(missing)
    with pytest.raises(DataError, match="this is a folder, not a file"):
        open_file(tmp_path)
    # The tests may run as root, whom no permission stops.
    assert "it may not be read from here (check who may read it)" in str(read_error("a.txt", PermissionError(13, "no")))
    with pytest.raises(LocationError, match=r'"nosuch://a/b": no place is known by "nosuch:'):
        open_file("nosuch://a/b")
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    monkeypatch.setenv("AWS_REGION", "a-new-one")  # an earlier test may have a client
    with pytest.raises(
        UserError, match=r"s3://a/b: the package boto3, .* not installed \(pip install 'evo-lm\[s3\]'\)"
    ):
        open_file("s3://a/b")


@pytest.mark.s3
def test_a_file_in_s3(s3: S3Server, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    # The other name of the server's variable.
    monkeypatch.setenv("S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    content = "".join(f"line {n} of a file\n" for n in range(5000))
    write_file(f"s3://{bucket}/raw/a.txt", content)
    (tmp_path / "a.txt").write_text(content)
    for number, place in enumerate((f"s3://{bucket}/raw/a.txt", tmp_path / "a.txt")):
        tokenize_file(TokenizeSpec(place, tmp_path / f"{number}.bin", tokenizer.path))
    assert read_bin(tmp_path / "0.bin") == read_bin(tmp_path / "1.bin")
    assert find_files(f"s3://{bucket}/raw") == [f"s3://{bucket}/raw/a.txt"]
    with pytest.raises(DataError, match="there is no such file"):
        open_file(f"s3://{bucket}/raw/b.txt")
