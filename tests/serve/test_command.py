"""The command itself: how it starts, how it ends, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import typer

from evo_core.serve.command import app, load, main
from tests.generate.conftest import Trained
from tests.serve.conftest import serving


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_ends_it_even_in_the_middle_of_a_text(trained: Trained, number: int) -> None:
    with serving(trained.saved, "--max-length", "90000") as served:
        assert served.url.startswith("http://127.0.0.1:")
        heard: list[str] = []

        def listen() -> None:
            body = {"prompt": "the", "n": 8, "temperature": 2.0, "max_tokens": 80000, "stream": True, "seed": 1}
            with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as response:
                heard.extend(response.iter_lines())

        thread = threading.Thread(target=listen)
        thread.start()
        while not httpx.get(f"{served.url}/health").json()["running"]:
            pass
        assert served.end(number) == 128 + number
        thread.join(timeout=30)
        errors = [json.loads(line[6:])["error"] for line in heard if '"error"' in line]
        assert [error["message"] for error in errors] == ["the server is stopping"]
        assert [line for line in heard if line][-1] == "data: [DONE]"
        assert served.process.stdout is not None
        rest = served.process.stdout.read()
        assert "stopped" in rest
        assert "Traceback" not in rest


def test_a_chat_template_beside_the_tokenizer_is_used(trained: Trained, tmp_path: Path) -> None:
    from evo_core.checkpoint import load_model
    from evo_core.data.tokenize.tokenizers import load_tokenizer
    from evo_core.errors import DataError
    from evo_core.serve.chat import Chat
    from evo_core.serve.requests import Message

    copy = tmp_path / "letters.model"
    shutil.copy(trained.tokenizer, copy)
    plain = Chat(load_tokenizer(copy))
    assert plain.template is None
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = load_tokenizer(copy)
    chat = Chat(tokenizer)
    ids = chat.ids([Message(role="user", content="the cat")])
    assert ids == [tokenizer.bos_id, *tokenizer.encode("[user] the cat\n[assistant]")]
    assert not chat.stops
    with pytest.raises(DataError, match="no system"):
        chat.ids([Message(role="system", content="x")])
    assert load_model(trained.saved)[1] is not None


def test_it_listens_to_this_machine_alone_unless_told_otherwise() -> None:
    (host,) = [option for option in typer.main.get_command(app).params if option.name == "host"]
    assert host.default == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such checkpoint folder"),
        (["lokal:x"], 'CHECKPOINT: "lokal:x": no place is known by'),
        (["s3://bucket/x"], 'CHECKPOINT: "s3://bucket/x" is in a store, and a local path is expected'),
        ([""], "CHECKPOINT: is empty"),
        (["CKPT", "--device", "cuda:7"], "--device: cuda:7"),
        (["CKPT", "--dtype", "float3"], "unknown dtype"),
        (["CKPT", "--max-batch", "0"], "--max-batch: 0 must be 1 or more"),
        (["CKPT", "--max-body", "nan"], "--max-body: nan must be a number above 0"),
        (["CKPT", "--request-timeout", "0"], "--request-timeout: 0.0 must be a number above 0"),
        (["CKPT", "--port", "99999"], "--port: 99999 is no port"),
        (["CKPT", "--port", "-1"], "--port: -1 is no port"),
        (["CKPT", "--host", "nowhere.invalid"], "--host: there is no such address"),
        (["CKPT", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
    ],
)
def test_mistakes_are_one_line(
    trained: Trained, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([argument.replace("CKPT", str(trained.saved)) for argument in arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_several_ranks_are_refused(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([str(trained.saved), "--port", "0"])
    assert ended.value.code == 2
    assert "a server is one process, and 2 ranks were started" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit) as ended:
            main([str(trained.saved), "--port", str(taken.getsockname()[1])])
    assert ended.value.code not in (0, None)
    assert "address already in use" in capfd.readouterr().err


def test_output_that_cannot_be_written_is_one_line(trained: Trained) -> None:
    command = [sys.executable, "-m", "evo_core.serve", str(trained.saved), "--port", "0"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == "evo serve: error: nothing can be printed: No space left on device"
    assert "Traceback" not in ended.stderr


def test_its_name_is_the_folders_however_it_is_written(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.saved)
    for written in (str(trained.saved), f"local:{trained.saved}/", f"file://{trained.saved}", "."):
        assert load(written, device="cpu").name == trained.saved.name
