"""The tokenizer that lies beside weights: found, copied, and described for Hugging Face."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.errors import DataError
from evo_core.storage.files import copy_file, write_file

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizers import Tokenizer

_COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What Hugging Face's libraries read beside the tokenizer itself."""

log = logging.getLogger(__name__)


def find_tokenizer(*folders: Path) -> Path | None:
    """The first folder that has a tokenizer that can be read; None, with a warning for one that cannot."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    for folder in folders:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            continue
        try:
            load_tokenizer(folder)
            return folder
        except DataError as error:
            log.warning("the tokenizer beside the weights is left out: %s", error)
    return None


def copy_tokenizer(source: Path, folder: Path) -> Tokenizer:
    """Put a tokenizer, with what belongs to it, into a folder; returns it as it is read from there.

    Raises:
        DataError: there is none at `source`.
    """
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    folder.mkdir(exist_ok=True)
    for file in load_tokenizer(source).files:
        name = file.name
        if file.suffix != ".json" and not (source.is_dir() and (source / "tokenizer.json").is_file()):
            name = "tokenizer.model"  # the name by which everyone finds it
        copy_file(file, folder / name)
    if source.is_dir():
        for name in _COMPANIONS:
            if (source / name).is_file() and not (folder / name).exists():
                copy_file(source / name, folder / name)
    return load_tokenizer(folder)


def special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """``bos_token_id`` and the like of a config.json."""
    if tokenizer is None:
        return {}
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {name: token for name, token in ids.items() if token is not None}


def describe_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what makes transformers read a SentencePiece model as it is, where a folder has nothing of the kind.

    Without a chat template, which writes special tokens, transformers is told to take text that spells one as text.
    """
    from evo_core.weights.hf.sentencepiece_json import as_tokenizer_json

    config = folder / "tokenizer_config.json"
    if config.exists() or tokenizer.path.suffix != ".model":
        return
    tokens = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    settings: dict[str, Any] = {
        f"{name}_token": tokenizer.piece(token) for name, token in tokens.items() if token is not None
    }
    if not any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        settings["split_special_tokens"] = True
    # A tokenizer.json gives added tokens the ids that follow its own; these may have others.
    translated = None if (folder / "added_tokens.json").is_file() else as_tokenizer_json(tokenizer.path)
    if translated is not None:
        translated.save(str(folder / "tokenizer.json"))
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    else:
        log.warning(
            "%s: no tokenizer.json gives the same ids: transformers will read the model as Llama's", tokenizer.path
        )
        settings |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": tokenizer.bos_id is not None}
    write_file(config, json.dumps(settings, indent=2))


def put_begin_token(folder: Path) -> None:
    """Let the tokenizer of a folder put its begin token before a text, where its files say otherwise."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer.bos_id is None or tokenizer.begin == (tokenizer.bos_id,):
        return
    begin, config = tokenizer.piece(tokenizer.bos_id), folder / "tokenizer_config.json"
    settings = json.loads(config.read_bytes()) if config.is_file() else {}
    write_file(config, json.dumps({**settings, "bos_token": begin, "add_bos_token": True}, indent=2))
    if tokenizer.path.suffix == ".json":
        _put_before(tokenizer.path, begin, tokenizer.bos_id)


def _put_before(file: Path, begin: str, number: int) -> None:
    from tokenizers import Tokenizer, processors

    model = Tokenizer.from_file(str(file))
    template: Any = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, number)]
    )
    if isinstance(model.post_processor, processors.ByteLevel):  # it corrects offsets alone
        template = processors.Sequence([model.post_processor, template])
    model.post_processor = template
    model.save(str(file))
