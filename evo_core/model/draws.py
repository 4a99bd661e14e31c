"""Random numbers of a forward pass in training: what dropout leaves out, the noise of a router.

Each number is a function of its place alone (seed, step, micro-batch, layer, site, token) and of nothing that was drawn
before it. So there is no random state to keep: a resumed run draws what the uninterrupted one would have drawn, a block
that is recomputed in the backward pass draws the same again, and however a model is cut over ranks (tokens, layers,
micro-batches), each token meets the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evo_core.model.uncompiled import uncompiled

Fill = Callable[..., Any]
"""A method of a tensor that fills it with random numbers, taking ``generator=``."""


class Draws:
    """What the forward pass of one micro-batch draws, over all its layers.

    Args:
        seed: of the run.
        step: of the run.
        micro_batch: its number among those of the step, over all ranks.
        start: where the rows that this process holds begin in the sequence, if it holds a part of them.
        tokens: rows of the whole sequence; None where no process holds a part. Numbers are drawn for all rows and cut,
            since a generator cannot begin in the middle.
    """

    def __init__(self, seed: int, step: int, micro_batch: int, *, start: int = 0, tokens: int | None = None) -> None:
        self._place = f"{seed}:{step}:{micro_batch}"
        self._start, self._tokens = start, tokens
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def from_torch(cls) -> Draws:
        """Draws of a forward pass that no run knows, at a place which torch's own generator chooses."""
        return cls(int(torch.randint(2**62, ())), 0, 0)

    def layer(self, number: int) -> LayerDraws:
        """What the layer of this global number draws; the embedding draws with the first."""
        return LayerDraws(self, number)

    def drawn(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, site: str, fill: Fill) -> Tensor:
        """Numbers for the rows of a tensor: [T, ...] of its shape.

        Args:
            shape: [T, ...], with T the rows of the whole sequence, or of the part that this process holds.
            site: what they are for, with its layer.

        Raises:
            ValueError: T is neither all rows nor a part from ``start`` on.
        """
        rows, tokens = shape[0], self._tokens or shape[0]
        whole = torch.empty((tokens, *shape[1:]), dtype=dtype, device=device)
        fill(whole, generator=self._generator(device, site))
        if rows == tokens:
            return whole
        if self._start + rows > tokens:
            raise ValueError(f"{rows} rows from row {self._start} on are no part of a sequence of {tokens}")
        return whole[self._start : self._start + rows].clone()  # not a view, which would keep all rows in memory

    def seed_of(self, site: str) -> int:
        """A seed for a generator, of 63 bits."""
        digest = hashlib.sha256(f"{self._place}:{site}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def _generator(self, device: torch.device, site: str) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(self.seed_of(site))


class LayerDraws:
    """What one layer draws. The number of the layer stays out of what torch.compile sees, so that blocks share code."""

    def __init__(self, draws: Draws, layer: int) -> None:
        self._draws, self._layer = draws, layer

    # torch.compile knows no generators but torch's own: each of these is a call between two compiled pieces.

    @uncompiled
    def dropout(self, x: Tensor, rate: float, site: str) -> Tensor:
        """x [T, ...] with a share ``rate`` of its numbers set to 0, and the others divided by ``1 - rate``.

        Args:
            rate: in [0, 1].
            site: where in the layer; another one draws other numbers.
        """
        scale = 0.0 if rate == 1 else 1 / (1 - rate)
        if x.is_cuda:
            # What torch's dropout does in its backward pass, x * kept * scale, is one kernel; for the way back it
            # keeps one byte a number.
            kept = self._drawn(x, site, partial(Tensor.bernoulli_, p=1 - rate), torch.bool)
            return torch.ops.aten.native_dropout_backward(x, kept, scale)
        # A CPU multiplies numbers of one type two to three times as fast as numbers with bools.
        return x * self._drawn(x, site, partial(Tensor.bernoulli_, p=1 - rate)).mul_(scale)

    @uncompiled
    def jitter(self, x: Tensor, width: float, site: str) -> Tensor:
        """x [T, ...] with each number multiplied by one in [1 - width, 1 + width)."""
        return x * self._drawn(x, site, Tensor.uniform_).mul_(2 * width).add_(1 - width)

    @uncompiled
    def gumbel(self, x: Tensor, site: str) -> Tensor:
        """Standard Gumbel noise of the shape [T, ...] and dtype of x: the arg-max of logits with it added is a draw
        from their softmax."""
        return self._drawn(x, site, Tensor.exponential_).log_().neg_()

    @uncompiled
    def order(self, x: Tensor, site: str) -> Tensor:
        """The numbers [T] int64 of the rows of x [T, ...] in random order."""
        return self._drawn(x[:, 0], site, Tensor.uniform_, torch.float32).argsort()

    @uncompiled
    def seed_kernels(self, device: torch.device, site: str) -> None:
        """Seed torch's own generator of a device, for kernels that draw from it inside.

        They draw for the heads and tokens that they are given: where a process holds a part of either, it drops
        others than one process would.
        """
        seed = self._draws.seed_of(f"{self._layer}:{site}")
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.get_device_module(device).manual_seed(seed)

    def _drawn(self, x: Tensor, site: str, fill: Fill, dtype: torch.dtype | None = None) -> Tensor:
        return self._draws.drawn(tuple(x.shape), dtype or x.dtype, x.device, f"{self._layer}:{site}", fill)
