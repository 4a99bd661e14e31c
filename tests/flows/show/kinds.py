"""A step kind whose scores are on a dataset that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from tasks import kind
from tasks.kind import Input, Kind, StepContext


class Params(kind.Params):
    loss: float
    baselines: bool = True


class ScoresOnData(Kind[Params, kind.Runtime]):
    """The loss that it is given, for each type of text."""

    name = "test.scores_on_data"
    inputs: ClassVar[Mapping[str, Input]] = {"data": Input("raw")}
    output = "scores"
    params_type = Params

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        scored = {"loss": ctx.params.loss, "acc": 0.25, "tokens": 1000}
        baselines = {"unigram": {"en": {"loss": 7.0, "tokens": 1000}}} if ctx.params.baselines else {}
        (ctx.folder / "scores.json").write_text(json.dumps({"model": {"en": scored}, "baselines": baselines}))
        return {}
