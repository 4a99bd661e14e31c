"""Sending what there is to say of a run's end. Nobody who is told, or cannot be, changes the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from evo_core.monitor.delivery import Delivery, NotDelivered, taken_by_feishu
from flows.notify.settings import Outcome
from flows.pipeline.failures import StepFailed, reason
from flows.pipeline.plan import Plan

PATIENCE = 15.0
"""Seconds that an address may take."""
COMMAND_PATIENCE = 60.0
"""Seconds that a command may take."""
_LONGEST = 500
"""Characters of a cause; a chat shows no more of it, and the log has it all."""


def tell(plan: Plan, error: BaseException | None, say: Callable[[str], None]) -> None:
    """Tell those whom the pipeline's `notify:` block names how a run has ended; returns within a bounded time.

    Args:
        error: why the run failed; None if all its steps were made.
        say: takes a line on a message that did not arrive.
    """
    notify = plan.pipeline.notify
    outcome: Outcome = "completed" if error is None else "failed"
    if notify is None or outcome not in notify.on:
        return
    told = facts(plan, error)
    ways: dict[str, Callable[[], None]] = {}
    if notify.webhook is not None:
        ways["webhook"] = lambda: _post(str(notify.webhook), told)
    if notify.command is not None:
        ways["command"] = lambda: _call(notify.command or [], told)
    for name, send in ways.items():
        if (trouble := _tried(send, PATIENCE if name == "webhook" else COMMAND_PATIENCE + 1)) is not None:
            say(f"notify.{name}: the message was not delivered: {plan.pipeline.secrets.conceal(trouble)}")


def facts(plan: Plan, error: BaseException | None) -> dict[str, Any]:
    """What is told: `text`, one sentence with the step and the cause, and what it is made of."""
    step = error.step if isinstance(error, StepFailed) else None
    cause = None if error is None else _one_sentence(plan.pipeline.secrets.conceal(_words(error)))
    if error is None:
        text = f"{plan.pipeline.name} completed: {len(plan.steps)} steps are there"
    else:
        text = f"{plan.pipeline.name} failed{f' at step {step}' if step else ''}: {cause}"
    return {
        "text": text,
        "outcome": "completed" if error is None else "failed",
        "pipeline": plan.pipeline.name,
        "step": step,
        "cause": cause,
        "run": plan.run_id,
        "store": plan.root,
    }


def _words(error: BaseException) -> str:
    return reason(error.cause if isinstance(error, StepFailed) else error).strip() or type(error).__name__


def _one_sentence(words: str) -> str:
    """The first line of an error's words: lines of a log may follow."""
    first = words.splitlines()[0].rstrip(":")
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]} …"


def _tried(send: Callable[[], None], patience: float) -> str | None:
    """Why something could not be sent in time, or None. In a thread: an address can answer a byte at a time."""
    troubles: list[str] = []

    def run() -> None:
        try:
            send()
        except NotDelivered as error:
            troubles.append(str(error))
        except Exception as error:
            troubles.append(reason(error))

    thread = threading.Thread(target=run, name="notify", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        return f"no answer in {patience:.0f} s"
    return troubles[0] if troubles else None


def _post(address: str, told: dict[str, Any]) -> None:
    host = urlsplit(address).hostname or ""
    is_feishu = host.endswith((".feishu.cn", ".larksuite.com"))
    body: dict[str, Any] = told
    if is_feishu:
        body = {"msg_type": "text", "content": {"text": told["text"]}}
    elif host == "slack.com" or host.endswith(".slack.com"):
        body = {"text": _for_slack(told["text"])}
    taken = taken_by_feishu if is_feishu else lambda _: None
    Delivery("notify.webhook", address, taken=taken).post(json.dumps(body, ensure_ascii=False).encode(errors="replace"))


def _for_slack(text: str) -> str:
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, written)
    return text


def _call(command: list[str] | str, told: dict[str, Any]) -> None:
    """Run the command with the facts on its input, and in EVO_TEXT, EVO_OUTCOME, … for a line of shell."""
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    variables = {f"EVO_{name.upper()}": str(value or "") for name, value in told.items() if name != "store"}
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:  # a pipe would wait for its children
        given.write(json.dumps(told, ensure_ascii=False).encode(errors="replace") + b"\n")
        given.seek(0)
        process = subprocess.Popen(
            words,
            stdin=given,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        try:
            status = process.wait(COMMAND_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise NotDelivered(f"the command did not end in {COMMAND_PATIENCE:.0f} s and was ended") from None
        printed.seek(0)
        said = printed.read(1 << 16).decode(errors="replace").strip().splitlines()[-1:]
    if status:
        raise NotDelivered(f"the command ended with status {status}{': ' + said[0] if said else ''}")
