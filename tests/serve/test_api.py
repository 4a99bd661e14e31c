"""The wire format of the OpenAI API, against a real server."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from evo_core.checkpoint import load_model
from evo_core.generate import generate
from tests.generate.conftest import Trained

GREEDY = {"temperature": 0, "max_tokens": 12}


def streamed(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, whose form is checked."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = "".join(response.iter_text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_models_and_health(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("small", "model", "evo")
    assert client.get("/v1/models/small").json() == model
    assert client.get("/health").json()["status"] == "ok"


def test_a_completion_is_what_generate_gives(client: httpx.Client, trained: Trained) -> None:
    model, tokenizer = load_model(trained.saved)
    for settings, options in (
        (GREEDY, {"do_sample": False}),
        ({"seed": 3, "top_p": 0.9, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2, "max_tokens": 12},
         {"seed": 3, "top_p": 0.9, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2}),
    ):  # fmt: skip
        (expected,) = generate(model, tokenizer, ["the cat"], max_new_tokens=12, **options)
        answer = client.post("/v1/completions", json={"model": "small", "prompt": "the cat", **settings}).json()
        assert answer["object"] == "text_completion"
        assert answer["id"].startswith("cmpl-")
        assert abs(answer["created"] - time.time()) < 60
        assert answer["choices"] == [
            {
                "index": 0,
                "text": expected.text,
                "logprobs": None,
                "finish_reason": "stop" if expected.finished else "length",
            }
        ]
        read, written = len(expected.prompt_ids), len(expected.ids)
        assert answer["usage"] == {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


def test_a_stream_says_the_same(client: httpx.Client) -> None:
    body = {"prompt": ["the cat", "a"], "n": 2, "seed": 5, "max_tokens": 20, "echo": True}
    whole = client.post("/v1/completions", json=body).json()
    chunks = streamed(client, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]
        assert own[-1]["finish_reason"]
    texts = [choice["text"] for choice in whole["choices"]]
    assert [text.startswith("the cat") for text in texts] == [True, True, False, False]
    assert texts[0] != texts[1]


def test_a_conversation(client: httpx.Client, trained: Trained) -> None:
    messages = [
        {"role": "system", "content": "be a cat"},
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": [{"type": "text", "text": "where"}, {"type": "text", "text": "?"}]},
    ]
    answer = client.post("/v1/chat/completions", json={"messages": messages, **GREEDY}).json()
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    model, tokenizer = load_model(trained.saved)
    text = "<|System|>:be a cat\n<|User|>:who?\n<|Bot|>:the cat<eoa>\n<|User|>:where?\n<|Bot|>:"
    (expected,) = generate(model, tokenizer, [text], max_new_tokens=12, do_sample=False)
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    chunks = streamed(
        client, "/v1/chat/completions", {"messages": messages, "max_completion_tokens": 12, "temperature": 0}
    )
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == expected.text
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": choice["finish_reason"],
    }


def test_stop_texts_end_it_and_are_left_out(client: httpx.Client) -> None:
    body = {"prompt": "the word", "seed": 1, "max_tokens": 60}
    free = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert len(free) > 12
    stops = [free[9:12], "never in there"]
    cut = client.post("/v1/completions", json={**body, "stop": stops}).json()
    assert cut["choices"][0] == {
        "index": 0,
        "text": free[: free.index(stops[0])],
        "logprobs": None,
        "finish_reason": "stop",
    }
    chunks = streamed(client, "/v1/completions", {**body, "stop": stops[0]})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == cut["choices"][0]["text"]


def test_token_ids_are_prompts_too(client: httpx.Client, trained: Trained) -> None:
    ids = load_model(trained.saved)[1].encode("the cat", bos=True)
    texts = {
        client.post("/v1/completions", json={"prompt": prompt, **GREEDY}).json()["choices"][0]["text"]
        for prompt in ("the cat", ids, [ids], ["the cat"])
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", {}, 400, "prompt"),
        ("completions", {"prompt": "a", "temprature": 1}, 400, "temprature: there is no such field"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("completions", {"prompt": "a", "top_p": 0}, 400, "top_p"),
        ("completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ("completions", {"prompt": "a", "n": 500}, 400, "n: "),
        ("completions", {"prompt": "a", "stop": ["x"] * 20}, 400, "stop"),
        ("completions", {"prompt": "a", "logprobs": 5}, 400, "log-probabilities are not served"),
        ("completions", {"prompt": "a", "presence_penalty": 0.5}, 400, "use repetition_penalty"),
        ("completions", {"prompt": [[300000]]}, 400, "300000"),
        ("completions", {"prompt": [[]]}, 400, "no tokens"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": "a", "max_tokens": 60000}, 400, "50000"),
        ("completions", {"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("completions", {"prompt": "a", "model": "gpt-9"}, 404, "gpt-9"),
        ("completions", [1], 400, "JSON object"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 400, "content"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, 400, "tools"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True}, 400, "not served"),
    ],
)
def test_bad_requests_say_what_is_wrong(client: httpx.Client, path: str, body: Any, status: int, words: str) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_errors_outside_of_a_request_have_the_same_shape(client: httpx.Client) -> None:
    for response, status in (
        (client.post("/v1/completions", content=b"{nonsense", headers={"content-type": "application/json"}), 400),
        (client.get("/v1/nowhere"), 404),
        (client.get("/v1/completions"), 405),
        (client.get("/v1/models/other"), 404),
    ):
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_what_asks_for_nothing_is_no_error(client: httpx.Client) -> None:
    neutral = {"presence_penalty": 0, "logit_bias": {}, "tools": [], "logprobs": False, "stop": None, "user": "me"}
    body = {"messages": [{"role": "user", "content": "a"}], **GREEDY, **neutral}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_short_request_is_done_while_a_long_one_runs(client: httpx.Client, server: Any) -> None:
    long = {"prompt": "the", "max_tokens": 40000, "stream": True, "ignored": None}
    with client.stream("POST", "/v1/completions", json=without_end(long)) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        with httpx.Client(base_url=server.url, timeout=60) as other:
            for _ in range(3):
                assert other.post("/v1/completions", json={"prompt": "a cat", **GREEDY}).status_code == 200
            assert other.get("/health").json()["running"] >= 1  # the long one still is
    wait_until_idle(client)


def without_end(body: dict[str, Any]) -> dict[str, Any]:
    """A body whose text goes on for long: many choices are drawn, so that some never end soon."""
    return {**{k: v for k, v in body.items() if v is not None}, "n": 8, "temperature": 2.0, "seed": 1}


def wait_until_idle(client: httpx.Client) -> None:
    until = time.monotonic() + 20
    while client.get("/health").json() | {"status": ""} != {"status": "", "running": 0, "waiting": 0}:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_generation(client: httpx.Client, server: Any, stream: bool) -> None:
    body = without_end({"prompt": ["the", "a", "cat"], "max_tokens": 40000, "stream": stream})
    with httpx.Client(base_url=server.url, timeout=0.7) as leaving, pytest.raises(httpx.TimeoutException):
        if stream:
            with leaving.stream("POST", "/v1/completions", json=body) as response:
                for _, _line in zip(range(5), response.iter_lines(), strict=False):
                    pass
            raise httpx.ReadTimeout("left")
        leaving.post("/v1/completions", json=body)
    wait_until_idle(client)


def test_many_at_a_time_get_what_each_would_alone(client: httpx.Client, server: Any) -> None:
    bodies = [
        {"prompt": prompt, "seed": seed, "max_tokens": 10 + 3 * seed, "temperature": 0.5 + 0.2 * seed}
        for seed, prompt in enumerate(["the cat", "a", "in the", "word", "mat", "the word is the", "cat", "on"] * 2)
    ]
    alone = [client.post("/v1/completions", json=body).json()["choices"] for body in bodies]
    together: list[Any] = [None] * len(bodies)

    def ask(number: int) -> None:
        together[number] = httpx.post(f"{server.url}/v1/completions", json=bodies[number], timeout=60).json()["choices"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_dynamic_ntk_can_be_chosen_by_each_request(client: httpx.Client) -> None:
    ids = [3 + i % 250 for i in range(2300)]  # beyond the trained length of 2048
    answers = [
        client.post("/v1/completions", json={"prompt": ids, "dynamic_ntk": on, **GREEDY}).json()["choices"]
        for on in (False, True, False)
    ]
    assert answers[0] == answers[2] != answers[1]
