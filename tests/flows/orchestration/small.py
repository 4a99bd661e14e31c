"""A small pipeline whose steps leave what real ones leave, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

from flows.orchestration.request import Request
from flows.pipeline.plan import Plan
from tasks.store import Store

TEXT = """\
pipeline: small
vars: {seconds: 0, steps: 60, fail: false}
steps:
  raw:
    uses: tests.flows.orchestration.kinds:Text
    params: {file: text.txt}
  model:
    uses: tests.flows.orchestration.kinds:Curve
    needs: {text: raw}
    params: {steps: "${vars.steps}"}
    runtime: {seconds: "${vars.seconds}", fail: "${vars.fail}"}
  other:
    uses: tests.flows.orchestration.kinds:Curve
    needs: {text: raw}
    params: {steps: 20}
  scores:
    uses: tests.flows.orchestration.kinds:Scores
    needs: {model: model}
  samples:
    uses: tests.flows.orchestration.kinds:Samples
    needs: {model: model}
publish: {small: model}
"""


class Small:
    """The pipeline's file and its store."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.root = folder / "small.yaml", folder / "store"
        self.file.write_text(TEXT)
        (folder / "text.txt").write_text("one\ntwo\n")

    def request(self, *overrides: str) -> Request:
        return Request(pipeline=str(self.file), root=str(self.root), set=list(overrides))

    def plan(self, *overrides: str) -> Plan:
        request = self.request(*overrides)
        return request.plan(request.store())

    @property
    def store(self) -> Store:
        return Store(self.root)
