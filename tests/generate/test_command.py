"""``python -m evo_core.generate`` from a checkpoint on disk to files, on one rank and on several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evo_core.checkpoint import load_model
from evo_core.command_line.program import invoke
from evo_core.config import load_config
from evo_core.data.shards.format import BinReader, BinWriter
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.errors import ConfigError, DataError
from evo_core.generate import generate
from evo_core.generate.command import app, main, run
from evo_core.parallel.process_group import ranks
from tests.generate.conftest import Trained
from tests.generate.models import LetterTokenizer, decoder
from tests.ranks import run_on_ranks

PROMPTS = ["the cat", "in the", "a", "the word is", "mat"]


def generate_here(
    trained: Trained, world_size: int, *settings: str, tensor: int | None = None, pipeline: int | None = None
) -> None:
    """Run the command's work on so many forked ranks."""

    def work() -> None:
        cfg = load_config(trained.config, settings)
        with ranks() as joined:
            run(cfg, joined, tensor, pipeline)

    run_on_ranks(work, world_size)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS[:2]) + "\n\n" + "\n".join(PROMPTS[2:]))
    return path


def test_one_output_whatever_the_number_of_ranks(trained: Trained, prompts: Path, tmp_path: Path) -> None:
    for world_size in (1, 2, 7):
        folder = tmp_path / str(world_size)
        generate_here(trained, world_size, f"generation.prompts={prompts}", f"generation.output_folder=local:{folder}")
        assert sorted(path.name for path in folder.iterdir()) == ["samples.jsonl", "samples.md"]
        assert (folder / "samples.jsonl").read_text() == (tmp_path / "1" / "samples.jsonl").read_text()

    model, tokenizer = load_model(trained.saved / "2")
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=12, seed=1024)
    assert [row["prompt"] for row in rows(tmp_path / "1")] == PROMPTS
    for row, result in zip(rows(tmp_path / "1"), expected, strict=True):
        assert row == {
            "prompt": result.prompt,
            "text": result.text,
            "ids": result.ids,
            "finished": result.finished,
            "prompt_ids": result.prompt_ids,
        }
        assert row["prompt_ids"] == [1, *load_tokenizer(trained.tokenizer).encode(row["prompt"])]


def test_beams_over_ranks_and_a_stretched_base(trained: Trained, prompts: Path, tmp_path: Path) -> None:
    settings = ["generation.num_beams=3", "generation.do_sample=false", "generation.length_penalty=0.7"]
    settings += ["model.use_dynamic_ntk_rope=true", "model.max_position_embeddings=6", f"generation.prompts={prompts}"]
    settings += ["model.dynamic_ntk_factor=4"]
    for world_size in (1, 3):
        generate_here(trained, world_size, *settings, f"generation.output_folder={tmp_path / str(world_size)}")
    assert rows(tmp_path / "1") == rows(tmp_path / "3")
    model, tokenizer = load_model(trained.saved / "2")
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 3, "length_penalty": 0.7}
    plain = generate(model, tokenizer, PROMPTS, **options)
    model.cfg = model.cfg.model_copy(update={"max_position_embeddings": 6})
    by_one = generate(model, tokenizer, PROMPTS, dynamic_ntk=True, **options)
    model.cfg = model.cfg.model_copy(update={"dynamic_ntk_factor": 4.0})
    stretched = generate(model, tokenizer, PROMPTS, dynamic_ntk=True, **options)
    assert [row["ids"] for row in rows(tmp_path / "1")] == [result.ids for result in stretched]
    assert stretched != plain and stretched != by_one


def test_ranks_that_hold_the_model_together_write_the_one_output(
    trained: Trained, prompts: Path, tmp_path: Path
) -> None:
    settings = [f"generation.prompts={prompts}", "generation.repetition_penalty=1.2"]
    generate_here(trained, 1, *settings, f"generation.output_folder={tmp_path / '1'}")
    generate_here(trained, 4, *settings, f"generation.output_folder={tmp_path / '4'}", tensor=2)
    assert rows(tmp_path / "4") == rows(tmp_path / "1")

    # The whole command, with a layout of training in the file that stands for the same of mtp.
    layout = {"zero1": 1, "tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2, "overlap": True}}
    config = tmp_path / "isp.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(trained.config.read_text()) | {"parallel": layout}))
    words = ["--config", str(config), "--set", f"generation.output_folder={tmp_path / '2'}"]
    words += [part for setting in settings for part in ("--set", setting)]
    run_on_ranks(lambda: main(words), 2)
    assert rows(tmp_path / "2") == rows(tmp_path / "1")
    with pytest.raises(ConfigError, match=r"parallel\.tensor\.size: 1 rank does not divide by 2 \(nearest: 1"):
        invoke(app, words, "generate")
    invoke(app, [*words, "--tensor", "1"], "generate")
    assert rows(tmp_path / "2") == rows(tmp_path / "1")


def test_stages_write_the_one_output(trained: Trained, prompts: Path, tmp_path: Path) -> None:
    # Texts of up to 15 tokens, of which two copies have three and two.
    of_all = [f"generation.prompts={prompts}", "generation.top_p=0.9"]
    of_all += ["generation.max_length=16", "generation.max_new_tokens=null"]

    def settings(name: str) -> list[str]:
        return [*of_all, f"generation.output_folder={tmp_path / name}"]

    generate_here(trained, 1, *settings("one"))
    generate_here(trained, 4, *settings("copies"), pipeline=2)
    generate_here(trained, 4, *settings("both"), tensor=2, pipeline=2)
    assert len({len(row["ids"]) for row in rows(tmp_path / "one")}) > 2
    assert rows(tmp_path / "copies") == rows(tmp_path / "one")
    assert rows(tmp_path / "both") == rows(tmp_path / "one")

    # The whole command, with a layout of training in the file that stands for one stage on each rank.
    layout = {"parallel": {"zero1": 1, "pipeline": {"size": 2, "mode": "ZBV", "interleaved_overlap": True}}}
    config = tmp_path / "zbv.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(trained.config.read_text()) | layout))
    words = ["--config", str(config), *(part for each in settings("file") for part in ("--set", each))]
    assert run_on_ranks(lambda: main(words), 2) == [None] * 2
    assert rows(tmp_path / "file") == rows(tmp_path / "one")


def test_a_tensor_size_that_does_not_fit_names_the_option(trained: Trained, tmp_path: Path) -> None:
    words = ["--config", str(trained.config), "--set", f"generation.output_folder={tmp_path / 'out'}"]
    words += ["--set", "generation.prompts=[a]", "--tensor"]
    for world_size, tensor, message in (
        (1, 2, "--tensor: 1 rank does not divide by 2"),
        (3, 3, "--tensor: 3 ranks cannot share num_attention_heads 4"),
    ):

        def refused(tensor: int = tensor) -> str:
            with pytest.raises(ConfigError) as caught:
                invoke(app, [*words, str(tensor)], "generate")
            return str(caught.value)

        for said in run_on_ranks(refused, world_size):
            assert said.startswith(message)
    assert not (tmp_path / "out").exists()


def test_token_prompts_give_token_files(trained: Trained, tmp_path: Path) -> None:
    shards, out = tmp_path / "valid", tmp_path / "out"
    tokenizer = load_tokenizer(trained.tokenizer)
    documents = {
        "cn": [tokenizer.encode("the cat sat", bos=True, eos=True), [-1, -9, 10, 2]],
        "en": [tokenizer.encode("a word", bos=True)],
    }
    for name, part in documents.items():
        with BinWriter(shards / name / "valid_000.bin") as writer:
            for ids in part:
                writer.write(ids)
    generate_here(
        trained,
        2,
        f"data.valid_folder={shards}",
        f"generation.output_folder={out}",
        "generation.do_sample=false",
        "generation.eos_id=[2,7]",
    )
    results = rows(out)
    assert results[0]["prompt_ids"] == documents["cn"][0][:-1]  # behind its end there is nothing to continue
    assert results[0]["prompt"] == "the cat sat"
    assert results[1]["prompt_ids"] == [1, 9, 10]
    assert results[2]["prompt_ids"] == documents["en"][0]
    written = [
        BinReader(out / f"{name}.bin").tokens(i).tolist()
        for name in ("cn", "en")
        for i in range(len(BinReader(out / f"{name}.bin")))
    ]
    assert written == [row["prompt_ids"] + row["ids"] for row in results]
    BinReader(out / "cn.bin").check(tokenizer.vocab_size)


def test_the_whole_command_in_a_process_of_its_own(trained: Trained, tmp_path: Path) -> None:
    job, out = tmp_path / "job", tmp_path / "out"
    job.mkdir()
    command = [sys.executable, "-m", "evo_core.generate", "--config", str(trained.config), "--seed", "5"]
    for setting in (
        f"output_folder={out}",
        'prompts=["the cat", "```python"]',
        f"ckpt_folder=local:{trained.saved / '1'}",
        "max_length=40",
        "temperature=1.5",
        "top_k=0",
        "top_p=0.9",
        "repetition_penalty=1.3",
        "length_penalty=0.9",
    ):
        command += ["--set", f"generation.{setting}"]
    environment = {**os.environ, "EVO_JOB_FOLDER": str(job), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert f"model: {trained.saved / '1'}" in ended.stdout
    progress = json.loads((job / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (2, 2, "prompts")

    model, tokenizer = load_model(trained.saved / "1")
    options = {"temperature": 1.5, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.3, "length_penalty": 0.9}
    expected = generate(model, tokenizer, ["the cat", "```python"], max_new_tokens=12, seed=5, batch_size=2, **options)
    assert [row["ids"] for row in rows(out)] == [result.ids for result in expected]
    page = (out / "samples.md").read_text()
    assert "````text\n```python\n````" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "generation.output_folder: is required"),
        (["generation.output_folder=OUT"], "generation.prompts: there is nothing to continue"),
        (["generation.output_folder=OUT", "generation.prompts=nowhere.txt"], "no such file of prompts"),
        (["generation.output_folder=OUT", "generation.data_folder=nowhere"], "no such folder of token files"),
        (["generation.output_folder=OUT", "generation.prompts=[a]", "generation.ckpt_folder=nowhere"], "nowhere"),
        (["generation.output_folder=OUT", "generation.prompts=[a]", "generation.tempreture=1"], "temperature"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    out = tmp_path / "out"
    arguments = ["--config", str(trained.config)]
    for setting in settings:
        arguments += ["--set", setting.replace("OUT", str(out))]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_prompt_that_is_refused_leaves_no_folder(trained: Trained, tmp_path: Path) -> None:
    with BinWriter(tmp_path / "prompts" / "odd.bin") as writer:
        writer.write([10_000])
    folders = [f"data_folder={tmp_path / 'prompts'}", f"output_folder={tmp_path / 'new' / 'out'}"]
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(trained.config), *(part for f in folders for part in ("--set", f"generation.{f}"))])
    assert ended.value.code == 2
    assert not (tmp_path / "new").exists()


def test_what_one_copy_of_the_model_cannot_do_ends_all_ranks(trained: Trained, tmp_path: Path) -> None:
    with BinWriter(tmp_path / "prompts" / "odd.bin") as writer:
        writer.write([10])
        writer.write([10_000])  # the second rank's
    folders = [f"generation.data_folder={tmp_path / 'prompts'}", f"generation.output_folder={tmp_path / 'out'}"]

    def refused() -> str:
        with ranks() as joined, pytest.raises(DataError) as told:
            run(load_config(trained.config, folders), joined)
        return str(told.value)

    first, second = run_on_ranks(refused, 2, timeout=30)
    assert first == second and "10000" in first


def test_prompts_without_room_are_counted(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(trained.config), "--set", f"generation.output_folder={tmp_path / 'out'}"]
    arguments += ["--set", f'generation.prompts=["a", "{"the cat " * 30}"]']
    arguments += ["--set", "generation.max_new_tokens=null", "--set", "generation.max_length=8"]
    main(arguments)
    assert "1 of 2 prompts are max_length long or longer" in capsys.readouterr().out
    assert [len(row["prompt_ids"]) <= 8 for row in rows(tmp_path / "out")] == [True, True]


def evo(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, **options)


@pytest.mark.slow
def test_a_terminal_of_another_encoding_gets_escapes(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "语料"
    settings = [f"generation.output_folder={folder}", 'generation.prompts=["the"]']
    arguments = [part for setting in settings for part in ("--set", setting)]
    english = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    ended = evo("evo_core.generate", "--config", str(trained.config), *arguments, env=english, stdout=subprocess.PIPE)
    assert ended.returncode == 0, ended.stderr
    assert "\\u8bed\\u6599/samples.md" in ended.stdout
    assert (folder / "samples.jsonl").is_file()


def test_full_and_closed_outputs_are_one_line(tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    of_type = {"loss": 1.0, "perplexity": 2.7, "acc": 0.5, "tokens": 10}
    scores.write_text(json.dumps({"checkpoint": "x", "step": 1, "tokens": 1, "model": {"en": of_type}}))
    arguments = ("evo_core.evaluate", "--compare", str(scores), str(scores))
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = evo(*arguments, stdout=full)
    assert ended.returncode == 1
    assert ended.stderr == "evo_core.evaluate: error: nothing can be printed: No space left on device\n"
    ended = evo(*arguments, "--output", str(tmp_path), stdout=subprocess.PIPE)
    assert ended.returncode == 2
    assert "--output: is a folder" in ended.stderr
    ended = evo(*arguments, "--output", f"{scores}/below.json", stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    settings = [f"generation.output_folder={taken}", 'generation.prompts=["the"]']
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(trained.config), *(part for setting in settings for part in ("--set", setting))])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"{taken}: generation.output_folder: cannot be written" in error
    assert "prompts" not in error
    assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[0, 5, 99999]], "token id 99999, outside the tokenizer's vocabulary"),
        ([[5], [1.5]], "prompt 2 is neither a text nor a list of token ids"),
        ([[True]], "prompt 1 is neither"),
        ([None], "prompt 1 is neither"),
        ([[[5]]], "prompt 1 is neither"),
        (["a", "b\ud800"], "prompt 2 has half a surrogate pair"),
        ([[]], "prompt 1 has no tokens"),
        ("the cat", "prompts is one text"),
    ],
)
def test_prompts_are_looked_at_before_any_is_continued(prompts: Any, words: str) -> None:
    worked: list[int] = []
    with pytest.raises(DataError, match=words):
        model = decoder(vocab_size=100_000)
        generate(model, LetterTokenizer(), prompts, progress=lambda done, tokens: worked.append(tokens))
    assert not worked
