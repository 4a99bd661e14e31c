"""Raw files to token objects of the store, in whichever process does it: the run's own, or a task of an array."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.launch.launcher import Stopped
from tasks.raw.listing import RawFile
from tasks.raw.token_objects import DONE, TOKENS
from tasks.raw.unchanged import StillAsListed
from tasks.store import Store
from tasks.store.json_file import read_object, write_json

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenize_file import TokenizeResult, TokenizeSpec


@dataclass(frozen=True)
class TokenizeWork:
    """Files to tokenize.

    Attributes:
        files: by the id of the object that each is to become.
        settings: the parameters of `data.tokenize` but the tokenizer, as plain data.
    """

    store: Store
    files: Mapping[str, RawFile]
    tokenizer: Path
    settings: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files.values())

    def done(self) -> dict[str, dict[str, Any]]:
        """Counts of those objects that are there already."""
        found = {object_id: read_object(self.store.object(object_id) / DONE) for object_id in self.files}
        return {object_id: counts for object_id, counts in found.items() if counts is not None}

    def forget(self) -> None:
        """Take away the word that an object is there."""
        for object_id in self.files:
            (self.store.object(object_id) / DONE).unlink(missing_ok=True)

    def without(self, object_ids: Mapping[str, Any]) -> TokenizeWork:
        """The work that is left when these objects are there."""
        left = {object_id: file for object_id, file in self.files.items() if object_id not in object_ids}
        return TokenizeWork(self.store, left, self.tokenizer, self.settings)

    def carry_out(
        self,
        *,
        workers: int | None,
        on_progress: Callable[[int, int, int], None],
        executor: Executor | None = None,
        stop: threading.Event | None = None,
        on_file: Callable[[RawFile], None] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Tokenize the files, the largest first; each object is there once it is whole and its file unchanged.

        Args:
            on_progress: called now and then with (bytes done, bytes in all, tokens).
            on_file: called, from another thread, with each file whose object is there.

        Raises:
            DataError: a file is wrong, gone or changed.
            Stopped: `stop` was set.
        """
        from evo_core.data.tokenize.fan_out import Interrupted, tokenize_files

        if not self.files:
            return {}
        ids = sorted(self.files, key=lambda object_id: -self.files[object_id].size)
        total = self.bytes
        with StillAsListed(self.store.inventory) as check:
            for file in self.files.values():
                check.before(file)

            def on_done(number: int, result: TokenizeResult) -> None:
                done = self.store.object(ids[number]) / DONE
                file = self.files[ids[number]]

                def accept() -> None:
                    write_json(done, _counts(result))
                    if on_file is not None:
                        on_file(file)

                check.after(file, accept)

            try:
                results = tokenize_files(
                    [self._spec(object_id) for object_id in ids],
                    workers=workers,
                    executor=executor,
                    on_done=on_done,
                    on_progress=lambda share, tokens: on_progress(round(share * total), total, tokens),
                    stop=stop,
                )
            except Interrupted as stopped:
                raise Stopped(str(stopped)) from None
        return {object_id: _counts(result) for object_id, result in zip(ids, results, strict=True)}

    def _spec(self, object_id: str) -> TokenizeSpec:
        from evo_core.data.tokenize.tokenize_file import TokenizeSpec

        folder = self.store.object(object_id)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {**self.settings, "text_keys": tuple(self.settings["text_keys"])}
        return TokenizeSpec(self.files[object_id].uri, folder / TOKENS, self.tokenizer, **settings)


def _counts(result: TokenizeResult) -> dict[str, int]:
    return {"documents": result.documents, "tokens": result.tokens, "skipped": result.skipped, "blank": result.blank}
