"""The process that has the GPU, and how it is asked: what hangs or breaks the device ends with it, and nothing else."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Task:
    """One contestant's part of a row.

    Attributes:
        kind: "train", "decode" or "products".
        shape: of gpu_models.SHAPES.
        size: of "train" the tokens of a document, of "decode" the prompts at a time, of "products" rows of a matrix.
        count: of "train" the documents of a step, of "decode" the new tokens of each prompt.
        seconds: that it takes on one H100, about.
    """

    kind: str
    contestant: str
    shape: str = ""
    size: int = 0
    count: int = 1
    seconds: float = 20.0

    @property
    def row(self) -> str:
        """What is measured, whoever does it."""
        if self.kind == "train":
            return f"train {self.shape}, {self.count} x {self.size} tokens"
        if self.kind == "decode":
            return f"decode {self.shape}, batch {self.size}"
        return f"bfloat16 product, {self.size} x {self.size} x {self.size}"

    @property
    def name(self) -> str:
        """With who does it."""
        return f"{self.row}: {self.contestant}"


def work(kind: str, pipe: Connection) -> None:
    """The process: an answer for every task, on a device of this kind ("cuda", "cpu")."""
    try:
        from benchmarks.gpu_models import Device

        device = Device(kind)
        pipe.send({"device": device.name, "peak": device.peak})
        while (task := pipe.recv()) is not None:
            pipe.send(answer(task, device))
            device.release()
    except EOFError:  # whoever asked is gone
        pass
    except BaseException as error:
        pipe.send({"error": _line(error)})


def answer(task: Task, device: Any) -> dict[str, Any]:
    """A task's figures; or "does_not_fit" or "error", and why in a line."""
    import torch

    from benchmarks import gpu_decode, gpu_train

    torch.compiler.reset()  # else what was compiled for other shapes counts towards a limit of torch's
    try:
        if task.kind == "train":
            return gpu_train.measure(task.contestant, task.shape, task.size, task.count, device)
        if task.kind == "decode":
            return gpu_decode.measure(task.contestant, task.shape, task.size, device, new=task.count)
        return gpu_train.products(task.size, device)
    except Exception as error:
        full = isinstance(error, gpu_train.DoesNotFit) or gpu_train.is_out_of_memory(error)
        return {"does_not_fit" if full else "error": _line(error)}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


class Worker:
    """Starts the process when there is something to ask, and another one after it has failed."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._process: Any = None
        self._pipe: Any = None

    def ask(self, task: Task, timeout: float, start: float) -> dict[str, Any]:
        """The answer to a task.

        Args:
            timeout: seconds that it may take; one that takes longer, or ends the process, is an "error".
            start: seconds in which the process may start, where there is none; from a cold disk that takes a minute.
                The task takes no longer than what is left of them.
        """
        clock = time.monotonic()
        began = {} if self._process is not None else self._start(start)
        if "error" in began:
            return began
        try:
            self._pipe.send(task)
        except OSError:
            pass  # it has ended, which is what its answer says
        found = self._answer(max(0.0, min(timeout, start - (time.monotonic() - clock))), "")
        if "error" in found:  # after an error of CUDA's every other call fails too
            self.end()
        return found | began

    def end(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self, seconds: float) -> dict[str, Any]:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(self._kind, other), daemon=True)
        self._process.start()
        other.close()
        found = self._answer(seconds, " to start")
        if "error" in found:
            self.end()
        return found

    def _answer(self, timeout: float, doing: str) -> dict[str, Any]:
        try:
            if not self._pipe.poll(timeout):
                return {"error": f"it took longer than {timeout:.0f} s{doing} and was ended"}
            found: dict[str, Any] = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return {"error": f"its process ended with status {self._process.exitcode}"}
        return found
