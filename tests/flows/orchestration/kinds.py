"""Step kinds that leave what real ones leave, in a fraction of a second: for Prefect's pages and for reports."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tasks import kind
from tasks.kind import Facts, Input, Kind, Source, StepContext
from tasks.launch.launcher import LaunchRuntime, Stopped
from tasks.launch.step import launch
from tasks.params.paths import PipelinePath
from tasks.store.digests import digest_file

TYPES = ("cn", "en", "code")


class TextParams(kind.Params):
    file: PipelinePath


class Text(Source[TextParams, kind.Runtime]):
    """A text file."""

    name = "test.text"
    output = "raw"
    params_type = TextParams

    def digest(self, params: TextParams, remember: Path) -> tuple[str, Facts]:
        return digest_file(params.file).digest, {}

    def run(self, ctx: StepContext[TextParams, kind.Runtime]) -> dict[str, Any]:
        text = ctx.params.file.read_bytes()
        (ctx.folder / "text.txt").write_bytes(text)
        return {"documents": text.count(b"\n"), "bytes": len(text)}


class CurveParams(kind.Params):
    steps: int = Field(100, ge=1)


class CurveRuntime(kind.Runtime):
    seconds: float = 0.0
    fail: bool = False


class Curve(Kind[CurveParams, CurveRuntime]):
    """A model as far as pages show one: a loss that falls, reported while it falls."""

    name = "test.curve"
    inputs: ClassVar[Mapping[str, Input]] = {"text": Input("raw")}
    output = "model"
    params_type = CurveParams
    runtime_type = CurveRuntime

    def run(self, ctx: StepContext[CurveParams, CurveRuntime]) -> dict[str, Any]:
        steps, rows = ctx.params.steps, []
        for step in range(steps):
            loss = 2.0 + 6.0 * math.exp(-4.0 * step / steps)
            rows.append({"step": step, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "num_consumed_tokens": 512 * step})
            rows[-1] |= {"mfu": 0.4, "tgs/tgs_all": 512.0, "tgs/last_tgs_10": 512.0}
            rows[-1] |= {f"loss/{type_}": loss * (1 + i / 20) for i, type_ in enumerate(TYPES)}
            if ctx.stop.wait(ctx.runtime.seconds / steps):
                raise Stopped(f"stopped at step {step}")
            left = (steps - step) * ctx.runtime.seconds / steps
            ctx.on_progress(
                {"done": step + 1, "total": steps, "unit": "steps", "loss": loss, "eta_seconds": left, "tokens": 512}
            )
            if step % 10 == 0:
                ctx.say(f"tflops=0.1,step={step},loss={loss},tgs (tokens/gpu/second)=512.0,lr=0.001")
        if ctx.runtime.fail:
            raise RuntimeError("the loss is not a number")
        (ctx.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (ctx.folder / "tensorboard").mkdir()
        (ctx.folder / "tensorboard" / "events").write_text(str(time.time()))
        return {"steps": steps, "tokens": 512 * steps, "loss": rows[-1]["loss"]}


class Scores(Kind[kind.Params, kind.Runtime]):
    """Held-out scores of a model and two baselines."""

    name = "test.scores"
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model")}
    output = "scores"

    def run(self, ctx: StepContext[kind.Params, kind.Runtime]) -> dict[str, Any]:
        (ctx.folder / "scores.json").write_text(json.dumps(SCORES))
        return SCORES


class Samples(Kind[kind.Params, kind.Runtime]):
    """Generations in each language."""

    name = "test.samples"
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model")}
    output = "samples"

    def run(self, ctx: StepContext[kind.Params, kind.Runtime]) -> dict[str, Any]:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in SAMPLES]
        (ctx.folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
        return {"samples": len(SAMPLES), "tokens": 90}


def _score(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": math.exp(loss), "acc": 0.3, "tokens": 12345}


SCORES = {
    "checkpoint": "here",
    "step": 100,
    "tokens": 51200,
    "model": {type_: _score(4.0 + i / 10) for i, type_ in enumerate(TYPES)},
    "baselines": {
        "unigram": {type_: _score(6.5) for type_ in TYPES},
        "bigram": {type_: _score(5.5) for type_ in TYPES},
    },
}
SAMPLES = [
    {"type": "cn", "prompt": "却说曹操", "text": "引军回许都,令夏侯惇引兵三万。", "ids": [1, 2]},
    {"type": "cn", "prompt": "玄德曰", "text": ":吾得孔明,犹鱼之有水也。", "ids": [1, 2]},
    {"type": "en", "prompt": "The function", "text": " returns a <b>list</b> of `pairs`.", "ids": [1]},
    {"type": "code", "prompt": "def __init__(self", "text": ", name):\n    self.name = name | ```", "ids": [1]},
]


class SleepParams(kind.Params):
    seconds: float = 0.0
    until: str = ""
    """A file: it sleeps until that is there."""


class Sleep(Kind[SleepParams, LaunchRuntime]):
    """A job on a cluster."""

    name = "test.sleep"
    output = "number"
    params_type = SleepParams
    runtime_type = LaunchRuntime

    def run(self, ctx: StepContext[SleepParams, LaunchRuntime]) -> dict[str, Any]:
        launch(ctx, "tests.flows.orchestration.sleeper", str(ctx.params.seconds), *filter(None, [ctx.params.until]))
        return {}
