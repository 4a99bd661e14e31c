"""Small step kinds to try the engine with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from evo_core.errors import ConfigError
from tasks import kind
from tasks.kind import Facts, Input, Kind, Source, StepContext
from tasks.launch.launcher import Stopped
from tasks.params.paths import PipelinePath
from tasks.store.digests import DigestMemory


class NumberParams(kind.Params):
    file: PipelinePath


class Number(Source[NumberParams, kind.Runtime]):
    """A number from a file."""

    name = "test.number"
    output = "number"
    params_type = NumberParams

    def digest(self, params: NumberParams, remember: Path) -> tuple[str, Facts]:
        if not params.file.exists():
            raise ConfigError(f"the file {params.file} does not exist", key="file")
        memory = DigestMemory(remember)
        digest = memory.of(params.file).digest
        memory.save()
        return digest, {"number": int(params.file.read_text())}

    def run(self, ctx: StepContext[NumberParams, kind.Runtime]) -> dict[str, Any]:
        (ctx.folder / "number").write_text(ctx.params.file.read_text())
        return {"number": int(ctx.params.file.read_text())}


class AddParams(kind.Params):
    amount: int = Field(1, ge=0)
    late: str = "as before"


class AddRuntime(kind.Runtime):
    seconds: float = 0.0
    fail: bool = False
    kill: bool = False


class Add(Kind[AddParams, AddRuntime]):
    """A number plus an amount; can be slow, fail, or kill its own process."""

    name = "test.add"
    inputs: ClassVar[Mapping[str, Input]] = {"to": Input("number"), "more": Input("number", optional=True)}
    output = "number"
    params_type = AddParams
    runtime_type = AddRuntime
    introduced: ClassVar[Mapping[str, Any]] = {"late": "as before"}

    def check(self, params: AddParams, runtime: AddRuntime, facts: Mapping[str, Facts], where: str) -> None:
        if facts["to"].get("number") == 13:
            raise ConfigError("13 brings bad luck", key=f"{where}.params.amount", hint="take another number")

    def facts(self, params: AddParams, runtime: AddRuntime, facts: Mapping[str, Facts]) -> Facts:
        return {"number": facts["to"]["number"] + params.amount} if "number" in facts["to"] else {}

    def run(self, ctx: StepContext[AddParams, AddRuntime]) -> dict[str, Any]:
        with (ctx.work / "starts").open("a") as starts:
            starts.write(f"{os.getpid()}\n")
        (ctx.folder / "half").write_text("half")
        end = time.monotonic() + ctx.runtime.seconds
        while time.monotonic() < end:
            if ctx.stop.wait(0.02):
                raise Stopped("told to stop")
            ctx.on_progress({"done": 1, "total": 2, "unit": "halves"})
        if ctx.runtime.fail:
            raise RuntimeError("the sum overflowed")
        if ctx.runtime.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        (ctx.folder / "half").unlink()
        total = sum(int((a.path / "number").read_text()) for a in ctx.inputs.values()) + ctx.params.amount
        (ctx.folder / "number").write_text(str(total))
        return {"number": total}


class Word(Kind[kind.Params, kind.Runtime]):
    """Makes something that is no number."""

    name = "test.word"
    output = "word"

    def run(self, ctx: StepContext[kind.Params, kind.Runtime]) -> dict[str, Any]:
        (ctx.folder / "word").write_text("word")
        return {}


class EndParams(kind.Params):
    how: str = "returns nothing"


class End(Kind[EndParams, kind.Runtime]):
    """Makes its artifact, and then ends in one of the ways that code ends."""

    name = "test.end"
    output = "word"
    params_type = EndParams

    def run(self, ctx: StepContext[EndParams, kind.Runtime]) -> Any:
        (ctx.folder / "word").write_text("word")
        if ctx.params.how == "a file of the manifest's name":
            (ctx.folder / "attempt.json").write_text("{}")
        if ctx.params.how == "a file's name that is not UTF-8":
            Path(os.fsdecode(os.fsencode(ctx.folder) + b"/\xff")).write_text("odd")
            return {"first": os.fsdecode(b"\xff")}
        return ENDS.get(ctx.params.how, dict)()


def _raise(error: BaseException) -> Any:
    raise error


def _numpy() -> dict[str, Any]:
    import numpy as np

    return {"words": np.int64(3), "share": np.float32(0.5), "nested": {"list": [np.int32(1), (2, 3)]}}


ENDS: dict[str, Any] = {
    "returns nothing": lambda: None,
    "numpy": _numpy,
    "a path": lambda: {"fine": 1, "where": Path("/x")},
    "a list": lambda: ["words", 3],
    "a number for a name": lambda: {3: 4},
    "exits with 0": lambda: sys.exit(0),
    "exits with nothing": lambda: sys.exit(),
    "exits with 3": lambda: sys.exit(3),
    "exits with words": lambda: sys.exit("no corpus here"),
    "an interrupt": lambda: _raise(KeyboardInterrupt()),
    "a key": lambda: _raise(KeyError("vocab")),
    "nothing to say": lambda: _raise(RuntimeError()),
    "a full disk": lambda: Path("/dev/full").write_text("word"),
}


class Deaf(Kind[kind.Params, AddRuntime]):
    """Waits for a program of its own, and looks at nothing meanwhile."""

    name = "test.deaf"
    output = "word"
    runtime_type = AddRuntime

    def run(self, ctx: StepContext[kind.Params, AddRuntime]) -> dict[str, Any]:
        ctx.on_progress({"done": 0, "total": 1, "unit": "sleeps"})
        ctx.say("it sleeps")
        subprocess.run(["sh", "-c", f"sleep {ctx.runtime.seconds} & wait", str(ctx.work)], check=True)
        return {}


class EchoParams(kind.Params):
    value: Any = None
    values: list[Any] = []
    table: dict[str, Any] = {}


class Echo(Kind[EchoParams, kind.Runtime]):
    """Parameters of any type."""

    name = "test.echo"
    output = "text"
    params_type = EchoParams

    def run(self, ctx: StepContext[EchoParams, kind.Runtime]) -> dict[str, Any]:
        (ctx.folder / "text").write_text("text")
        return {}


class CallParams(kind.Params):
    what: str = "all"
    token: str | None = None


class CallRuntime(kind.Runtime):
    token: str | int = ""
    fail: bool = False


class Call(Kind[CallParams, CallRuntime]):
    """Asks a service for something with a token, which is no part of what comes back."""

    name = "test.call"
    output = "text"
    params_type = CallParams
    runtime_type = CallRuntime

    def identity(self, params: CallParams, runtime: CallRuntime) -> dict[str, Any]:
        return {"what": params.what}

    def run(self, ctx: StepContext[CallParams, CallRuntime]) -> dict[str, Any]:
        ctx.say(f"calling with {ctx.runtime.token}")
        if ctx.runtime.fail:
            try:
                raise OSError(13, "refused", f"https://x/{ctx.runtime.token}")
            except OSError as error:
                raise RuntimeError(f"no answer to {ctx.runtime.token!r}") from error
        length = len(str(ctx.runtime.token)) + len(ctx.params.token or "")
        (ctx.folder / "text").write_text(f"answer to {length} letters")
        return {"letters": length, "asked": [f"https://x/{ctx.runtime.token}"]}
