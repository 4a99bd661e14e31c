"""Messages come as the receiver wants them, and what is wrong with a receiver is said once and harms nobody."""

from __future__ import annotations

import json
import logging
import time

import pytest

from evo_core.monitor import delivery
from evo_core.monitor.delivery import Delivery, taken_by_feishu
from evo_core.monitor.events import Event
from evo_core.monitor.messages import written_for
from tests.monitor.receiver import Receiver, receiving, until
from tests.replaced import replaced

EVENT = Event("overflow", "step 7 has no <update> & more: größer", 7, 1700000000.9, 3)
KEY = "monitor.alert.webhooks.0"
FEISHU = "monitor.alert.feishu_alert_address"


def test_feishu_byte_for_byte() -> None:
    with receiving() as found:
        sender = Delivery(FEISHU, found.url, taken=taken_by_feishu)
        sender.send(written_for(FEISHU, found.url, EVENT, "123_job"))
        sender.close()
    assert found.bodies == [
        '{"timestamp": 1700000000, "msg_type": "post", "content": {"post": {"zh_cn": {"title": "123_job", "content": '
        '[[{"tag": "text", "text": "step 7 has no <update> & more: größer"}]]}}}}'.encode()
    ]


@pytest.mark.parametrize(
    ("address", "body"),
    [
        (
            "https://hooks.slack.com/services/x",
            {"text": "123_job: step 7 has no &lt;update&gt; &amp; more: größer"},
        ),
        (
            "https://notslack.com/x",
            {
                "text": "123_job: step 7 has no <update> & more: größer",
                "title": "123_job",
                "event": "overflow",
                "step": 7,
                "rank": 3,
                "time": 1700000000.9,
            },
        ),
    ],
)
def test_other_forms(address: str, body: dict[str, object]) -> None:
    assert json.loads(written_for(KEY, address, EVENT, "123_job")) == body


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("refuses", "status 500"),
        ("redirects", "status 307 (a redirect, which is not followed)"),
        ("closes", "no JSON object"),
        ("says nothing", "RemoteDisconnected"),
        ("nonsense", "no JSON object"),
        ("a code", "code 19001"),
    ],
)
def test_what_is_not_taken_is_said_once_without_the_address(
    way: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(way) as bad, receiving() as good:
        senders = [Delivery(FEISHU, each.url, taken=taken_by_feishu) for each in (bad, good)]
        for sender in senders:
            for _ in range(3):
                sender.send(b"{}")
        for sender in senders:
            sender.close()
    assert len(bad.bodies) == len(good.bodies) == 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.getMessage() and FEISHU in record.getMessage()
    assert Receiver.SECRET not in caplog.text


def test_a_closed_port(caplog: pytest.LogCaptureFixture) -> None:
    with receiving() as gone:
        pass
    sender = Delivery(KEY, gone.url)
    sender.send(b"{}")
    sender.close()
    assert "Connection refused" in caplog.text and Receiver.SECRET not in caplog.text


def test_one_that_hangs_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with receiving("hangs") as found, replaced(delivery, "_WAITING", 2):
        sender = Delivery(KEY, found.url)
        sender.send(b"{}")
        until(lambda: found.bodies)
        began = time.monotonic()
        for _ in range(1000):
            sender.send(b"{}")
        sender.close(0.2)
        assert time.monotonic() - began < 5  # it hangs for as long as the block lasts
    assert caplog.text.count("was not delivered") == 1


def test_of_heartbeats_that_wait_the_newest_is_sent() -> None:
    with receiving("hangs") as found:
        sender = Delivery(KEY, found.url, newest=True)
        sender.send(b"0")
        until(lambda: found.bodies)
        for number in range(1, 100):
            sender.send(str(number).encode())
        assert sender._waiting.get_nowait() == b"99"
        assert sender._waiting.empty()


def test_no_proxy_is_asked_for_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving() as found:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        sender = Delivery(KEY, found.url)
        sender.send(b"{}")
        sender.close()
    assert (found.bodies, proxy.bodies) == ([b"{}"], [])
