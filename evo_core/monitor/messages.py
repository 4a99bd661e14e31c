"""An event in the form that a web hook takes."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from evo_core.monitor.events import Event


def feishu(event: Event, title: str) -> bytes:
    """A rich text of Feishu's and Lark's bots, as InternEvo posts it."""
    content = [[{"tag": "text", "text": event.text}]]
    post = {"zh_cn": {"title": title, "content": content}}
    return _encoded({"timestamp": int(event.time), "msg_type": "post", "content": {"post": post}})


def slack(event: Event, title: str) -> bytes:
    """A message of Slack's incoming web hooks; ``&``, ``<`` and ``>`` would be markup."""
    text = f"{title}: {event.text}"
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, written)
    return _encoded({"text": text})


def plain(event: Event, title: str) -> bytes:
    """For any other receiver: the text under the name by which most chats look for it, and what it is made of."""
    about = {"event": event.kind, "step": event.step, "rank": event.rank, "time": event.time}
    return _encoded({"text": f"{title}: {event.text}", "title": title, **about})


def written_for(key: str, address: str, event: Event, title: str) -> bytes:
    """The body for an address.

    Args:
        key: the setting that names the address.
        title: of the run.
    """
    if key.endswith("feishu_alert_address"):
        return feishu(event, title)
    host = urlsplit(address).hostname or ""
    return (slack if host == "slack.com" or host.endswith(".slack.com") else plain)(event, title)


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
