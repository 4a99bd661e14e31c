"""Save folders as tests look at them from outside, while a run writes into them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from evo_core.checkpoint import verify
from evo_core.checkpoint.folder import MANIFEST
from evo_core.errors import CheckpointError
from evo_core.storage.location import Location
from tests.ranks import run_on_ranks
from tests.s3_server import S3Server


class Watched(Protocol):
    """A save folder without snapshots."""

    @property
    def location(self) -> str:
        """For ``ckpt.save_ckpt_folder``."""

    def begun(self) -> set[str]:
        """Names of the checkpoint folders, complete or not."""

    def complete(self) -> set[str]:
        """Names of those that have a manifest."""

    def at(self, name: str) -> Location:
        """Where a checkpoint folder lies."""

    def check(self) -> None:
        """Read every complete checkpoint through and compare it with its manifest."""


class Disk:
    """A save folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.location = folder, str(folder)

    def begun(self) -> set[str]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return {path.name for path in found if not path.name.startswith(".")}

    def complete(self) -> set[str]:
        return {name for name in self.begun() if (self._folder / name / MANIFEST).exists()}

    def at(self, name: str) -> Location:
        return self._folder / name

    def check(self) -> None:
        run_on_ranks(lambda: _check(self), 1)


class Bucket:
    """A save folder in a new bucket of a server."""

    def __init__(self, server: S3Server) -> None:
        self.client, self.name = server.client(), server.new_bucket()
        self.location = f"boto3:s3://{self.name}.{urlsplit(server.endpoint).netloc}/runs/ckpt"

    def begun(self) -> set[str]:
        return {key.partition("/")[0] for key in self.keys()}

    def complete(self) -> set[str]:
        return {key.removesuffix(f"/{MANIFEST}") for key in self.keys() if key.endswith(f"/{MANIFEST}")}

    def at(self, name: str) -> Location:
        return f"{self.location}/{name}"

    def check(self) -> None:
        run_on_ranks(lambda: _check(self), 1)

    def keys(self) -> list[str]:
        """Of everything below the save folder, without what leads to it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix="runs/ckpt/")
        found = [entry["Key"].removeprefix("runs/ckpt/") for page in pages for entry in page.get("Contents", ())]
        return [key for key in found if not key.startswith(".")]

    def uploads(self) -> list[str]:
        """Keys of uploads that are neither complete nor taken back."""
        return [entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())]


def _check(saves: Watched) -> None:
    for name in saves.complete():
        try:
            verify(saves.at(name))
        except CheckpointError:
            if name in saves.complete():  # a live run removes old ones, their manifests first
                raise


def newest(names: set[str]) -> str | None:
    """The name of the checkpoint that was begun last, of one run's."""
    return max(names, key=_age, default=None)


def _age(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
    assert match, name
    return int(match[1]), int(match[2] or 1)
