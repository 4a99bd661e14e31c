"""Where a text ends goes with the weights: read beside them, kept by every format, heeded by whatever generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from evo_core.checkpoint import TrainState, load_model, save
from evo_core.checkpoint.generation_settings import read_generation
from evo_core.errors import CheckpointError
from evo_core.evaluate.harness.until import continue_until
from evo_core.generate import generate, stream
from evo_core.placement import Placed, Placement
from evo_core.serve.api import create_app
from evo_core.serve.service import Service
from evo_core.weights import open_weights, write_weights
from tests.ranks import run_on_ranks

TEXT = ["hello world how are you the cat sat on the mat"] * 10
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
LIKELY = 2
"""The id that the model below gives soon: <|eot_id|>, which is not its tokenizer's end of text."""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama as chat models are published: a byte-level tokenizer and three ids that end an answer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("published") / "chat"
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=letters.get_vocab_size(),
            hidden_size=48,
            intermediate_size=88,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
            max_position_embeddings=256,
        )
    )
    with torch.no_grad():
        made.lm_head.weight[LIKELY] *= 6
    made.generation_config.eos_token_id = [1, 2, 4]
    made.generation_config.repetition_penalty = 1.05
    made.save_pretrained(folder)
    return folder


PROMPTS = [[0, *range(20 + n, 26 + n)] for n in range(8)]


def theirs(folder: Path) -> list[list[int]]:
    """What transformers writes after the prompts, greedily, up to where it ends."""
    import transformers

    made = transformers.AutoModelForCausalLM.from_pretrained(folder)
    plain: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "repetition_penalty": 1.0}
    plain["attention_mask"] = torch.ones(1, len(PROMPTS[0]), dtype=torch.int64)
    ids = [made.generate(torch.tensor([prompt]), **plain)[0].tolist() for prompt in PROMPTS]
    return [found[len(prompt) :] for found, prompt in zip(ids, PROMPTS, strict=True)]


def ours(folder: Path, **settings: Any) -> list[list[int]]:
    made, tokenizer = load_model(folder)
    return [g.ids for g in generate(made, tokenizer, PROMPTS, do_sample=False, max_new_tokens=20, **settings)]


def moved_to_config(folder: Path, copy: Path) -> Path:
    """The same with all ids in config.json, as older folders have them."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "generation_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 2, 4]}))
    return copy


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_texts_end_where_they_do_in_transformers(chat: Path, tmp_path: Path, place: str) -> None:
    folder = chat if place == "generation_config.json" else moved_to_config(chat, tmp_path / "older")
    expected = theirs(folder)
    assert any(ids[-1] == LIKELY for ids in expected)  # else this would show nothing
    assert ours(folder) == expected


def test_they_go_through_every_format(chat: Path, tmp_path: Path) -> None:
    source = moved_to_config(chat, tmp_path / "older")
    write_weights(open_weights(source), tmp_path / "evo", "evo")
    write_weights(open_weights(tmp_path / "evo"), tmp_path / "hf", "hf")
    write_weights(open_weights(tmp_path / "hf"), tmp_path / "internevo", "internevo")
    write_weights(open_weights(tmp_path / "internevo"), tmp_path / "again", "evo")
    expected = ours(source)
    for name in ("evo", "hf", "internevo", "again"):
        assert open_weights(tmp_path / name).ending == {1, 2, 4}
        assert ours(tmp_path / name) == expected
    assert theirs(tmp_path / "hf") == expected
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == [1, 2, 4]


def test_what_else_is_said_of_generating_is_kept(chat: Path, tmp_path: Path) -> None:
    write_weights(open_weights(chat), tmp_path / "evo", "evo")
    write_weights(open_weights(tmp_path / "evo"), tmp_path / "hf", "hf")
    before, after = (json.loads((f / "generation_config.json").read_text()) for f in (chat, tmp_path / "hf"))
    assert after == before


def test_a_run_that_starts_from_them_keeps_them(chat: Path, tmp_path: Path) -> None:
    weights = open_weights(chat)

    def write() -> None:
        model, _ = load_model(chat)
        save(
            tmp_path / "ckpt",
            weights.config,
            model,
            {"moment": Placed(torch.zeros(1), Placement.whole((1,), [0]))},
            TrainState(step=1),
        )

    run_on_ranks(write, 1)
    model, _ = load_model(tmp_path / "ckpt")
    assert model.ending == {1, 2, 4}


def test_without_a_tokenizer_too(chat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).write_bytes((chat / name).read_bytes())
    expected = ours(chat)
    assert ours(folder) == expected
    write_weights(open_weights(folder), tmp_path / "evo", "evo")
    assert ours(tmp_path / "evo") == expected


def test_whatever_generates_heeds_them(chat: Path) -> None:
    model, tokenizer = load_model(chat)
    assert tokenizer is not None
    expected = ours(chat)
    one = next(n for n, ids in enumerate(expected) if 2 < len(ids) < 20)
    text = "".join(stream(model, tokenizer, PROMPTS[one], do_sample=False, max_new_tokens=20))
    assert text == tokenizer.decode(expected[one])
    settings = {"until": ["\n\n"], "max_gen_toks": 20}
    assert continue_until(model, tokenizer, [PROMPTS[one]], [settings], numbers=[0], max_length=256) == [text]
    with TestClient(create_app(Service(model, tokenizer, "chat"))) as client:
        asked = {"prompt": PROMPTS[one], "temperature": 0, "max_tokens": 20}
        choice = client.post("/v1/completions", json=asked).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


def test_stated_ids_replace_them(chat: Path) -> None:
    assert all(LIKELY not in ids[:-1] for ids in ours(chat))
    assert any(LIKELY in ids[:-1] for ids in ours(chat, eos_id=4))


def test_a_checkpoint_of_an_older_version_has_them_beside_its_tokenizer(chat: Path, tmp_path: Path) -> None:
    write_weights(open_weights(chat), tmp_path / "evo", "evo")
    (tmp_path / "evo" / "generation_config.json").rename(tmp_path / "evo" / "tokenizer" / "generation_config.json")
    manifest = tmp_path / "evo" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"generation_config', '"tokenizer/generation_config'))
    assert open_weights(tmp_path / "evo").ending == {1, 2, 4}


@pytest.mark.parametrize("value", ["2", True, 1.5, [1, [2]], {"id": 1}])
def test_what_is_no_id_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id"):
        read_generation(tmp_path)


@pytest.mark.parametrize(("value", "ids"), [(None, []), (-1, []), (3, [3]), ([3, 3, 5], [3, 5]), ([], [])])
def test_one_id_several_or_none(tmp_path: Path, value: Any, ids: list[int]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert read_generation(tmp_path).get("eos_token_id", []) == ids
