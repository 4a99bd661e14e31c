"""One grammar of locations: what is a path, what is in a store, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.storage.location import LocationError, check_location, is_hub_id, is_remote, is_unprefixed, local_path

UNKNOWN = [
    "gs://b/x", "hdfs://x/y", "az://b/x", "oss://b/x", "memory://x", "s3a://b/x", "S3://b/x", "s3:/b/x", "volc:vc://b/x",
    "boto3:gs://b/x", "boto3:x", "lokal:x", "LOCAL:x", "C:\\x", "http://x/y", " s3://b/x", " local:x", "gs:/x",
]  # fmt: skip
NOTHING = ["", " ", "\t", "local:", "local: ", "file://", "s3://", "s3:///key", "boto3:s3://", "a\0b"]


@pytest.mark.parametrize("text", [*UNKNOWN, *NOTHING, "file://relative/x"])
def test_what_is_no_location(text: str) -> None:
    with pytest.raises(LocationError) as caught:
        local_path(text, "ckpt.save_ckpt_folder")
    line = str(caught.value)
    assert line.startswith("ckpt.save_ckpt_folder: ")
    assert "\n" not in line
    with pytest.raises(LocationError):
        check_location(text)


def test_a_server_and_no_secret_are_in_a_location() -> None:
    with pytest.raises(
        LocationError, match=r'"boto3:s3://bucket/x" names no server \(boto3:s3://BUCKET.ENDPOINT/KEY\)'
    ):
        check_location("boto3:s3://bucket/x")
    for text in ("s3://key:hush@bucket/x", "boto3:s3://bucket.key:hush@host/x"):
        with pytest.raises(LocationError, match="AWS_SECRET_ACCESS_KEY") as caught:
            check_location(text)
        assert "hush" not in str(caught.value)
    check_location("s3://bucket/a@b")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("lokal:x", "local:"), ("S3://b/x", "s3://"), ("flie:///x", "file://"), ("boto3:s3:/b", "boto3")],
)
def test_the_nearest_prefix_is_named(text: str, nearest: str) -> None:
    with pytest.raises(LocationError, match=f'did you mean "{nearest}'):
        check_location(text)


def test_paths() -> None:
    here = {
        "a/b": "a/b", ".": ".", "/x": "/x", "local:x": "x", "local:/x": "/x", "file:///x y": "/x y", "file:/x": "/x",
        "./gs://x": "gs:/x", "local:gs://x": "gs:/x", "2026-01-01T10:00": "2026-01-01T10:00", "a/b:c": "a/b:c",
        "~": str(Path.home()), "~/x": str(Path.home() / "x"), "local:~/x": str(Path.home() / "x"), "语料": "语料",
    }  # fmt: skip
    assert {text: str(local_path(text)) for text in here} == here
    assert local_path(Path("gs:x")) == Path("gs:x"), "a Path is a path"
    with pytest.raises(LocationError, match="there is no such home"):
        local_path("~nobody-of-that-name/x")


def test_stores_and_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("s3://bucket/key", "s3://bucket", "boto3:s3://bucket.10.0.0.1:9000/x"):
        assert is_remote(text)
        check_location(text)
        with pytest.raises(LocationError, match="a local path is expected"):
            local_path(text)
    assert not any(map(is_remote, ["local:s3://x", "x", "gs://x"]))
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("internlm/internlm-7b")
    (tmp_path / "internlm/internlm-7b").mkdir(parents=True)
    assert not is_hub_id("internlm/internlm-7b")
    assert [is_unprefixed(text) for text in ("x", "/x", "local:x", "file:///x", "s3://b/x")] == [True, True] + 3 * [
        False
    ]
