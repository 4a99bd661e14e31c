"""The index that the processes of a node share: built once, the same for all, and gone in the end."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_core.data import TrainData
from evo_core.data.corpus.index import Epochs, Index, SharedIndex
from evo_core.errors import ConfigError
from evo_core.storage.atomic import draft_name
from tests.data.corpora import job, numbered, write_bin, write_folder
from tests.forked import FORK, in_a_process_of_nobody


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = numbered(80)
    return write_folder(tmp_path / "data", {"en": [documents[:30], documents[30:35], []], "cn": [documents[35:]]})


def rows(data: TrainData, steps: int = 12) -> list[Any]:
    return [[t.tolist() for t in (b.input_ids, b.labels, b.type_ids)] for b in map(data.batch, range(steps))]


def left(shm: Path) -> list[str]:
    return sorted(path.name for path in shm.iterdir())


@pytest.mark.parametrize("options", [{}, {"use_packed_dataset": False}, {"packing": "internevo"}], ids=str)
def test_shared_and_own_give_the_same(tmp_path: Path, folder: Path, options: dict[str, Any]) -> None:
    shm = tmp_path / "shm"
    own = TrainData(job(folder, **options), dp_rank=0, dp_size=2)
    cfg = job(folder, use_shm=True, shm_path=str(shm), **options)
    first, second = (TrainData(cfg, dp_rank=0, dp_size=2) for _ in range(2))
    expected = rows(own)
    assert rows(first) == rows(second) == expected
    assert first.digest == second.digest == own.digest
    first.close()
    assert len(left(shm)) == 1
    assert rows(second) == expected
    second.close()
    assert left(shm) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_two_users_read_the_same_data_alike(tmp_path: Path, folder: Path) -> None:
    cfg = job(folder, use_shm=True, shm_path=str(tmp_path / "shm"))
    own = TrainData(cfg, dp_rank=0, dp_size=1)
    expected = rows(own)

    def read() -> None:
        other = TrainData(cfg, dp_rank=0, dp_size=1)
        assert rows(other) == expected
        other.close()

    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | 0o055)
    assert in_a_process_of_nobody(tmp_path, read) == 0
    assert left(tmp_path / "shm") == [own._index.folder.name]
    own.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_nothing_is_read_from_a_folder_of_another_user(tmp_path: Path) -> None:
    SharedIndex(tmp_path / "shm", "key").close()
    (planted := tmp_path / "shm" / f"evo-{os.getuid()}-key").mkdir(mode=0o777)
    os.chown(planted, 65534, 65534)
    with pytest.raises(ConfigError, match=r"data\.shm_path: no index can be kept in .*another user's"):
        SharedIndex(tmp_path / "shm", "key")


def _rank(cfg: Any, rank: int, begin: Any, results: Any) -> None:
    made = []
    write = np.save

    def counting(path: Any, *arguments: Any, **options: Any) -> None:
        made.append(Path(path).parent.name)
        write(path, *arguments, **options)

    np.save = counting
    begin.wait(30)
    data = TrainData(cfg, dp_rank=rank, dp_size=4)
    result = rows(data)
    begin.wait(30)
    data.close()
    results.put((rank, made, result))


def test_many_ranks_build_it_once(tmp_path: Path, folder: Path) -> None:
    shm = tmp_path / "shm"
    cfg = job(folder, use_shm=True, shm_path=str(shm))
    begin, results = FORK.Barrier(4), FORK.SimpleQueue()
    ranks = [FORK.Process(target=_rank, args=(cfg, rank, begin, results)) for rank in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0] * 4
    found = sorted(results.get() for _ in ranks)
    made = [name for _, names, _ in found for name in names]
    assert len([name for name in made if "corpus" in name]) == 10, "two types' tables, digests, ids and cache, once"
    for rank, _, result in found:
        assert result == rows(TrainData(job(folder), dp_rank=rank, dp_size=4))
    assert left(shm) == []


def _killed(cfg: Any) -> None:
    TrainData(cfg, dp_rank=0, dp_size=1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path, folder: Path) -> None:
    shm = tmp_path / "shm"
    process = FORK.Process(target=_killed, args=(job(folder, use_shm=True, shm_path=str(shm), seed=1),))
    process.start()
    process.join(30)
    before = left(shm)
    assert len(before) == 1
    data = TrainData(job(folder, use_shm=True, shm_path=str(shm), seed=2), dp_rank=0, dp_size=1)
    assert len(left(shm)) == 1
    assert left(shm) != before
    data.close()
    assert left(shm) == []


def test_what_was_killed_while_it_swept_goes_with_the_next(tmp_path: Path) -> None:
    def marked() -> None:
        draft_name(draft_name(tmp_path / "evo-key")).mkdir()

    process = FORK.Process(target=marked)
    process.start()
    process.join(30)
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["..evo-"]
    SharedIndex(tmp_path, "other").close()
    assert left(tmp_path) == []


def test_another_file_is_another_index(tmp_path: Path, folder: Path) -> None:
    cfg = job(folder, use_shm=True, shm_path=str(tmp_path / "shm"))
    before = TrainData(cfg, dp_rank=0, dp_size=1)
    write_bin(folder / "en" / "train_009.bin", [[1, 2, 3]])
    after = TrainData(cfg, dp_rank=0, dp_size=1)
    assert after.tokens["en"] == before.tokens["en"] + 3
    assert len(left(tmp_path / "shm")) == 2


def test_without_the_cache_of_tokens(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "file" / "below"))
    cfg = job(folder, use_shm=True, shm_path=str(tmp_path / "shm"))
    first, second = (TrainData(cfg, dp_rank=0, dp_size=1) for _ in range(2))
    assert rows(first) == rows(second) == rows(TrainData(job(folder), dp_rank=0, dp_size=1))


def test_a_place_that_cannot_be_written(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.shm_path: no index can be kept in .*file/shm"):
        TrainData(job(folder, use_shm=True, shm_path=str(tmp_path / "file" / "shm")), dp_rank=0, dp_size=1)


def test_old_epochs_are_forgotten(tmp_path: Path) -> None:
    index = SharedIndex(tmp_path, "key")
    epochs = Epochs(index, "order", lambda epoch: {"numbers": np.arange(epoch + 1000)}, kept=2)
    assert [len(epochs(epoch)["numbers"]) for epoch in (0, 1, 2, 1, 5, 0)] == [1000, 1001, 1002, 1001, 1005, 1000]
    assert [path.name for path in index.folder.iterdir() if path.is_dir()] in (
        ["order-0", "order-5"],
        ["order-5", "order-0"],
    )
    index.close()
    index.close()


def test_threads_compute_an_epoch_once() -> None:
    made = []

    def make(epoch: int) -> dict[str, np.ndarray]:
        made.append(epoch)
        return {"numbers": np.arange(3)}

    epochs = Epochs(Index(), "order", make, kept=2)
    threads = [threading.Thread(target=epochs, args=(0,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0]
