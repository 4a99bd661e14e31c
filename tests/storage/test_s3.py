"""Writing in S3, and what goes wrong with a store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError, DataError, UserError
from evo_core.results_folder import check_folder, writing
from evo_core.storage import files
from evo_core.storage.location import LocationError
from evo_core.storage.s3 import transfer, writer
from evo_core.storage.s3.client import client_for
from evo_core.storage.s3.place import place_of
from evo_core.storage.streams import new_file
from tests.s3_proxy import broken_network
from tests.s3_server import ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY, S3Server

pytestmark = pytest.mark.s3

MEBIBYTE = 1 << 20


def listed(root: str) -> list[str]:
    return [file.path for file in files.list_files(root, lambda *what: None)]


def read(location: str) -> bytes:
    with files.open_file(location) as file:
        return file.read()


def unfinished(s3: S3Server, bucket: str) -> int:
    return len(s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []))


def test_the_verbs_by_both_spellings(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket()
    host = s3.endpoint.removeprefix("http://")
    local = tmp_path / "local"
    local.write_text("local")
    for number, root in enumerate((f"s3://{bucket}/x", f"boto3:s3://{bucket}.{host}/y")):
        files.write_file(f"{root}/a", f"语{number}")
        assert read(f"{root}/a") == f"语{number}".encode()
        assert not files.create_file(f"{root}/a", "no") and files.create_file(f"{root}/b", "b")
        assert not files.link_if_absent(local, f"{root}/a") and files.link_if_absent(local, f"{root}/c")
        with files.replacing(f"{root}/a") as draft:
            draft.write_bytes(b"new")
        files.link_or_copy(local, f"{root}/sub/d")
        files.copy_file(f"{root}/a", f"{root}/sub/e")
        assert listed(root) == ["a", "b", "c", "sub/d", "sub/e"]
        assert (read(f"{root}/a"), read(f"{root}/sub/d"), read(f"{root}/sub/e")) == (b"new", b"local", b"new")
        files.delete(f"{root}/sub")
        files.delete(f"{root}/b")
        files.delete(f"{root}/nothing")
        assert listed(root) == ["a", "c"]
        files.try_writing(root)
        assert listed(root) == ["a", "c"]
    with pytest.raises(LocationError, match="a local path is expected"):
        files.link_if_absent(f"s3://{bucket}/x/a", f"s3://{bucket}/x/z")


def test_folders(s3: S3Server) -> None:
    root = f"s3://{s3.new_bucket()}/folder"
    for replace in (False, True):
        with files.new_folder(root, replace=replace) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / str(replace)).write_text("x")
    assert listed(root) == ["sub/True"]
    with pytest.raises(OSError, match="something is there already"), files.new_folder(root):
        pass
    with pytest.raises(ZeroDivisionError), files.new_folder(root, replace=True) as draft:
        (draft / "half").write_text("x")
        raise ZeroDivisionError
    assert listed(root) == ["sub/True"]


def test_more_objects_than_a_request_names(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evo_core.storage.s3.objects._AT_ONCE", 4)
    root = f"s3://{s3.new_bucket()}/x"
    names = [f"{number:02}" for number in range(10)]
    for name in names:
        files.write_file(f"{root}/{name}", name)
    files.write_file(f"{root}y", "another's")
    assert listed(root) == names
    files.delete(root)
    assert listed(root.removesuffix("/x")) == ["xy"]


@pytest.mark.parametrize("error", ["MissingContentMD5", "NotImplemented"])
def test_a_store_that_deletes_one_object_at_a_time(s3: S3Server, error: str) -> None:
    bucket = s3.new_bucket()
    with broken_network(s3.endpoint) as network:
        network.refuses, network.error = b"?delete", error
        root = f"boto3:s3://{bucket}.{network.address}/many"
        for number in range(3):
            files.write_file(f"{root}/{number}", "x")
        files.try_writing(root)
        files.delete(f"{root}/0")
        assert listed(root) == ["1", "2"]
        files.delete(root)
        assert files.file_sizes(f"s3://{bucket}") == {}


def test_a_large_file_goes_in_pieces(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 5 * MEBIBYTE)
    bucket = s3.new_bucket()
    location, content = f"s3://{bucket}/big", os.urandom(6 * MEBIBYTE)
    with files.replacing(location) as draft:
        draft.write_bytes(content)
    assert read(location) == content
    found = files.file_info(location)
    assert found.tag.endswith("-2")
    copy = tmp_path / "new" / "copy"
    transfer.download([transfer.Wanted(place_of(location), found.size, found.tag, copy)])
    assert copy.read_bytes() == content
    assert not files.link_if_absent(copy, location) and files.link_if_absent(copy, f"{location}2")
    assert read(f"{location}2") == content
    assert unfinished(s3, bucket) == 0
    with files.open_file(location) as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == content[-3:]
        file.seek(4 * MEBIBYTE)
        assert file.read(10) == content[4 * MEBIBYTE : 4 * MEBIBYTE + 10]


def test_pieces_of_a_stream_are_of_one_size(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PIECE", 5 * MEBIBYTE)
    monkeypatch.setattr(writer, "MOST_PIECES", 2)
    location, content = f"s3://{s3.new_bucket()}/a", os.urandom(13 * MEBIBYTE)
    sizes: list[int] = []

    def sent(params: dict[str, Any], **_: Any) -> None:
        sizes.append(len(params["Body"]))

    events = client_for(place_of(location)).meta.events
    events.register("provide-client-params.s3.UploadPart", sent)
    with new_file(location, 12 * MEBIBYTE) as sink:
        for at in range(0, len(content), 700_000):
            sink.write(content[at : at + 700_000])
    events.unregister("provide-client-params.s3.UploadPart", sent)
    assert sorted(sizes) == [MEBIBYTE, 6 * MEBIBYTE, 6 * MEBIBYTE] and read(location) == content


def test_what_fails_leaves_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 5 * MEBIBYTE)
    bucket = s3.new_bucket()
    location = f"s3://{bucket}/x"
    with pytest.raises(ZeroDivisionError), files.replacing(location) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert not files.file_exists(location)

    def cut_off(descriptor: int, count: int, start: int) -> bytes:
        return b"" if start else b"x" * count

    monkeypatch.setattr(os, "pread", cut_off)
    with pytest.raises(OSError, match="became shorter"), files.replacing(location) as draft:
        draft.write_bytes(bytes(6 * MEBIBYTE))
    assert not files.file_exists(location) and unfinished(s3, bucket) == 0


def test_one_of_many_creates(s3: S3Server) -> None:
    location = f"s3://{s3.new_bucket()}/x"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: files.create_file(location, str(number)), range(8)))
    assert won.count(True) == 1
    assert read(location) == str(won.index(True)).encode()


WRITE: list[Callable[[str], object]] = [
    lambda location: files.write_file(location, "x"),
    lambda location: files.create_file(location, "x"),
    lambda location: files.try_writing(location),
    lambda location: files.delete(location),
]


@pytest.mark.parametrize(
    ("change", "reading", "writing_"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, "does not take these credentials", "does not take these credentials"),
        ({"AWS_ACCESS_KEY_ID": "n0body"}, "does not take these credentials", "does not take these credentials"),
        ({"AWS_ACCESS_KEY_ID": READER_KEY, "AWS_SECRET_ACCESS_KEY": READER_SECRET}, "", "may not be written"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "there are no credentials",
            "there are no credentials",
        ),
    ],
)
def test_keys_that_do_not_do(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], reading: str, writing_: str
) -> None:
    location = f"s3://{s3.new_bucket()}/x"
    files.write_file(location, "x")
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    said = []
    for write in WRITE:
        with pytest.raises(UserError, match=writing_) as caught, writing(location):
            write(location)
        said.append(str(caught.value))
    if reading:
        with pytest.raises(DataError, match=reading) as unreadable:
            listed(location)
        said.append(str(unreadable.value))
    else:
        assert read(location) == b"x"
    for line in said:
        assert line.startswith(f"{location}: ") and "AWS_ACCESS_KEY_ID" in line and "\n" not in line
        assert not any(secret in line for secret in ("wr0ng", "n0body", SECRET_KEY, READER_SECRET))


@pytest.mark.parametrize("ask", [lambda at: files.write_file(at, "new"), files.file_size, files.delete])
def test_credentials_that_are_replaced_once_they_have_expired(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object]
) -> None:
    def keep(key: str, secret: str) -> None:
        lines = "[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}"
        (tmp_path / "credentials").write_text("\n".join(lines))

    location = f"s3://{s3.new_bucket()}/a"
    files.write_file(location, "x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    keep("expired", "expired")
    with pytest.raises((OSError, DataError)):
        ask(location)
    keep(ACCESS_KEY, SECRET_KEY)
    ask(location)


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    location = "s3://no-such-bucket/x"
    says = "there is no bucket no-such-bucket"
    for write in WRITE:
        with pytest.raises(UserError, match=f"^{location}: .*{says}"), writing(location):
            write(location)
    with pytest.raises(UserError, match=f"^{location}: generation.output_folder: cannot be written: {says}"):
        check_folder(location, "generation.output_folder")
    with pytest.raises(DataError, match=says):
        listed(location)


def test_the_credentials_of_internevo(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    location = f"boto3:s3://{bucket}.{s3.endpoint.removeprefix('http://')}/x"
    monkeypatch.setenv("S3_ACCESS_KEY_ID", os.environ["AWS_ACCESS_KEY_ID"])
    with pytest.raises(ConfigError, match="S3_SECRET_ACCESS_KEY_ID: is not set, and S3_ACCESS_KEY_ID is"):
        files.write_file(location, "x")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY_ID", SECRET_KEY)
    for name in s3.environment:
        monkeypatch.delenv(name)
    files.write_file(location, "x")
    assert read(location) == b"x"


def test_a_connection_that_breaks(s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    bucket, content = s3.new_bucket(), os.urandom(3 * MEBIBYTE)
    files.write_file(f"s3://{bucket}/x", content)
    with broken_network(s3.endpoint) as network, caplog.at_level(logging.WARNING):
        location = f"boto3:s3://{bucket}.{network.address}/x"
        with files.open_file(location) as file:
            network.cut = MEBIBYTE // 2
            assert file.read() == content
        network.cut = 0
        assert listed(f"boto3:s3://{bucket}.{network.address}") == ["x"]
        assert network.cuts == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{location}: ") and said.endswith("trying again for up to 120 s")


def test_an_answer_that_is_lost(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 5 * MEBIBYTE)
    bucket, big = s3.new_bucket(), tmp_path / "big"
    big.write_bytes(os.urandom(6 * MEBIBYTE))
    with broken_network(s3.endpoint) as network:
        location = f"boto3:s3://{bucket}.{network.address}/x"
        network.cut = 0
        assert files.create_file(location, "mine"), "the store has it, though it could not say so"
        network.cut = 0
        assert not files.create_file(location, "again")
        assert read(location) == b"mine" and network.cuts == 2
        ask = transfer.Written.__call__

        def lose_the_last(self: transfer.Written, write: Callable[[object], object]) -> bool:
            network.cut = 0
            return ask(self, write)

        monkeypatch.setattr(transfer.Written, "__call__", lose_the_last)
        assert files.link_if_absent(big, f"{location}-big"), "complete, though the store could not say so"
    assert read(f"s3://{bucket}/x-big") == big.read_bytes()


def test_a_store_that_stops_answering(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    files.write_file(f"s3://{bucket}/x", bytes(3 * MEBIBYTE))
    monkeypatch.setenv("EVO_S3_PATIENCE", "1")
    with broken_network(s3.endpoint) as network:
        location = f"boto3:s3://{bucket}.{network.address}/x"
        reading = files.open_file(location)
        reading.read(10)
        network.silent = True
        with pytest.raises(TimeoutError, match="the store gave no good answer"), reading:
            reading.read()
        said = r"/x: it cannot be read \(the store gave no good answer for 1 s .*PATIENCE"
        with pytest.raises(DataError, match=said):
            files.copy_file(location, os.devnull)
        with pytest.raises(UserError, match=r"/x: cannot be written: the store gave no .*PATIENCE"), writing(location):
            files.write_file(location, "x")
    with pytest.raises(TimeoutError):
        files.write_file(location, "x")  # nobody listens there any more
    monkeypatch.setenv("EVO_S3_PATIENCE", "soon")
    with pytest.raises(ConfigError, match='EVO_S3_PATIENCE: "soon" is no number of seconds'):
        files.write_file(location, "x")


def test_another_version_is_not_read_on(s3: S3Server) -> None:
    location = f"s3://{s3.new_bucket()}/x"
    files.write_file(location, bytes(3 * MEBIBYTE))
    with files.open_file(location) as file:
        file.read(10)
        files.write_file(location, os.urandom(3 * MEBIBYTE))
        with pytest.raises(OSError, match="this file has changed since it was listed"):
            file.read()
