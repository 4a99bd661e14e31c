"""Tokenizers: SentencePiece models and Hugging Face's ``tokenizer.json``, behind one interface."""

from __future__ import annotations

from pathlib import Path

from evo_core.data.tokenize.hugging_face_tokenizer import HuggingFaceTokenizer
from evo_core.data.tokenize.sentencepiece_tokenizer import SentencePieceTokenizer
from evo_core.data.tokenize.tokenizer import WHERE_FROM, Tokenizer
from evo_core.data.tokenize.tokenizer_settings import CONFIG, SIDE_FILES, read_json_object
from evo_core.data.tokenize.training import train_sentencepiece
from evo_core.errors import DataError
from evo_core.storage.location import is_hub_id, local_path

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer", "Tokenizer", "load_tokenizer", "train_sentencepiece"]

# Data alone: nothing that would be run.
_HUB_FILES = ("tokenizer.json", "tokenizer.model", "chat_template.jinja", *SIDE_FILES)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, or in a folder with ``tokenizer.json``, ``tokenizer.model`` or one ``*.model``.

    ``tokenizer.json`` goes first where a folder has both: it also holds the tokens added to the model. A hub id
    (``internlm/internlm-7b``) stands for such a folder, of which nothing but the tokenizer's files is fetched, once.

    Raises:
        DataError: nothing is there, or it is no tokenizer.
    """
    if is_hub_id(str(path)):
        path = _fetched(str(path))
    path = local_path(path if isinstance(path, Path) and path.exists() else str(path))
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise DataError("there is no tokenizer here", file=path, hint=WHERE_FROM)
    # By content, since a copy may have been given another name.
    with path.open("rb") as file:
        is_json = file.read(1) == b"{"
    if is_json or path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    return SentencePieceTokenizer(path)


def _fetched(hub_id: str) -> Path:
    """The folder of the hub's cache that holds a repository's tokenizer."""
    hint = f"there is no folder {hub_id} here either; where there is no network, fetch it elsewhere and name its folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            "to read from a model hub, the package huggingface_hub is needed",
            file=hub_id,
            hint="pip install 'evo-lm[hf]'",
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the library has errors of its own, requests' and httpx'
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"this tokenizer cannot be fetched from the hub: {reason}", file=hub_id, hint=hint) from None


def _brings_code(folder: Path) -> bool:
    """Whether the tokenizer of a folder is made by a class that lies beside it."""
    return "auto_map" in read_json_object(folder / CONFIG)


def _file_in(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    models = sorted(folder.glob("*.model"))
    if len(models) != 1:
        found = ", ".join(model.name for model in models) or "none"
        hint = "its class (auto_map) is code of its own, which is not run" if _brings_code(folder) else None
        raise DataError(
            f"expected tokenizer.json, tokenizer.model or one *.model in this folder; *.model: {found}",
            file=folder,
            hint=hint,
        )
    return models[0]
