"""A small pipeline whose steps leave what real ones leave, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

from flows.pipeline.plan import Plan
from flows.request import Request
from tasks.store import Store

TEXT = """\
pipeline: small
vars: {seconds: 0, steps: 60, fail: false}
steps:
  raw:
    uses: tests.orchestration.kinds:Text
    params: {file: text.txt}
  model:
    uses: tests.orchestration.kinds:Curve
    needs: {text: raw}
    params: {steps: "${vars.steps}"}
    runtime: {seconds: "${vars.seconds}", fail: "${vars.fail}"}
  other:
    uses: tests.orchestration.kinds:Curve
    needs: {text: raw}
    params: {steps: 20}
  scores:
    uses: tests.orchestration.kinds:Scores
    needs: {model: model}
  samples:
    uses: tests.orchestration.kinds:Samples
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
