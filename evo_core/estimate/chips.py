"""What a chip can do and what it is connected by: its maker's numbers, and the share of them that training gets.

Peaks of 16-bit products are those of `evo_core.train.peaks`. Memory, its bandwidth, float32 outside the tensor cores
and NVLink are from NVIDIA's data sheets (A100 of June 2021, H100 and H200 of 2024, HGX B200, L40S; of A800 and H800
that of the chip they derive from, with the links that they are sold with). The network is that of the maker's own
machines: a port of 200 Gb/s for each GPU of a DGX A100, of 400 Gb/s in later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evo_core.errors import ConfigError
from evo_core.train.peaks import known_peak

GB = 10**9


@dataclass(frozen=True)
class Chip:
    """A GPU.

    Attributes:
        name: as typed.
        memory: GB (10^9 bytes) that it is sold with. It has as many GiB, of which the driver, NCCL, kernels' workspaces
            and the allocator's gaps take the rest: it is a careful number to fit into.
        hbm: GB a second between memory and chip.
        float32: teraflops outside the tensor cores.
        link: GB a second that it sends to others of its node, one way.
        network: GB a second of the network for each GPU of a node, one way.
        efficiency: share of the peak that the blocks of a large model reach, with all that is in them.
    """

    name: str
    memory: float
    hbm: float
    float32: float
    link: float
    network: float
    efficiency: float

    def teraflops(self, dtype: str) -> float:
        """At most, for products of a model's dtype (`ModelConfig.dtype_name`).

        Raises:
            ConfigError: there is no number for it.
        """
        if dtype == "float32":
            return self.float32
        tf32, kind = dtype == "tf32", getattr(torch, "float32" if dtype == "tf32" else dtype)
        peak = known_peak(self.name.upper().partition("-")[0], kind, tf32=tf32)
        if peak is None:
            message = f"{dtype}: the peak of {self.name} for it is not known"
            raise ConfigError(message, key="model.dtype", hint="estimate it with --set model.dtype=torch.bfloat16")
        return peak


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("a100", 80, 2039, 19.5, 300, 25, 0.60),
        Chip("a100-40gb", 40, 1555, 19.5, 300, 25, 0.60),
        Chip("a800", 80, 2039, 19.5, 200, 25, 0.60),
        Chip("h100", 80, 3350, 67, 450, 50, 0.46),
        Chip("h800", 80, 3350, 67, 200, 50, 0.46),
        Chip("h200", 141, 4800, 67, 450, 50, 0.46),
        Chip("b200", 180, 7700, 75, 900, 50, 0.46),
        Chip("l40s", 48, 864, 91.6, 32, 25, 0.46),
    )
}
"""By name. The efficiencies of A100 and H100 are set by published runs (benchmarks/estimate.py), the others by them."""


def chip(name: str) -> Chip:
    """A chip by its name.

    Raises:
        ConfigError: none is known by it.
    """
    from evo_core.config.suggest import suggest

    if name.lower() not in CHIPS:
        known = ", ".join(CHIPS)
        raise ConfigError(f'no numbers are known of "{name}"{suggest(name.lower(), CHIPS)}', key="--chip", hint=known)
    return CHIPS[name.lower()]
