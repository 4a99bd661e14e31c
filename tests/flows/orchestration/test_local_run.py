"""Which flow a pipeline is run by, and what a run tells Prefect."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from flows.orchestration.local_run import _environment, _flush, _told_to_prefect, flow_for
from flows.orchestration.request import Request
from flows.orchestration.server import Server
from tests.flows.orchestration.small import Small


def plan_of(steps: Iterable[tuple[str, str]]) -> Any:
    made = [SimpleNamespace(kind=SimpleNamespace(name=name, output=output)) for name, output in steps]
    return SimpleNamespace(pipeline=SimpleNamespace(steps=made))


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([("source.files", "raw"), ("data.shard", "dataset")], "data-refresh"),
        ([("data.shard", "dataset"), ("train.pretrain", "model")], "pretrain"),
        ([("my.own", "model")], "pretrain"),
        ([("train.finetune", "model"), ("eval.holdout", "scores")], "finetune"),
    ],
)
def test_the_flow_follows_from_what_is_made(steps: list[tuple[str, str]], name: str) -> None:
    request = Request(pipeline="x.yaml", set=["a=b"], root="r")
    flow, parameters = flow_for(request, plan_of(steps))
    assert flow.name == name
    assert parameters.model_dump() == request.model_dump()


def test_prefect_is_told_for_the_run_only(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import get_current_settings

    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_LOGGING_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    told = _environment(Server("http://127.0.0.1:1/api", started=True), small.request())
    (small.root / "prefect").mkdir(parents=True)
    before = dict(os.environ)
    handlers = list(logging.getLogger().handlers)
    with _told_to_prefect(told):
        assert get_current_settings().api.url == "http://127.0.0.1:1/api"
        assert get_current_settings().home == small.root / "prefect"
    assert get_current_settings().api.url is None
    assert dict(os.environ) == before
    logging.getLogger().handlers[:] = handlers


def test_a_users_own_server_keeps_its_home(small: Small) -> None:
    assert "PREFECT_HOME" not in _environment(Server("http://there/api", started=False), small.request())


def test_a_user_who_asks_for_prefects_log_gets_it(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("http://there/api", started=False)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    assert "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL" not in _environment(server, small.request())


def test_what_is_left_is_sent_where_a_loop_runs_too() -> None:
    """As in a notebook, where Prefect would give something to be awaited."""

    async def inside() -> None:
        _flush()
        gc.collect()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(inside())
    assert [str(each.message) for each in told if "never awaited" in str(each.message)] == []
