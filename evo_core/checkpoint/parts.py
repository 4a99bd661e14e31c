"""A tensor of which some rectangles are here, in the form in which `torch.distributed.checkpoint` takes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from evo_core.placement import Rectangle, Sizes


class Parts(Tensor):
    """Rectangles of a tensor, each with what is in it; of the whole there are shape and type alone.

    The planner asks a tensor for items to write, for parts to read and for their memory by the three methods below, as
    it does a DTensor, which could say only one rectangle.

    Args:
        shape, dtype: of the whole tensor.
        parts: rectangles, and tensors of their sizes: read from, or written into.
    """

    parts: dict[Sizes, Tensor]

    @staticmethod
    def __new__(cls, shape: Sizes, dtype: torch.dtype, parts: Iterable[tuple[Rectangle, Tensor]]) -> Parts:
        made = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype, device=torch.device("cpu"))
        made.parts = {where.offsets: tensor for where, tensor in parts}
        return made

    def __init__(self, *args: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise TypeError(f"{func} of a tensor that is not here as a whole")

    def rectangles(self) -> Iterator[tuple[Rectangle, Tensor]]:
        """Where each part lies in the whole tensor, and what is in it."""
        for offsets, tensor in self.parts.items():
            yield Rectangle(offsets, tuple(tensor.shape)), tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Parts({list(self.shape)}, {self.dtype}, at {list(self.parts)})"

    def __create_write_items__(self, name: str, tensor: Tensor) -> list[WriteItem]:
        items = []
        for chunk in self.__create_chunk_list__():
            data = TensorWriteData(chunk, TensorProperties(dtype=self.dtype), self.size())
            items.append(WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data))
        return items

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(at), tensor.size()) for at, tensor in self.parts.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return _alone(self.parts[tuple(index.offset or ())])


def _alone(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that seems to be alone in it: torch's writer copies any other before it writes it,
    for an archive holds whole storages. On a GPU it copies in any case."""
    tensor = tensor.detach()
    if tensor.untyped_storage().nbytes() == tensor.nbytes or not tensor.is_contiguous() or tensor.device.type != "cpu":
        return tensor
    return torch.frombuffer(tensor.view(-1).view(torch.uint8).numpy(), dtype=tensor.dtype).view(tensor.shape)
