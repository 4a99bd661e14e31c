"""Which format a folder is in, told from what lies in it; and where a path or a hub id leads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from evo_core.checkpoint import folder as folders
from evo_core.errors import CheckpointError
from evo_core.storage.location import LocationError, is_hub_id, is_remote, local_path
from evo_core.weights.hf.folder import is_hf
from evo_core.weights.in_store import copy_of
from evo_core.weights.internevo.folder import is_internevo
from evo_core.weights.llama import is_llama

Kind = Literal["evo", "internevo", "llama", "hf"]

_WEIGHTS = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]


def kind_of(folder: Path) -> Kind | None:
    """The format of a folder; None for one that holds no weights."""
    if not folder.is_dir():
        return None
    if (folder / folders.MANIFEST).is_file():
        return "evo"
    foreign: tuple[tuple[Kind, bool], ...] = (
        ("hf", is_hf(folder)),
        ("llama", is_llama(folder)),
        ("internevo", is_internevo(folder) and not _holds_ours(folder)),
    )
    return next((kind for kind, fits in foreign if fits), None)


def _holds_ours(folder: Path) -> bool:
    """Whether a run of ours that began with a checkpoint there has saved beside it."""
    return any(found.complete for found in folders.find(folder))


def locate(uri: str | Path, *, whole: bool = False) -> tuple[Kind, Path]:
    """The format and the folder of the weights that a path or a hub id means.

    A folder of our checkpoints means the newest complete one, a pipeline's artifact the model in it, and one in the
    making its newest checkpoint. A hub id (``owner/name``, where there is no such folder)
    is downloaded through `huggingface_hub`: weights, settings and tokenizer, never code. What is in an object store is
    copied to this machine once.

    Args:
        whole: copy the states of the optimizer too.

    Raises:
        CheckpointError: nothing is there, or it is of no format that is read here.
    """
    text = str(uri)
    try:
        if is_remote(uri):
            folder = copy_of(text, whole=whole)
        else:
            folder = local_path(uri if isinstance(uri, Path) and uri.exists() else text)
    except LocationError as error:
        raise CheckpointError(error.message, hint=error.hint) from None
    if is_hub_id(text):
        folder = _from_hub(text)
    if (folder / "attempts").is_dir():
        folder = _in_artifact(folder)
    kind = kind_of(folder)
    if kind is not None:
        return kind, folder
    if folder.is_file():
        raise CheckpointError("is a file", file=folder, hint=f"name the folder it is in: {folder.parent}")
    return "evo", Path(folders.resolve_own(folder))


def _in_artifact(artifact: Path) -> Path:
    """Where the model lies in an artifact: in the attempt that its manifest names; without one, work goes on."""
    try:
        manifest = json.loads((artifact / folders.MANIFEST).read_text("utf-8"))
        kind, attempt = manifest["type"], manifest["attempt"]
    except FileNotFoundError:
        return artifact / "work" / "ckpt"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the artifact's manifest cannot be read ({error})", file=artifact) from None
    if kind != "model":
        raise CheckpointError(f"this artifact holds no model (its type: {kind})", file=artifact)
    return artifact / "attempts" / str(attempt) / "model"


def _from_hub(name: str) -> Path:
    hint = f"download it elsewhere and name its folder: local:/path/to/{name.rpartition('/')[2]}"
    missing = f"there is no folder {name}, and as a hub id it cannot be fetched"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        hint = "pip install 'evo-lm[hf]', or name a local folder"
        raise CheckpointError(f"{missing}: huggingface_hub is not installed", hint=hint) from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=_WEIGHTS))
        if kind_of(folder) is None:  # an older repository, without safetensors
            folder = Path(snapshot_download(name, allow_patterns=[*_WEIGHTS, "*.bin"]))
    except Exception as error:  # the network fails in any way it likes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{missing}: {first}", hint=hint) from error
    if kind_of(folder) is None:
        raise CheckpointError(f"{name}: no weights that can be read in this repository", hint=hint)
    return folder
