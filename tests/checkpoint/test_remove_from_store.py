"""A checkpoint in a store that is being removed: wherever a kill ends that, what is left is found and goes later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from evo_core.checkpoint.folder import MANIFEST, find, remove
from evo_core.checkpoint.run import Run
from evo_core.storage.files import file_sizes, write_file
from evo_core.storage.s3.client import client_for
from evo_core.storage.s3.place import place_of
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3


class Killed(BaseException):
    """Ends the process as far as this one can tell."""


@contextmanager
def killed_after(uri: str, requests: int) -> Iterator[None]:
    """A block that ends when it makes more requests than these."""
    events, made = client_for(place_of(uri)).meta.events, 0

    def begins(**_: Any) -> None:
        nonlocal made
        made += 1
        if made > requests:
            raise Killed

    events.register("before-call.s3", begins)
    try:
        yield
    finally:
        events.unregister("before-call.s3", begins)


def test_what_a_kill_leaves_of_it_is_found(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evo_core.storage.s3.objects._AT_ONCE", 2)
    bucket, client, left = s3.new_bucket(), s3.client(), {""}
    root = f"s3://{bucket}/run"
    for requests in range(30):
        Run("mine").write(f"{root}/{requests}")
        for name in ("model/a", "model/b", "train_state.json", MANIFEST):
            write_file(f"{root}/{requests}/{name}", name)
        client.create_multipart_upload(Bucket=bucket, Key=f"run/{requests}/model/c")
        with suppress(Killed), killed_after(root, requests):
            remove(f"{root}/{requests}")
        left = file_sizes(root).keys() | {
            each["Key"] for each in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        }
        if not left:
            break
        (found,) = find(root)
        assert found.run is not None and found.run.id == "mine"
        assert not found.complete or len(left) == 6
        remove(found.path)
        assert file_sizes(root) == {} and "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    assert not left
