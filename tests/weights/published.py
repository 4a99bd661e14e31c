"""Folders of weights as they are published, in small: the files, their names and their settings, code included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from evo_core.data.tokenize.tokenizers import train_sentencepiece
from evo_core.model import Decoder
from evo_core.storage.files import link_or_copy, link_tree
from evo_core.weights import open_weights, write_weights
from tests.weights.internevo_files import tensor_shard, write_model_config, write_tensor_parallel
from tests.weights.models import model, weights

PIECES, ROWS = 300, 304
"""Ids of the tokenizer; rows of the embedding, which published models have a few more of."""

SENTENCES = ["the cat sat on the mat", "in the beginning was the word", "a cat is a cat", "the word is the word"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
INTERNLM: dict[str, Any] = {
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_internlm.InternLMConfig",
        "AutoModel": "modeling_internlm.InternLMForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM",
    },
    "bias": True,
    "model_type": "internlm",
    "rotary": {"base": 10000, "type": "dynamic"},
    "torch_dtype": "float32",
}
INTERNLM2: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_internlm2.InternLM2ForSequenceClassification",
    },
    "bias": False,
    "model_type": "internlm2",
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
    "torch_dtype": "float32",
}


def write_tokenizer(folder: Path, tokenizer: Path) -> None:
    """A SentencePiece model alone, as of a class that lies beside it."""
    shutil.copyfile(tokenizer, folder / "tokenizer.model")


def trap(folder: Path, trace: Path, *names: str) -> None:
    """Python files that leave a trace when they are run."""
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write(__name__ + '\\n')\n")


def _internlm(folder: Path, tokenizer: Path, trace: Path, generation: str, config: Mapping[str, Any]) -> Decoder:
    made = model("INTERNLM" if generation == "internlm" else "INTERNLM2_PUBLIC", seed=3, vocab_size=ROWS)
    write_weights(weights(made), folder, "hf", max_shard=60_000)
    settings = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("rope_scaling", "rotary", "bias")}
    (folder / "config.json").write_text(json.dumps({**kept, **config}))
    write_tokenizer(folder, tokenizer)
    classes: list[str | None] = ["tokenization_internlm.InternLMTokenizer", None]
    if generation == "internlm2":
        fast = "tokenization_internlm2_fast.InternLM2TokenizerFast"
        classes = ["tokenization_internlm2.InternLM2Tokenizer", fast]
    name = str(classes[0]).rpartition(".")[2]
    stated = {"auto_map": {"AutoTokenizer": classes}, "tokenizer_class": name, "model_max_length": 10**30, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    names = [f"{part}_{generation}" for part in ("configuration", "modeling", "tokenization")]
    trap(folder, trace, *names, f"tokenization_{generation}_fast", "__init__", "setup", "sitecustomize")
    return made


def internlm_7b(folder: Path, tokenizer: Path, trace: Path) -> Decoder:
    """internlm/internlm-7b: biases, ``pytorch_model-0000n-of-0000m.bin`` with their index, a tokenizer of its class."""
    made = _internlm(folder, tokenizer, trace, "internlm", INTERNLM)
    _as_pickles(folder)
    return made


def internlm2_7b(folder: Path, tokenizer: Path, trace: Path) -> Decoder:
    """internlm/internlm2-7b, and 2_5: grouped wqkv, shared key/value heads, safetensors."""
    return _internlm(folder, tokenizer, trace, "internlm2", INTERNLM2)


def _as_pickles(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = open_safetensors(folder)
    for path in (*folder.glob("model-*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    placed = {name: f"pytorch_{file.replace('.safetensors', '.bin')}" for name, file in index["weight_map"].items()}
    for file in set(placed.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if placed[name] == file}, folder / file)
    index["weight_map"] = placed
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def open_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


def hf_llama(folder: Path, tokenizer: Path, trace: Path) -> Decoder:
    """A Llama in Hugging Face's form, with a ``tokenizer.json`` and its class's settings."""
    made = model("LLAMA3", seed=3, vocab_size=ROWS)
    write_weights(weights(made, tokenizer), folder, "hf", max_shard=60_000)
    return made


def meta_llama(folder: Path, tokenizer: Path, trace: Path) -> Decoder:
    """Meta's: two consolidated files, params.json, the tokenizer in the folder above them."""
    made = model("LLAMA2", seed=3, vocab_size=ROWS)
    folder.mkdir(parents=True)
    for rank in range(2):
        shard = {name: tensor_shard(name, tensor, rank, 2) for name, tensor in made.state_dict().items()}
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    write_tokenizer(folder.parent, tokenizer)
    return made


def internevo(folder: Path, tokenizer: Path, trace: Path) -> Decoder:
    """A checkpoint of InternEvo's own, of two tensor ranks; no tokenizer lies with it."""
    made = model("INTERNLM2_PUBLIC", seed=3, vocab_size=ROWS)
    write_tensor_parallel(made.state_dict(), folder, 2, tensor=2, pipeline=1)
    write_model_config(folder, {"num_attention_heads": 4, "num_kv_attention_heads": 2})
    return made


FORMS: dict[str, Callable[[Path, Path, Path], Decoder]] = {
    "internlm-7b": internlm_7b,
    "internlm2-7b": internlm2_7b,
    "hf-llama": hf_llama,
    "meta-llama": meta_llama,
    "internevo": internevo,
}


def put(folder: Path, uri: str) -> str:
    """A folder in a store, with the tokenizer that Meta puts above its folders."""
    link_tree(folder, uri)
    if (above := folder.parent / "tokenizer.model").is_file():
        link_or_copy(above, f"{uri.rpartition('/')[0]}/tokenizer.model")
    return uri


def letters(folder: Path, sentences: list[str] = SENTENCES) -> Path:
    """A tokenizer of `PIECES` ids."""
    return train_sentencepiece(sentences * 5, folder / "letters.model", vocab_size=PIECES)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """A folder's weights in the plain form."""
    return {name: tensor.read() for name, tensor in open_weights(folder).tensors.items()}
