"""`finetune serve` in a process of its own, asked by OpenAI's own client and by bare HTTP."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest
from helpers import ROOT, command

from finetune.serving.openai_api import StopFilter

SERVE = (sys.executable, "-m", "finetune.commands.main", "serve", "--port", "0")
ASKED = [{"role": "user", "content": "Name the moon."}]
GREEDY = {"messages": ASKED, "temperature": 0, "max_tokens": 8}


@contextmanager
def serving(folder, *flags: str, **environment: str):
    """The address of a server that runs within the block, and its process."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | environment
    running = subprocess.Popen([*SERVE, *flags], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    try:
        said = running.stdout.readline()
        assert "serving" in said, f"{said} {running.poll()}"
        yield re.search(r"http://\S+/v1", said)[0], running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


@pytest.fixture(scope="module")
def address(trained):
    flags = ("--ckpt", "workspace", "other", "full", "--at_a_time", "4", "--queue", "4", "--max_new_tokens", "300")
    with serving(trained, *flags) as (url, _):
        yield url


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(trained) -> dict[str, str]:
    """What `finetune chat` answers."""
    return {name: chat(trained, name) for name in ("workspace", "other", "base")}


def chat(folder, name: str, prompt: str = ASKED[0]["content"]) -> str:
    told = command(*SERVE[:3], "chat", "--prompt", prompt, "--ckpt", name, cwd=folder, PYTHONPATH=str(ROOT))
    return told.stdout.strip()


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["base", "workspace", "other", "full"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(
        openai.NotFoundError, match="'nobody' isn't served here; there are base, workspace, other, full"
    ):
        client.chat.completions.create(model="nobody", **GREEDY)


def test_a_model_answers_as_in_the_chat(client, alone):
    for name in ("workspace", "other"):
        done = client.chat.completions.create(model=name, **GREEDY)
        (choice,) = done.choices
        assert choice.message.content == alone[name]
        assert choice.finish_reason in ("stop", "length") and 0 < done.usage.completion_tokens <= 8
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert (
        len(
            {
                client.chat.completions.create(model=name, **GREEDY).choices[0].message.content
                for name in ("base", "full", "other")
            }
        )
        > 1
    )


def test_an_answer_streams(client, alone):
    stream = client.chat.completions.create(
        model="workspace", **GREEDY, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == alone["workspace"] and len(list(filter(None, texts))) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens <= 8
    running = client.chat.completions.create(
        model="workspace", **GREEDY, stream=True, stream_options={"continuous_usage_stats": True}
    )
    counts = [chunk.usage.completion_tokens for chunk in running]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == chunks[-1].usage.completion_tokens


def test_a_message_with_alpacas_headings_makes_the_prompt_that_the_chat_makes(trained, client):
    content = "### Instruction:\nName the moon.\n\n### Input:\nAt night."
    done = client.chat.completions.create(
        model="workspace", **GREEDY | {"messages": [{"role": "user", "content": content}]}
    )
    assert done.choices[0].message.content == chat(trained, "workspace", content)


def test_text_is_completed_as_it_is(client):
    asked = {"prompt": "Here is what to say of", "temperature": 0, "max_tokens": 6}
    done = client.completions.create(model="workspace", **asked)
    assert done.choices[0].text and done.usage.prompt_tokens < 20
    streamed = client.completions.create(model="workspace", **asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == done.choices[0].text


def test_a_conversation_with_a_system_message_and_parts(client):
    messages = [
        {"role": "system", "content": "Be brief."},
        *ASKED,
        {"role": "assistant", "content": "Luna."},
        {"role": "user", "content": [{"type": "text", "text": "And a river?"}]},
    ]
    done = client.chat.completions.create(model="workspace", messages=messages, max_tokens=4)
    assert done.usage.prompt_tokens > client.chat.completions.create(model="workspace", **GREEDY).usage.prompt_tokens


def test_a_text_that_shall_end_the_answer_does(client, alone):
    words = alone["workspace"].split(" ")
    done = client.chat.completions.create(model="workspace", **GREEDY, stop=[f"{words[1]} {words[2]}"])
    assert done.choices[0].message.content == f"{words[0]} " and done.choices[0].finish_reason == "stop"


def test_many_at_once_get_what_each_gets_alone(address, client):
    """More than are answered at a time, by several clients, over several adapters."""
    jobs = [
        (name, f"{verb} old ships.") for name in ("workspace", "other", "base", "full") for verb in ("Name", "Draw")
    ]

    def ask(job) -> str:
        name, text = job
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as own:
            messages = [{"role": "user", "content": text}]
            done = own.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=20)
            return done.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, jobs))
    assert together == [ask(job) for job in jobs]


BAD = [
    ({"messages": []}, 400, "messages: must be a list"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role must be one of system"),
    ({"messages": [{"role": "user", "content": "  "}]}, 400, "the prompt holds no instruction"),
    ({"messages": [{"role": "user", "content": "long " * 900}]}, 400, "are more than the 512 positions of workspace"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "pictures and sound"),
    ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, 400, "the last one must be the user's"),
    ({"max_tokens": 301}, 400, "max_tokens: must be from 1 to 300, got 301"),
    ({"max_tokens": "many"}, 400, "max_tokens: must be a whole number"),
    ({"temperature": -1}, 400, "temperature: must be from 0"),
    ({"temperature": "hot"}, 400, "temperature: must be a number"),
    ({"top_p": 0}, 400, "top_p: must be above 0"),
    ({"n": 2}, 400, "n: must be 1"),
    ({"tools": [{"type": "function"}]}, 400, "tools: isn't supported here"),
    ({"stop": ["a"] * 5}, 400, "stop: must be a string, or a list of at most 4"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format: must be of type text"),
    ({"model": "gpt-4"}, 404, "'gpt-4' isn't served here"),
    ({"model": "../../etc"}, 404, "'../../etc' isn't served here"),
]


@pytest.mark.parametrize(("changes", "status", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_are_refused_in_a_sentence(address, changes, status, sentence):
    for stream in (False, True):
        body = {"model": "workspace", **GREEDY, "stream": stream} | changes
        answer = httpx.post(f"{address}/chat/completions", json=body)
        assert answer.status_code == status and sentence in answer.json()["error"]["message"]


def test_what_is_no_request_is_refused_and_the_next_one_is_answered(address, client, alone):
    url = f"{address}/chat/completions"
    as_json = {"Content-Type": "application/json"}
    for content, headers, status in (
        (b"{", as_json, 400),
        (b"[]", as_json, 400),
        (b"[" * 100_000, as_json, 400),
        (b"\xff", as_json, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", as_json | {"Host": "evil.example"}, 400),
    ):
        assert httpx.post(url, content=content, headers=headers).status_code == status
    assert httpx.get(url).status_code in (404, 405)
    assert httpx.get(f"{address}/nothing").status_code == 404
    done = client.chat.completions.create(model="workspace", **GREEDY)
    assert done.choices[0].message.content == alone["workspace"]


def test_a_body_of_100_mb_is_refused_before_it_has_come(address, client):
    sent = []

    def body():
        for _ in range(1600):
            sent.append(1)
            yield b" " * 62_500

    try:
        answer = httpx.post(f"{address}/chat/completions", content=body(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "larger than 1000000 bytes" in answer.json()["error"]["message"]
    except (httpx.WriteError, httpx.ReadError):  # the server has hung up on the rest
        pass
    assert len(sent) < 1600
    assert client.chat.completions.create(model="workspace", **GREEDY).choices


def test_a_client_that_hangs_up_frees_its_place(address, client):
    """As many as are taken at all, streaming or not, each gone before its answer is there."""
    host, port = re.search(r"//([^:]+):(\d+)", address).groups()
    body = {"model": "base", "messages": ASKED, "temperature": 30, "max_tokens": 300}
    for number in range(16):
        content = json.dumps(body | {"stream": number % 2 == 0}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as one:
            one.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(0.02)
    assert eventually(lambda: client.chat.completions.create(model="workspace", **GREEDY).choices)


def eventually(ask):
    for _ in range(100):
        try:
            return ask()
        except openai.RateLimitError:
            time.sleep(0.1)
    return None


def test_a_full_server_says_so(trained):
    flags = ("--at_a_time", "1", "--queue", "1", "--max_new_tokens", "400")
    with serving(trained, *flags) as (url, _), ThreadPoolExecutor(6) as pool:
        body = {"model": "base", "messages": ASKED, "temperature": 30, "max_tokens": 400}
        answers = list(pool.map(lambda _: httpx.post(f"{url}/chat/completions", json=body, timeout=120), range(6)))
        full = [answer for answer in answers if answer.status_code == 429]
        assert full and len(full) < 6 and {answer.status_code for answer in answers} == {200, 429}
        assert "ask again in a moment" in full[0].json()["error"]["message"] and full[0].headers["Retry-After"] == "1"


def test_a_key_is_asked_of_everyone(trained):
    with serving(trained, "--host", "0.0.0.0", FINETUNE_API_KEY="secret") as (url, running):
        url = url.replace("0.0.0.0", "127.0.0.1")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer sécret".encode()}):
            answer = httpx.get(f"{url}/models", headers=headers)
            assert answer.status_code == 401 and "key is missing or wrong" in answer.json()["error"]["message"]
        with openai.OpenAI(base_url=url, api_key="secret") as client:
            assert client.models.list().data
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0


def test_an_open_server_isnt_started_without_a_key_nor_on_a_port_in_use(trained):
    def refused(*flags: str) -> str:
        done = command(*SERVE[:-2], *flags, cwd=trained, PYTHONPATH=str(ROOT), FINETUNE_API_KEY="")
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "--host: 0.0.0.0 can be reached by others; set FINETUNE_API_KEY" in refused("--host", "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "can't listen on 127.0.0.1" in refused("--port", str(taken.getsockname()[1]))
    assert "--port: must be from 0 to 65535" in refused("--port", "70000")


@pytest.mark.parametrize("stop", [["ab"], ["b", "aab"], ["never"], ["aaaa"]])
@pytest.mark.parametrize("text", ["aaabaa", "xaby", "ba", "aa", ""])
def test_a_stop_text_may_lie_across_pieces(text, stop):
    ends = [text.find(one) for one in stop if one in text]
    stopped, told = StopFilter(stop), ""
    for index in range(len(text) + 1):
        told += stopped.add(text[index : index + 1], last=index == len(text))
        if stopped.found:
            break
    assert told == (text[: min(ends)] if ends else text)
