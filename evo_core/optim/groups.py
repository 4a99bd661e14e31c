"""Parameter groups: over which ranks the gradients of some parameters are summed, and their state is cut.

How a model is cut over ranks decides this, not the optimizer. With the axes of the mesh::

                                       reduce                    divisor   zero   replica
    every rank has all of it           zero, replica             data      zero   replica
    cut over the tensor ranks          zero, replica             data      zero   replica
    whole on each tensor rank, and
      each has the same gradient       zero, replica             data      zero   replica, tensor
      each has a part of its gradient  zero, replica, tensor     data      zero   replica, tensor
    tied, on first and last stage      zero, replica, the two    data      zero   replica, the two
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from evo_core.parallel.mesh import Axis, Mesh
from evo_core.placement import Placement


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose gradients are summed, and whose state is cut, alike.

    Attributes:
        parameters: by name, those that have gradients, in the order of the model.
        reduce: the axes over which their gradients are summed, `zero` among them.
        divisor: what the sum is divided by to be the gradient of the step's loss, a mean over data ranks.
        zero: the axis over which their state is cut: each of its ranks updates a share, and hands it to the others.
        replica: the axes along which ranks hold the same share; they start alike, and make the same updates.
        placements: what this rank holds of each parameter, by name. In the global norm each piece counts once, by an
            equal part on each rank that holds it, so that a parameter may have pieces on more ranks than others, as
            key and value heads that are on several tensor ranks.
    """

    parameters: Mapping[str, nn.Parameter]
    reduce: tuple[Axis, ...]
    divisor: int
    zero: Axis
    replica: tuple[Axis, ...]
    placements: Mapping[str, Placement]

    def share(self, name: str) -> Placement:
        """What this rank holds of the state of a parameter: a run of the parameter's rows, by `placement.span`."""
        return self.placements[name].share(self.zero.rank, self.zero.size, self.zero.alike)


def data_parallel(parameters: Iterable[tuple[str, nn.Parameter]], mesh: Mesh) -> ParameterGroup:
    """The group of parameters that are whole on every data rank, and on no other or cut over the others.

    Args:
        parameters: as `nn.Module.named_parameters` gives them; those without gradients are left out.
    """
    trained = {name: param for name, param in parameters if param.requires_grad}
    placements = {name: Placement.whole(param.shape, mesh.data.ranks) for name, param in trained.items()}
    return ParameterGroup(
        trained,
        reduce=(mesh.zero, mesh.replica),
        divisor=mesh.data.size,
        zero=mesh.zero,
        replica=(mesh.replica,),
        placements=placements,
    )
