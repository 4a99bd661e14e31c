"""What strangers send: every answer keeps the API's form, and asks what it asks by name."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from evo_core.checkpoint import load_model
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.generate import generate
from evo_core.serve.api import create_app
from evo_core.serve.service import Service
from evo_core.serve.stops import StopIds
from tests.generate.conftest import Trained
from tests.serve.conftest import Served, serving

GREEDY = {"temperature": 0, "max_tokens": 3}
HI = [{"role": "user", "content": "a"}]
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer whose form is checked."""
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def post(client: httpx.Client, body: Any, path: str = "completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(f"/v1/{path}", content=content, headers=JSON)


ODD_BODIES: list[tuple[Any, str]] = [
    ({"prompt": "a\ud800b"}, "prompt: half a surrogate pair"),
    ({"prompt": ["a", "\udfff"]}, "prompt: half a surrogate pair"),
    ({"prompt": "a", "stop": ["\ud83d"]}, "stop: half a surrogate pair"),
    ({"prompt": "a", "model": "\ud83d"}, "model: half a surrogate pair"),
    ({"prompt": "a", "\ud83d": 1}, "half a surrogate pair"),
    ({"prompt": [7, -1]}, "token id -1, outside"),
    ({"prompt": [-1, -1]}, "token id -1, outside"),
    ({"prompt": [7, 10**30]}, "outside"),
    ({"prompt": [1.5]}, "list of token ids (whole numbers)"),
    ({"prompt": [True]}, "list of token ids (whole numbers)"),
    ({"prompt": [[[1]]]}, "list of token ids (whole numbers)"),
    ({"prompt": ["a", 1]}, "list of token ids (whole numbers)"),
    ({"prompt": [[1], "a"]}, "list of token ids (whole numbers)"),
    ({"prompt": {"a": 1}}, "list of token ids (whole numbers)"),
    ({"prompt": None}, "prompt"),
    ({"prompt": [[]]}, "no tokens"),
    ({"prompt": [[1], []]}, "no tokens"),
    ({"prompt": "a", "n": 10**9}, "n: "),
    ({"prompt": "a", "n": True}, "n: must be a number"),
    ({"prompt": "a", "n": 1.5}, "n: "),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 10**12}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens: must be a number"),
    ({"prompt": "a", "temperature": 10**400}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
    ({"prompt": "a", "top_p": 1.01}, "top_p"),
    ({"prompt": "a", "seed": 1.5}, "seed"),
    ({"prompt": "a", "seed": [1]}, "seed"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "stop": [1]}, "stop"),
    ({"prompt": "a", "stop": ["x" * 100_000]}, "stop"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids holds -1"),
    ({"prompt": "a", "stop_token_ids": ["a"]}, "stop_token_ids"),
    ({"prompt": "a", "model": "m" * 100_000}, "there is no model"),
    ({"prompt": "a", "x" * 100_000: 1}, "no such field"),
    ({"prompt": "a", "logprobs": 0, "echo": True}, "logprobs"),
    ({"prompt": ["a"] * 200}, "128 choices"),
    ({"prompt": "a" * 3_000_000}, "50000 tokens"),
    ({"prompt": [3] * 60_000}, "50000 tokens"),
    (b"[" * 100_000, "not JSON"),
    (b'{"a":' * 100_000, "not JSON"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"prompt": "a", "top_p": NaN}', "not JSON"),
    (b'{"prompt": "a", "temperature": 1e400}', "temperature"),
    (b'{"prompt": "\xff"}', "not JSON"),
    ('{"prompt": "a"}'.encode("utf-16"), "not JSON"),
    (b"", "not JSON"),
    (b"null", "JSON object"),
    (b'"text"', "JSON object"),
    (b"7", "JSON object"),
    (b"\x1f\x8b\x08\x00", "not JSON"),
]


@pytest.mark.parametrize(("body", "words"), ODD_BODIES)
def test_odd_bodies_are_refused_in_the_apis_form(client: httpx.Client, body: Any, words: str) -> None:
    response = post(client, body)
    assert response.status_code in (400, 404)
    error = error_of(response)
    assert words in error["message"]
    assert len(error["message"]) < 2000


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": "\ud83d"}], "messages: half a surrogate pair"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{}]}], "messages.0.tool_calls: tools are not served"),
        ([{"role": "assistant", "content": "a", "refusal": "no"}], "messages.0.refusal"),
        ([{"role": "tool", "content": "a", "tool_call_id": "x"}], "messages.0"),
        ([[]], "messages.0"),
        ("hi", "messages"),
        ({}, "messages"),
        ([{"role": "user", "content": "a" * 3_000_000}], "50000 tokens"),
    ],
)
def test_odd_conversations_are_refused(client: httpx.Client, messages: Any, words: str) -> None:
    response = post(client, {"messages": messages}, "chat/completions")
    assert response.status_code == 400
    assert words in error_of(response)["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        (JSON | {"content-encoding": "gzip"}, 415),
        ({"content-type": "Application/JSON; charset=UTF-8"}, 200),
        (JSON | {"content-encoding": "identity"}, 200),
    ],
)
def test_headers_of_a_body_are_named(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = client.post("/v1/completions", content=b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 1}', headers=headers)
    assert response.status_code == status
    if status == 415:
        message = error_of(response)["message"]
        assert "Content-" in message or "charset" in message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/models/other", 404),
        ("POST", "/v1/completions/", 404),
        ("GET", "/%ff%00", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("PURGE", "/", 405),
    ],
)
def test_unknown_paths_and_methods(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    error_of(response)


def test_heads_are_answered_without_a_body(client: httpx.Client) -> None:
    for path in ("/", "/health", "/v1/models"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")


def test_what_is_no_http_is_answered_in_the_apis_form(server: Served) -> None:
    with connected(server) as opened:
        opened.sendall(b"GARBAGE\r\n\r\n")
        head, _, body = read_all(opened).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["message"]


NEUTRAL: dict[str, list[Any]] = {
    "best_of": [1],
    "suffix": [None, ""],
    "logit_bias": [{}, {"50": 0}],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0],
    "store": [False],
    "service_tier": ["auto", "default"],
    "metadata": [{}],
    "user": ["me"],
    "safety_identifier": ["me"],
    "prompt_cache_key": ["k"],
    "stream_options": [None, {"include_usage": False}, {"include_obfuscation": False}],
    "stop": [None, []],
    "n": [1],
    "logprobs": [None, False],
}
NEUTRAL_IN_CHAT: dict[str, list[Any]] = {
    "tools": [[], None],
    "functions": [[]],
    "tool_choice": ["none", "auto", None],
    "function_call": ["none"],
    "parallel_tool_calls": [False],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "audio": [None],
    "prediction": [None],
    "reasoning_effort": [None],
    "verbosity": [None, "medium"],
    "top_logprobs": [0],
    "max_completion_tokens": [2, None],
    "web_search_options": [None],
}
ASKING: dict[str, Any] = {
    "best_of": 3,
    "logit_bias": {"50": 1},
    "presence_penalty": 0.1,
    "store": True,
    "service_tier": "flex",
    "metadata": {"a": "b"},
    "stream_options": {"include_usage": True},
    "tools": [{}],
    "tool_choice": "required",
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy"},
    "prediction": {"type": "content", "content": "a"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "logprobs": True,
    "top_logprobs": 2,
    "web_search_options": {},
}


def test_what_asks_for_nothing_is_accepted_and_all_else_refused_by_name(client: httpx.Client) -> None:
    for body, path, fields in (
        ({"prompt": "a"}, "completions", NEUTRAL),
        ({"messages": HI}, "chat/completions", NEUTRAL | NEUTRAL_IN_CHAT),
    ):
        for name, values in fields.items():
            for value in values:
                response = post(client, {**body, **GREEDY, name: value}, path)
                assert response.status_code == 200, (name, value, response.text)
    for name, value in ASKING.items():
        response = post(client, {"messages": HI, name: value}, "chat/completions")
        assert response.status_code == 400, (name, value)
        error = error_of(response)
        assert error["param"] == name
        assert name in error["message"]


def test_an_answer_may_be_given_back_as_it_came(client: httpx.Client) -> None:
    said = {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "name": "me"}
    said |= {"function_call": None, "tool_calls": None}
    parts = [{"type": "text", "text": "c", "annotations": None}]
    messages = [*HI, said, {"role": "user", "content": parts}, {**said, "tool_calls": []}, *HI]
    assert post(client, {"messages": messages, **GREEDY}, "chat/completions").status_code == 200


def test_log_probabilities_of_the_chosen_tokens(client: httpx.Client, trained: Trained) -> None:
    import torch

    model, tokenizer = load_model(trained.saved)
    body = {"prompt": "the cat", "max_tokens": 8, "seed": 4, "temperature": 1.2, "logprobs": 0}
    choice = post(client, body).json()["choices"][0]
    (expected,) = generate(model, tokenizer, ["the cat"], max_new_tokens=8, seed=4, temperature=1.2, top_k=0)
    assert choice["text"] == expected.text
    ids, read = [*expected.prompt_ids, *expected.ids], len(expected.prompt_ids)
    with torch.no_grad():
        ends = torch.tensor([0, len(ids)], dtype=torch.int32)
        log_probs = model(torch.tensor(ids), torch.arange(len(ids)), ends).logits[:, : tokenizer.vocab_size]
    told = log_probs.log_softmax(-1)[torch.arange(read - 1, len(ids) - 1), torch.tensor(expected.ids)].tolist()
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    assert found["token_logprobs"] == pytest.approx(told[: len(found["tokens"])])
    assert len(found["tokens"]) == len(expected.ids) - expected.finished
    starts = [sum(map(len, found["tokens"][:number])) for number in range(len(found["tokens"]))]
    assert found["text_offset"] == starts

    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert [value for part in parts for value in part["token_logprobs"]] == found["token_logprobs"]

    stop = choice["text"][2:4]
    cut = post(client, {**body, "stop": stop}).json()["choices"][0]
    assert "".join(cut["logprobs"]["tokens"]) == cut["text"] == choice["text"][: choice["text"].index(stop)]


def test_stop_token_ids_end_a_text_before_them(client: httpx.Client, trained: Trained) -> None:
    model, tokenizer = load_model(trained.saved)
    (free,) = generate(model, tokenizer, ["the word"], max_new_tokens=20, seed=1, top_k=0)
    stop = free.ids[5]
    body = {"prompt": "the word", "seed": 1, "max_tokens": 20, "stop_token_ids": [stop]}
    answer = post(client, body).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == free.ids.index(stop) + 1


def test_stop_texts_match_special_tokens(trained: Trained, tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    own = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "<unk>": 2}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    own.save(str(tmp_path / "tokenizer.json"))
    stops = StopIds(load_tokenizer(tmp_path / "tokenizer.json"))
    assert stops.of(["<|im_end|>", "cat", "nowhere"], [1]) == {3, 1}

    copy = tmp_path / "letters.model"
    shutil.copy(trained.tokenizer, copy)
    plain = load_tokenizer(copy)
    some = plain.encode("cat")[-1]
    named = {"added_tokens_decoder": {str(some): {"content": "<|im_end|>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert StopIds(load_tokenizer(copy)).of(["<|im_end|>", "</s>", "cat", "\u2581"], []) == {some, plain.eos_id}


def connected(server: Served) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(opened: socket.socket) -> bytes:
    parts = []
    try:
        while part := opened.recv(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def test_bodies_are_bounded_while_they_are_read(trained: Trained) -> None:
    with serving(trained.saved, "--max-body", "0.1") as served:
        with httpx.Client(base_url=served.url, timeout=30) as client:
            response = post(client, {"prompt": "a" * 200_000})
            assert response.status_code == 413
            assert error_of(response)["code"] == "body_too_large"
            response = client.post("/v1/completions", content=iter([b" " * 60_000] * 3), headers=JSON)
            assert response.status_code == 413
            assert post(client, {"prompt": "a", **GREEDY}).status_code == 200
        with connected(served) as opened:  # said at once, not when all of it has come
            opened.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            opened.sendall(b"Content-Length: 99999999999999999999\r\n\r\n{")
            assert opened.recv(12) == b"HTTP/1.1 413"


def test_connections_whose_request_does_not_come_are_dropped(trained: Trained) -> None:
    with serving(trained.saved, "--request-timeout", "2") as served:
        beginnings = [
            b"",
            b"GET /hea",
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt"',
        ]
        opened = [connected(served) for _ in range(60)]
        for number, connection in enumerate(opened):
            connection.sendall(beginnings[number % 3])
        started = time.monotonic()
        with httpx.Client(base_url=served.url, timeout=30) as client:
            assert client.get("/health").status_code == 200
            assert time.monotonic() - started < 1.5
            for connection in opened:
                connection.settimeout(20)
                assert read_all(connection) == b""
                connection.close()
        # A text that takes longer than a request may take to come is another matter. A new connection asks for it: one
        # that has waited so long may be dropped as the others were.
        with httpx.Client(base_url=served.url, timeout=30) as client:
            body = {"prompt": "the", "n": 8, "temperature": 2.0, "max_tokens": 700, "seed": 1}
            assert post(client, body).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("192.0.2.1", 403),
        ("[::1", 200),
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("localhost.", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8000", 200),
    ],
)
def test_a_server_of_this_machine_is_called_by_its_own_names(client: httpx.Client, host: str, status: int) -> None:
    for path in ("/", "/health", "/v1/models"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == status
        if status == 403:
            assert "--allow-host" in error_of(response)["message"]
    assert post(client, {"prompt": "a"}).status_code == 200


def test_more_names_may_be_allowed(trained: Trained) -> None:
    model, tokenizer = load_model(trained.saved)
    app = create_app(Service(model, tokenizer, "small"), hosts=["Models.example"])

    async def status(host: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as opened:
            return (await opened.get("/v1/models", headers={"host": host})).status_code

    for host, expected in (("models.example:80", 200), ("localhost", 200), ("evil.example", 403)):
        assert asyncio.run(status(host)) == expected


def test_a_server_that_is_open_to_others_goes_by_any_name(trained: Trained) -> None:
    with serving(trained.saved, "--host", "0.0.0.0") as served:
        assert "open to other machines" in served.greeting
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models", headers={"host": "any.example"}).status_code == 200


def test_the_page_is_kept_to_itself(client: httpx.Client) -> None:
    headers = client.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    for response in (client.get("/"), client.get("/v1/models"), client.get("/nowhere")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in response.headers


def resident(pid: int) -> float:
    """Memory of a process, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def hostile(server: Served, number: int) -> None:
    """One of many bad requests; its answer is checked."""
    kind = number % 4
    if kind == 0:
        with connected(server) as opened:
            opened.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
            time.sleep(0.05)
        return
    with httpx.Client(base_url=server.url, timeout=60) as client:
        if kind == 1:
            odd = [{"temperature": 1e-39}, {"top_p": 1e-47}, {"repetition_penalty": 1e-41}, {"temperature": 1e39}]
            body = {"prompt": "the", "max_tokens": 3, **odd[number // 4 % len(odd)]}
            assert post(client, body).status_code == 200
            return
        if kind == 2:
            response = client.post("/v1/completions", content=b"[" + b"1," * 3_000_000 + b"1]", headers=JSON)
            assert response.status_code == 413
        else:
            response = post(client, ODD_BODIES[number % len(ODD_BODIES)][0])
            assert 400 <= response.status_code < 500
        error_of(response)


@pytest.mark.parametrize(("count", "length"), [(60, 150), pytest.param(400, 800, marks=pytest.mark.slow)])
def test_four_streams_are_whole_while_hostile_requests_come(trained: Trained, count: int, length: int) -> None:
    bodies = [
        {"prompt": prompt, "seed": seed, "max_tokens": length, "temperature": 2.0, "top_p": 0.95, "stream": True}
        for seed, prompt in enumerate(["the cat", "a", "in the", "word"])
    ]

    def streamed(url: str, body: dict[str, Any]) -> str:
        text = ""
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text

    with serving(trained.saved) as served:
        quiet = [streamed(served.url, body) for body in bodies]
        for number in range(20):
            hostile(served, number)
        before = resident(served.process.pid)
        heard: dict[int, str] = {}
        failures: list[BaseException] = []

        def listen(number: int) -> None:
            heard[number] = streamed(served.url, bodies[number])

        def attack(start: int) -> None:
            try:
                for number in range(start, count, 4):
                    hostile(served, number)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=listen, args=(number,)) for number in range(4)]
        threads += [threading.Thread(target=attack, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert [heard[number] for number in range(4)] == quiet
        assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
        after = resident(served.process.pid)
        print(f"{count} hostile requests: {before:.0f} MiB before, {after:.0f} MiB after")
        assert after - before < 100
