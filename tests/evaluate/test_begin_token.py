"""A text begins as the model's folder says: ids and log-likelihoods against transformers on the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.checkpoint import load_model
from evo_core.convert.command import main as convert
from evo_core.generate import generate
from evo_core.model import Decoder

pytest.importorskip("lm_eval", reason='needs lm-eval (pip install "evo-lm[eval]")')

from lm_eval.api.instance import Instance

from evo_core.evaluate.harness.model import HarnessModel

PAIRS = [("the cat", " sat on"), ("a dog", " is a"), ("which of", " these"), ("one", " two")]


@pytest.fixture(scope="module")
def exported(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tokenizer.json that puts a begin token before a text."""
    folder = tmp_path_factory.mktemp("begin") / "hf"
    convert([str(checkpoints / "2"), str(folder), "--architecture", "LlamaForCausalLM"])
    return folder


def plain_json(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))


def model_file(folder: Path, **settings: Any) -> None:
    """The SentencePiece model alone, with settings beside it."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **settings}))


def byte_level(folder: Path) -> None:
    """A tokenizer.json as GPT-2's, whose post-processor puts nothing before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    made.add_special_tokens(names[:2])
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.save(str(folder / "tokenizer.json"))


FORMS: dict[str, tuple[Any, bool]] = {
    "tokenizer.json": (lambda folder: None, True),
    "without a post-processor": (plain_json, False),
    "add_bos_token": (lambda folder: model_file(folder, add_bos_token=True), True),
    "no add_bos_token": (lambda folder: model_file(folder, add_bos_token=False), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_begin_as_with_transformers(form: str, exported: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    change, begins = FORMS[form]
    folder = shutil.copytree(exported, tmp_path / "hf")
    change(folder)
    text, theirs = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
    )
    model, tokenizer = load_model(folder, dtype=torch.float64)
    assert isinstance(model, Decoder) and tokenizer is not None
    assert tokenizer.begin == ((tokenizer.bos_id,) if begins else ())
    (result,) = generate(model, tokenizer, ["the cat"], max_new_tokens=4, do_sample=False)
    ids = text("the cat", return_tensors="pt").input_ids
    assert result.prompt_ids == ids[0].tolist()
    ending = {"eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(ids, max_new_tokens=4, do_sample=False, **ending)[0].tolist()
    assert result.prompt_ids + result.ids == expected[: len(result.prompt_ids + result.ids)]
    harness = HarnessModel(model, tokenizer, max_length=64)
    found = harness.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS])
    for (context, continuation), (log_probability, _) in zip(PAIRS, found, strict=True):
        whole, before = text(context + continuation).input_ids, len(text(context).input_ids)
        with torch.no_grad():
            scores = torch.log_softmax(theirs(torch.tensor([whole])).logits[0], -1)
        expected_sum = sum(float(scores[i - 1, whole[i]]) for i in range(before, len(whole)))
        assert log_probability == pytest.approx(expected_sum, abs=1e-4)  # their rotary angles are float32


def test_a_model_trained_here_keeps_its_begin_token(checkpoints: Path, exported: Path, tmp_path: Path) -> None:
    """What its tokenizer's folder says was not said of the documents that it was trained on."""
    trained = shutil.copytree(checkpoints / "2", tmp_path / "trained")
    settings = {"bos_token": "<s>", "add_bos_token": False}
    (trained / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    _, tokenizer = load_model(trained, check=False)
    assert tokenizer is not None and tokenizer.begin == (tokenizer.bos_id,)
    folder = shutil.copytree(exported, tmp_path / "hf")
    plain_json(folder)
    convert([str(folder), str(tmp_path / "imported")])
    _, tokenizer = load_model(tmp_path / "imported")
    assert tokenizer is not None and tokenizer.begin == () and tokenizer.bos_id is not None


@pytest.mark.parametrize("form", ["without a post-processor", "no add_bos_token", "byte level"])
def test_a_model_trained_here_keeps_it_in_a_folder_for_transformers(
    form: str, checkpoints: Path, exported: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    source = shutil.copytree(exported, tmp_path / "from")
    if form == "byte level":
        byte_level(source)
    else:
        FORMS[form][0](source)
    target = str(tmp_path / "hf")
    convert([str(checkpoints / "2"), target, "--architecture", "LlamaForCausalLM", "--tokenizer", str(source)])
    _, tokenizer = load_model(tmp_path / "hf")
    assert tokenizer is not None and tokenizer.begin == (tokenizer.bos_id,)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("the cat").input_ids == [tokenizer.bos_id, *tokenizer.encode("the cat")]
    convert([str(tmp_path / "hf"), str(tmp_path / "back")])
    _, tokenizer = load_model(tmp_path / "back")
    assert tokenizer is not None and tokenizer.begin == (tokenizer.bos_id,)
