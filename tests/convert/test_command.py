"""`evo convert` as a command, and what it leaves to generation and to transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from evo_core.command_line.program import invoke
from evo_core.config import load_config, load_saved_config
from evo_core.convert.command import app, main, size_in_bytes
from evo_core.data.tokenize.tokenizers import load_tokenizer, train_sentencepiece
from evo_core.errors import CheckpointError, ConfigError
from evo_core.generate import generate
from evo_core.generate.command import main as generate_command
from evo_core.weights import write_weights
from evo_core.weights.loading import load_model, read_config, resolve
from tests.generate.conftest import SENTENCES
from tests.model.configs import relative_error
from tests.weights.models import content, logits, model, same, weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(SENTENCES * 5, tmp_path_factory.mktemp("t") / "letters.model", vocab_size=300)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Path) -> Path:
    """A checkpoint of ours with a tokenizer."""
    write_weights(weights(model("LLAMA2", vocab_size=300), tokenizer), tmp_path / "evo", "evo")
    return tmp_path / "evo"


def run(*arguments: object) -> None:
    invoke(app, [str(argument) for argument in arguments], "evo convert")


def test_there_and_back(tmp_path: Path, saved: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(saved, tmp_path / "hf")
    line = capsys.readouterr().out
    assert line.startswith("evo -> hf: LLAMA2, ")
    assert str(tmp_path / "hf") in line
    run(tmp_path / "hf", tmp_path / "back", "--from", "hf")
    ours, found = load_model(tmp_path / "back")
    original, _ = load_model(saved)
    assert relative_error(logits(ours), logits(original)) <= 1e-6
    assert found is not None
    text = "a cat, 42 Katzen, 三国\n  end"
    assert found.encode(text, bos=True, eos=True) == load_tokenizer(tokenizer).encode(text, bos=True, eos=True)
    run(tmp_path / "back", tmp_path / "hf2")
    assert content(tmp_path / "hf2") == content(tmp_path / "hf")


def test_transformers_reads_the_tokenizer(tmp_path: Path, saved: Path, tokenizer: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(saved, tmp_path / "hf")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "hf"), load_tokenizer(tokenizer)
    for odd in ("  two  spaces\n\ttab ", "桃园三结义 \N{GRINNING FACE} é", "12 345", ""):
        assert theirs(odd)["input_ids"] == ours.encode(odd, bos=True)
        assert theirs.decode(ours.encode(odd)) == ours.decode(ours.encode(odd)) == odd
    text = "the cat sat on the word"
    assert theirs(text)["input_ids"] == ours.encode(text, bos=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64)
    out = made.generate(torch.tensor([ours.encode(text, bos=True)]), max_new_tokens=8, do_sample=False)
    mine = generate(load_model(saved, dtype=torch.float64)[0], ours, [text], max_new_tokens=8, do_sample=False)
    assert out[0].tolist() == mine[0].prompt_ids + mine[0].ids


def test_generation_takes_a_hugging_face_folder(tmp_path: Path, saved: Path) -> None:
    """Loaded directly it writes the same texts, with the tokenizer that lies there."""
    run(saved, tmp_path / "hf")
    assert resolve(tmp_path / "hf") == tmp_path / "hf"
    assert read_config(tmp_path / "hf").model_type == "LLAMA2"
    texts = []
    for folder in (saved, tmp_path / "hf"):
        made, tokenizer = load_model(folder, dtype=torch.float64)
        made_texts = generate(made, tokenizer, ["the cat", "a word"], max_new_tokens=10, do_sample=False)
        texts.append([(text.prompt_ids, text.ids) for text in made_texts])
    assert texts[0] == texts[1]


def test_the_generate_command_takes_it_too(tmp_path: Path, saved: Path) -> None:
    run(saved, tmp_path / "hf")
    job = {
        "model_type": "LLAMA2",
        "model": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 300},
        "generation": {
            "ckpt_folder": str(tmp_path / "hf"),
            "prompts": ["the cat"],
            "output_folder": str(tmp_path / "out"),
            "max_new_tokens": 4,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    generate_command(["--config", str(tmp_path / "job.yaml")])
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 1


def test_other_types_shards_and_tokenizers(tmp_path: Path, saved: Path) -> None:
    run(saved, tmp_path / "hf", "--dtype", "bfloat16", "--max-shard", "20KB")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert all((tmp_path / "hf" / name).stat().st_size < 25_000 for name in files)
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in load_model(saved)[0].parameters())
    narrow, _ = load_model(tmp_path / "hf")
    assert narrow.dtype == torch.bfloat16
    (tmp_path / "bare").mkdir()
    for path in (tmp_path / "hf").iterdir():
        if "token" not in path.name:
            shutil.copy(path, tmp_path / "bare")
    assert load_model(tmp_path / "bare")[1] is None
    run(tmp_path / "bare", tmp_path / "with", "--tokenizer", tmp_path / "hf" / "tokenizer.model")
    assert load_model(tmp_path / "with")[1] is not None


def test_to_internevo_and_as_another_family(tmp_path: Path, saved: Path) -> None:
    run(saved, tmp_path / "theirs", "--to", "internevo")
    assert same(load_model(tmp_path / "theirs")[0], load_model(saved)[0])
    run(saved, tmp_path / "grouped", "--to", "evo", "--model-type", "INTERNLM2_PUBLIC")
    grouped, _ = load_model(tmp_path / "grouped")
    assert "layers.0.attention.wqkv.weight" in grouped.state_dict()
    assert relative_error(logits(grouped), logits(load_model(saved)[0])) <= 1e-6


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere", "new"], "nowhere: no such checkpoint folder"),
        (["gs://x", "new"], 'SRC: "gs://x": no place is known by'),
        (["evo", "evo"], "evo: is there already"),
        (["evo", "new", "--from", "hf"], "is in the format evo, not hf"),
        (["evo", "new", "--dtype", "int8"], "--dtype: unknown type 'int8'"),
        (["evo", "new", "--max-shard", "big"], "--max-shard: 'big' is no size"),
        (["evo", "new", "--to", "evo", "--rotary-type", "dynamic"], "--rotary-type: is for a Hugging Face folder"),
        (["evo", "new", "--model-type", "INTERNLM"], "INTERNLM has as many key and value heads as query heads"),
        (["evo", "new", "--tokenizer", "nothing"], "there is no tokenizer here"),
        (["evo/config.yaml", "new"], "is a file .name the folder it is in"),
        (["empty", "new"], "no complete checkpoint here.*config.json with safetensors"),
    ],
)
def test_mistakes(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match=problem) as caught:
        run(*arguments)
    assert isinstance(caught.value, CheckpointError | ConfigError) or "tokenizer" in problem
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_does_not_fit(tmp_path: Path, tokenizer: Path) -> None:
    write_weights(weights(model("LLAMA2")), tmp_path / "evo", "evo")
    with pytest.raises(CheckpointError, match="has 300 pieces, which do not fit the model's vocabulary of 61"):
        run(tmp_path / "evo", tmp_path / "hf", "--tokenizer", tokenizer)


def test_damage_leaves_nothing_written(tmp_path: Path, saved: Path) -> None:
    file = next((saved / "model").glob("*.distcp"))
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match="do not have the digest they were written with"):
        run(saved, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("512MiB", 2**29), ("1.5 kb", 1500), ("77", 77), ("2G", 2 * 10**9)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


def test_the_command_line(tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line on what was done; a mistake in one line with status 2."""
    main([str(saved), str(tmp_path / "hf")])
    assert capsys.readouterr().out.startswith("evo -> hf: LLAMA2, ")
    with pytest.raises(SystemExit) as left:
        main([str(saved), str(tmp_path / "hf")])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"evo_core.convert: error: {tmp_path / 'hf'}: is there already (name a new or an empty folder)"
    ]


@pytest.mark.slow
def test_under_evo(tmp_path: Path, saved: Path) -> None:
    command = [str(Path(sys.executable).with_name("evo")), "convert", str(saved), str(tmp_path / "hf")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("evo -> hf: LLAMA2, ")


def test_weights_can_be_taken_where_the_variables_of_their_run_are_not_set(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders and addresses of the run stay references; what describes the model must be known."""
    job = tmp_path / "job.yaml"
    alert = '{feishu_alert_address: "https://x/${oc.env:PLACE}/${oc.env:HOOK}"}'
    job.write_text(f'seed: 7\nckpt: {{save_ckpt_folder: "${{oc.env:PLACE}}/x"}}\nmonitor: {{alert: {alert}}}\n')
    for name in ("PLACE", "HOOK"):
        monkeypatch.setenv(name, "there")
    made = weights(model("LLAMA2", vocab_size=300), tokenizer)
    made = replace(made, config=load_config(job, blocks=made.config.to_plain()))
    write_weights(made, tmp_path / "evo", "evo")
    monkeypatch.delenv("HOOK")
    monkeypatch.delenv("PLACE")

    assert load_model(tmp_path / "evo")[1] is not None
    config = read_config(tmp_path / "evo")
    assert config.ckpt.save_ckpt_folder == "${oc.env:PLACE}/x"
    run(tmp_path / "evo", tmp_path / "hf")
    run(tmp_path / "evo", tmp_path / "again", "--to", "evo")
    assert (tmp_path / "again" / "config.yaml").read_bytes() == (tmp_path / "evo" / "config.yaml").read_bytes()
    monkeypatch.setenv("PLACE", "elsewhere")
    assert read_config(tmp_path / "evo").monitor.alert.feishu_alert_address == "https://x/elsewhere/${oc.env:HOOK}"

    saved = tmp_path / "saved.yaml"
    for line in ("seed: X", "model: {num_layers: 2, dtype: X}", "model_type: X"):
        saved.write_text(line.replace("X", "'${oc.env:HOOK}'"))
        with pytest.raises(ConfigError, match=r"saved\.yaml:1: \S+: the environment variable HOOK is not set"):
            load_saved_config(saved)
