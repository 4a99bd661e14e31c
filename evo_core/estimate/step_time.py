"""The time of a step, as a model: what is computed, what is waited for, and why.

    step = computing of the slowest stage + bubble + passes over memory + products of the update + what is sent, a part
           of it where it is hidden

Products are counted by `evo_core.train.flops`. What is sent is counted by `rank_cost`; what of it is hidden, and how
fast the rest is, is assumed (`assumptions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from evo_core.config import TrainConfig
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.chips import GB
from evo_core.estimate.messages import Behind
from evo_core.estimate.schedule import schedule_of
from evo_core.parallel.degrees import AxisName, Degrees
from evo_core.parallel.pipeline.placing import placing_of
from evo_core.train.flops import Flops, hardware_flops, model_flops


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, modelled.

    Attributes:
        computing: products of the slowest stage.
        bubble: in which stages wait for each other.
        memory: gradients added up and values updated.
        updating: products of Muon's update, of the rank that has most.
        slowed: by what is sent beside computing.
        waiting: for what is sent and not hidden, by what it is.
        hidden: of what is sent beside computing; no part of the step.
        network: those of `waiting` that go between machines.
        tokens: of the step, over all ranks.
        mfu: share of the peak, by the products that the model needs.
    """

    computing: float
    bubble: float
    memory: float
    updating: float
    slowed: float
    waiting: Mapping[str, float]
    hidden: float
    network: frozenset[str]
    tokens: int
    ranks: int
    mfu: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        beside = self.memory + self.updating + self.slowed
        return self.computing + self.bubble + beside + sum(self.waiting.values())

    @property
    def tgs(self) -> float:
        """Tokens for each GPU and second."""
        return self.tokens / self.ranks / self.seconds


class Held(NamedTuple):
    """Bytes of a rank, for the passes over its memory, and operations of the products of its update."""

    parameters: float
    gradients: float
    states: float
    operations: float = 0.0

    def moved(self, count: int) -> float:
        """Bytes read and written in a step: each of so many micro-batches adds its gradients up, then values are
        updated from them and from their moments."""
        return count * (self.parameters + 2 * self.gradients) + self.gradients + 2 * self.states + self.parameters


def step_time(
    cfg: TrainConfig,
    degrees: Degrees,
    sent: Mapping[tuple[str, str], int],
    held: Held,
    assumed: Assumptions,
) -> StepTime:
    """Of a legal layout.

    Args:
        sent: bytes that the rank that sends most sends a step, by collective and axis.
        held: of the rank that needs most.

    Raises:
        ConfigError: the chip's peak is not known for the model's dtype.
    """
    peak = assumed.chip.teraflops(cfg.model.dtype_name) * 1e12
    count, schedule = cfg.micro_num(degrees.data), schedule_of(cfg, degrees)
    computing = _slowest(cfg, degrees) * count / (peak * assumed.chip.efficiency)
    waiting, hidden, network = _waited(Behind(cfg, degrees, computing, assumed.behind_products), sent, assumed)
    slowed = hidden * assumed.slowed
    memory = held.moved(count) / (assumed.chip.hbm * GB * assumed.of_memory)
    updating = held.operations / (assumed.chip.teraflops(_update_dtype(cfg)) * 1e12 * assumed.chip.efficiency)
    tokens = cfg.data.packed_length * count * degrees.data
    bubble = computing * schedule.bubble
    needed = model_flops(cfg.model).of(tokens, _pairs(cfg, tokens))
    seconds = computing + bubble + memory + updating + slowed + sum(waiting.values())
    mfu = needed / (peak * degrees.world * seconds)
    return StepTime(computing, bubble, memory, updating, slowed, waiting, hidden, network, tokens, degrees.world, mfu)


def _update_dtype(cfg: TrainConfig) -> str:
    """In which Muon multiplies on a GPU."""
    return "float64" if cfg.model.dtype_name == "float64" else "bfloat16"


def _pairs(cfg: TrainConfig, tokens: float) -> float:
    return tokens * (cfg.data.seq_len + 1) / 2


def _slowest(cfg: TrainConfig, degrees: Degrees) -> float:
    """Operations of a micro-batch on a rank of the stage that has most, forward and backward."""
    model, placing, tokens = cfg.model, placing_of(cfg), cfg.data.packed_length
    head = 6.0 * model.hidden_size * model.vocab_size
    whole, again = model_flops(model), hardware_flops(model, 1)
    once = Flops((whole.per_token - head) / model.num_layers, whole.per_pair / model.num_layers)
    more = Flops(again.per_token - whole.per_token, again.per_pair - whole.per_pair)
    pairs, stages = _pairs(cfg, tokens), placing.cut(model.num_layers)
    of_rank = [0.0] * placing.ranks
    for number, stage in enumerate(stages):
        recomputed = len(stage.recomputed(float(model.checkpoint)))
        flops = len(stage.blocks) * once.of(tokens, pairs) + recomputed * more.of(tokens, pairs)
        of_rank[placing.rank_of(number)] += flops + stage.has_head * head * tokens
    return max(of_rank) / degrees.tensor


def _waited(
    behind: Behind, sent: Mapping[tuple[str, str], int], assumed: Assumptions
) -> tuple[dict[str, float], float, frozenset[str]]:
    """Seconds waited by what is sent, seconds hidden, and which of them go between machines.

    Messages by one kind of link hide behind the same computing: those of one micro-batch have what is left by those of
    every one.
    """
    network: set[str] = set()
    waiting: dict[str, float] = {}
    hidden = {True: 0.0, False: 0.0}
    known = [(behind.messages(*key, size), *key, size) for key, size in sent.items() if size]
    for messages, collective, axis, size in sorted(known, key=lambda each: not each[0].always):
        line = behind.degrees.line(cast(AxisName, axis))
        across = assumed.across(line)
        seconds = size / assumed.speed(line) + messages.number * assumed.delay(line, collective)
        left = max(0.0, 1 - hidden[across] / behind.computing)
        hides = min(seconds * messages.share, messages.behind * left)
        if seconds > hides:
            waiting[messages.name] = waiting.get(messages.name, 0.0) + seconds - hides
        hidden[across] += hides
        if across:
            network.add(messages.name)
    return waiting, sum(hidden.values()), frozenset(network)
