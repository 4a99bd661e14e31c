"""Parameter groups: over which ranks the gradients of some parameters are summed, and their state is cut.

How a model is cut over ranks decides this, not the optimizer. With the axes of the mesh::

                                       reduce                 alike    repeated   zero   replica
    every rank has all of it           zero, replica                              zero   replica
    cut over the tensor ranks          zero, replica                              zero   replica
    cut, and some pieces on several    zero, replica                   run        zero   replica
    whole on each tensor rank, and
      each has the same gradient       zero, replica          tensor              zero   replica, tensor
      each has a part of its gradient  zero, replica, tensor                      zero   replica, tensor
    tied, on first and last stage      as above, ends                             zero   as above, ends
    gathered when used (isp)           zero, replica                              zero   replica
    of an expert that is dealt out     zero, replica                              zero   replica

Of what is gathered `zero` and `replica` are those of the weight axes (`Mesh.weights`): its gradients have been summed
over the ranks that share it before they come here. Of experts they are those of the expert axes (`Mesh.experts`), the
ranks that hold the same ones: these have seen the tokens of all data ranks together.

The sum is divided by the number of data ranks. A run is one of neighbours among the tensor ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypedDict

from torch import nn

from evo_core.optim.muon import Matrices
from evo_core.parallel.mesh import Axis, Mesh
from evo_core.placement import Held, Placement

_NO_MATRICES: Mapping[str, Matrices] = MappingProxyType({})


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose gradients are summed, and whose state is cut, alike.

    Attributes:
        parameters: by name, those that have gradients, in the order of the model.
        reduce: the axes over which their gradients are summed, `zero` among them.
        divisor: what the sum is divided by to be the gradient of the step's loss, a mean over data ranks.
        zero: the axis over which their state is cut: each of its ranks updates a share, and hands it to the others.
        replica: the axes along which ranks hold the same share; they start alike, and make the same updates.
        alike: the axes along which each rank has the same gradient. That of the first one is taken, so that replicas
            stay alike to the last bit, whatever order the sums over data ranks were formed in.
        repeated: the axis along which some pieces are on several ranks, each of which has a part of their gradient.
        ends: the axis from the first stage of a pipeline to the last, where both hold them and each has a part of
            their gradient.
        decays: whether weight decay is for them.
        matrices: what each parameter is where Muon updates them, by name: then one rank of `zero` has all of its state,
            and the others nothing. None where AdamW does, and each of these ranks has some of its rows.
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
    alike: tuple[Axis, ...] = ()
    repeated: Axis | None = None
    ends: Axis | None = None
    decays: bool = True
    matrices: Mapping[str, Matrices] | None = None

    def share(self, name: str) -> Placement:
        """What this rank holds of the state of a parameter: a run of the parameter's rows, by `placement.span`."""
        return self.placements[name].share(self.zero.rank, self.zero.size, self.zero.alike)

    def whole_share(self, name: str, *, mine: bool) -> Placement:
        """What this rank holds of the state of a parameter of which one rank has all, or where another has, nothing."""
        whole = self.placements[name]
        return whole.share(0, 1, self.zero.alike) if mine else whole.nothing


def data_parallel(
    parameters: Iterable[tuple[str, nn.Parameter]],
    mesh: Mesh,
    *,
    decays: bool = True,
    matrices: Mapping[str, Matrices] | None = None,
) -> ParameterGroup:
    """The group of parameters that are whole on every data rank, and on no other or cut over the others.

    Args:
        parameters: as `nn.Module.named_parameters` gives them; those without gradients are left out.
        matrices: see `ParameterGroup`.
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
        decays=decays,
        matrices=matrices,
    )


def groups_of(
    model: nn.Module,
    mesh: Mesh,
    no_decay: Collection[str] = (),
    matrices: Mapping[str, Matrices] = _NO_MATRICES,
) -> list[ParameterGroup]:
    """The groups of a model, as its record of what this rank holds says; every rank must call it.

    Args:
        no_decay: names of the parameters that weight decay is not for.
        matrices: what those are that Muon updates, by name; all of each is on this rank.
    """
    held: Mapping[str, Held] = getattr(model, "held", {})
    kinds: dict[tuple[bool, bool, _Lying], dict[str, nn.Parameter]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            lying = _lying(held[name], mesh) if held else _WHOLE
            kinds.setdefault((name in matrices, name in no_decay, lying), {})[name] = param
    if not kinds:
        return [data_parallel((), mesh)]
    groups = []
    # In one order on every rank, since they make process groups.
    for (whole, left_out, lying), params in sorted(kinds.items(), key=lambda item: item[0]):
        how: _How = {"decays": not left_out, "matrices": {name: matrices[name] for name in params} if whole else None}
        if held:
            placements = {name: held[name].placement for name in params}
            groups.append(_group(lying, params, placements, mesh, how))
        else:
            groups.append(data_parallel(params.items(), mesh, **how))
    return groups


class _How(TypedDict):
    """See `ParameterGroup`."""

    decays: bool
    matrices: Mapping[str, Matrices] | None


_Kind = Literal["alike", "cut", "dealt", "gathered", "partial", "repeated"]


_Lying = tuple[_Kind, int, bool]

_WHOLE: _Lying = ("alike", 1, False)


def _lying(held: Held, mesh: Mesh) -> _Lying:
    """How a parameter lies on the tensor ranks, how many of them hold its most widely held piece, and whether first and
    last stage hold it."""
    if held.gathered:
        return "gathered", 1, held.on_ends
    if held.dealt:  # whole on a tensor rank or cut over them, as matrices without a bias are
        return "dealt", 1, False
    copies = mesh.data.size * (2 if held.on_ends else 1)
    holders = [len(piece.ranks) // copies for piece in held.placement.pieces]
    if min(holders) == mesh.tensor.size:
        return ("partial" if held.partial else "alike"), mesh.tensor.size, held.on_ends
    if held.partial and max(holders) > 1:
        return "repeated", max(holders), held.on_ends
    return "cut", 1, held.on_ends


def _group(
    lying: _Lying,
    parameters: Mapping[str, nn.Parameter],
    placements: Mapping[str, Placement],
    mesh: Mesh,
    how: _How,
) -> ParameterGroup:
    kind, holders, on_ends = lying
    if kind in ("gathered", "dealt"):
        axes = mesh.weights if kind == "gathered" else mesh.experts
        assert axes is not None  # which cut them
        zero, replica = axes.zero, axes.replica
        return ParameterGroup(parameters, (zero, replica), mesh.data.size, zero, (replica,), placements, **how)
    over_data, over_tensor = (mesh.zero, mesh.replica), (mesh.tensor,)
    alike_along = (mesh.replica, *over_tensor) if kind in ("partial", "alike") else (mesh.replica,)
    ends = mesh.ends if on_ends else None
    return ParameterGroup(
        parameters,
        reduce=over_data + over_tensor if kind == "partial" else over_data,
        divisor=mesh.data.size,
        zero=mesh.zero,
        replica=alike_along if ends is None else (*alike_along, ends),
        placements=placements,
        alike=over_tensor if kind == "alike" else (),
        repeated=mesh.tensor_run(holders) if kind == "repeated" else None,
        ends=ends,
        **how,
    )
