"""The ``ckpt`` block: what is saved when, and what a run starts from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from evo_core.config.fields import Block, block, execution, identity, optional_block
from evo_core.config.types import Interval, IntervalAboveOne, PositiveInt

Content = Literal["model", "sampler", "optimizer", "scheduler", "all"]


class AllowConfig(Block):
    """Tensors by which a checkpoint may differ from the model: their names, or shell patterns of them."""

    missing: tuple[str, ...] = identity(
        (), "Of the model: where the checkpoint lacks them, first weights are drawn.", introduced=()
    )
    unexpected: tuple[str, ...] = identity(
        (), "Of the checkpoint: where the model does not have them, they are left.", introduced=()
    )

    @field_validator("missing", "unexpected", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class LoadInfo(Block):
    """A checkpoint to start from, and which of its states to take."""

    path: str = identity(..., "Its folder, with or without the prefix local:.")
    content: tuple[Content, ...] = identity(("all",), "The states to take.")
    ckpt_type: Literal["internevo", "internlm", "evo", "llama", "hf_llama", "hf_model"] = identity(
        "internevo", "Its format; internlm is another name of internevo."
    )
    allow: AllowConfig = block(AllowConfig, "What it may lack, and have beside the model.")

    @field_validator("content", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CkptConfig(Block):
    """Checkpoints are folders ``<save_ckpt_folder>/<step>``; snapshots lie in ``snapshot`` beside them."""

    enable_save_ckpt: bool = execution(True, "False: nothing is saved, and so nothing can be resumed.")
    save_ckpt_folder: str | None = execution(
        None, "Where checkpoints go, a folder or one in an object store; to be stated where enable_save_ckpt is."
    )
    checkpoint_every: Interval = execution(
        float("inf"), "Updates between two checkpoints; the last step is always saved. .inf: only that."
    )
    keep: PositiveInt | None = execution(None, "Newest checkpoints to keep; None: all.")
    keep_every: PositiveInt | None = execution(
        None, "Updates between two checkpoints that stay for ever beside them; a multiple of checkpoint_every."
    )
    oss_snapshot_freq: IntervalAboveOne = execution(
        float("inf"), "Updates between two snapshots, of which the newest two are kept; 1 or less, null or .inf: none."
    )
    auto_resume: bool = execution(
        True, "Carry on from the newest complete checkpoint in save_ckpt_folder; load_ckpt_info is not read then."
    )
    load_ckpt_info: LoadInfo | None = optional_block("What to start from where auto_resume is false.")
    async_upload: bool = execution(False, "Write checkpoints in the background: a step waits for a copy of them only.")
    async_upload_tmp_folder: str | None = execution(
        None, "Where files for an object store lie until they are uploaded in the background; None: they are nowhere."
    )
    stop_file_path: str | None = execution(
        None, "A file with a step number n: n > 0 saves and stops at step n, n < 0 saves at step -n and goes on."
    )

    @property
    def kept_for_ever(self) -> int | None:
        """Checkpoints at multiples of this step are never removed; None where none is kept so."""
        return None if self.checkpoint_every == float("inf") else self.keep_every

    @property
    def starts_from_load_ckpt_info(self) -> bool:
        """Whether load_ckpt_info is read: it is stated, and nothing is resumed automatically."""
        return self.load_ckpt_info is not None and not self.auto_resume
