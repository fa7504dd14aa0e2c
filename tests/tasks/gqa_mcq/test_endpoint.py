"""Distractors from a local server that behaves as endpoints do, also when they fail."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest
from killed import kill, whole_lines

from dualfocus_lmms import UserError, cli
from dualfocus_lmms.tasks.gqa import mcq as gqa_mcq
from dualfocus_lmms.tasks.gqa.endpoint import read_list

Lines = Callable[[Path], dict[str, Any]]
build = partial(gqa_mcq.build, progress=False)

COMMAND = ["-m", "dualfocus_lmms", "data", "gqa-mcq"]
Reply = tuple[int, str, dict[str, str]]
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
GOOD = '["pink", "violet", "gold", "lime", "ivory"]'


def completion(text: str | None, usage: dict[str, int] | None = USAGE) -> Reply:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "chat", "choices": choices}
    return 200, json.dumps(body | ({"usage": usage} if usage else {})), {}


def refusal(status: int) -> Reply:
    return status, json.dumps({"error": {"message": "no"}}), {"retry-after-ms": "5"}


class Endpoint:
    """A server on this machine. answer: from a question's text and how often it was asked before."""

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Reply] = lambda question, before: completion(GOOD)
        self.requested: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.lock = Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, text, headers = endpoint.reply(body, self.path, self.headers["Authorization"])
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def reply(self, body: dict[str, Any], path: str, key: str | None) -> Reply:
        question = re.findall(r"^Question: (.*)$", body["messages"][0]["content"], re.MULTILINE)[0]
        with self.lock:
            before = self.requested[question]
            self.requested[question] += 1
            self.bodies.append(body)
            self.keys.add(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert path == "/v1/chat/completions"
        try:
            return self.answer(question, before)
        finally:
            with self.lock:
                self.at_once -= 1


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = Endpoint()
    thread = Thread(target=served.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()


OPEN = 24  # questions that name no options


def ask(questions: Path, out: Path, endpoint: Endpoint, **settings: Any) -> gqa_mcq.Report:
    settings = {"retries": 2, "price_in": 0.5, "price_out": 1.5} | settings
    return build(questions, out, endpoint=endpoint.url, model="chat", **settings)


def test_good_replies(
    questions: Path,
    tmp_path: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    rows: dict[str, Any],
    lines: Lines,
):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    written = lines(tmp_path / "out.jsonl")
    assert set(written) == set(rows)
    assert {line["source"] for line in written.values()} == {"endpoint:chat:seed0"}
    assert set(written["c0"]["options"]) == {"red", "pink", "violet", "gold"}
    assert set(written["y"]["options"]) == {"yes", "no"}
    assert set(written["o"]["options"]) == {"blue", "pink"}
    assert set(endpoint.requested.values()) == {1}
    assert len(endpoint.requested) == OPEN  # a question that names its own options needs no request
    assert endpoint.keys == {"Bearer secret"}
    assert {body["model"] for body in endpoint.bodies} == {"chat"}
    assert (report.spent.replies, report.spent.prompt_tokens, report.spent.completion_tokens) == (
        24,
        2400,
        480,
    )
    assert report.cost == pytest.approx((2400 * 0.5 + 480 * 1.5) / 1e6)
    assert not [file for file in tmp_path.iterdir() if "secret" in file.read_text("utf-8")]
    again = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert (again.before, again.written, again.spent.replies, again.cost) == (27, 0, 0, 0.0)
    assert endpoint.requested.total() == OPEN


def test_refused_requests_are_repeated(questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda _, before: (
        refusal(429 if before == 0 else 503) if before < 2 else completion(GOOD)
    )
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert (report.written, report.failures, report.spent.replies) == (27, {}, OPEN)
    assert set(endpoint.requested.values()) == {3}


MALFORMED = [
    completion("I cannot help with that."),
    completion(None),
    completion('["red", "Red.", "dark red"]'),  # what is alike to the answer
    completion('["pink", "Pink", 3, "", null, ["gold"]]'),
    completion("[pink, gold, lime]"),
    (200, json.dumps({"choices": []}), {}),
    (200, json.dumps("text"), {}),
]


@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_replies_are_requested_again_then_reported(
    malformed: Reply, questions: Path, tmp_path: Path, endpoint: Endpoint, rows: dict[str, Any], lines: Lines
):
    once, always = "What color is it, 0?", "What color is it, 1?"
    endpoint.answer = lambda question, before: (
        malformed if question == always or (question == once and before == 0) else completion(GOOD)
    )
    out = tmp_path / "out.jsonl"
    report = ask(questions, out, endpoint)
    assert list(report.failures) == ["c1"]
    assert (endpoint.requested[once], endpoint.requested[always]) == (2, 3)
    assert set(lines(out)) == set(rows) - {"c1"}
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text("utf-8"))["failures"] == report.failures
    assert report.spent.replies == OPEN - 1 + 1 + 3
    endpoint.answer, before = lambda *_: completion(GOOD), endpoint.requested.total()
    again = ask(questions, out, endpoint)
    assert (again.failures, again.written, endpoint.requested.total() - before) == ({}, 1, 1)
    assert set(lines(out)) == set(rows)


def test_a_truncated_body_is_a_failure(questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda question, _: (200, "{", {}) if question.endswith("4?") else completion(GOOD)
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert sorted(report.failures) == ["c4", "r4", "t4"]


def test_replies_without_usage_make_the_cost_unknown(questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda question, _: completion(GOOD, None if question.endswith("4?") else USAGE)
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert (report.spent.uncounted, report.spent.prompt_tokens, report.cost) == (3, 2100, None)


def test_after_repeated_failures_requests_stop(
    questions: Path, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    monkeypatch.setattr(gqa_mcq, "GIVE_UP", 4)
    endpoint.answer = lambda *_: refusal(500)
    report = ask(questions, tmp_path / "out.jsonl", endpoint, retries=1, concurrency=2)
    assert len(report.failures) == OPEN
    assert set(lines(tmp_path / "out.jsonl")) == {"y", "n", "o"}
    assert 4 <= len(endpoint.requested) <= 4 + 3
    assert set(endpoint.requested.values()) == {2}
    assert report.cost == 0.0


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_the_run(
    status: int, questions: Path, tmp_path: Path, endpoint: Endpoint, lines: Lines
):
    endpoint.answer = lambda *_: refusal(status)
    with pytest.raises(UserError):
        ask(questions, tmp_path / "out.jsonl", endpoint)
    assert len(endpoint.requested) <= 8
    assert set(lines(tmp_path / "out.jsonl")) == {"y", "n", "o"}


def test_requests_run_at_the_same_time(questions: Path, tmp_path: Path, endpoint: Endpoint):
    together = Event()

    def wait(question: str, before: int) -> Reply:
        if endpoint.at_once == 3:
            together.set()
        assert together.wait(20)
        return completion(GOOD)

    endpoint.answer = wait
    assert ask(questions, tmp_path / "out.jsonl", endpoint, concurrency=3).failures == {}
    assert endpoint.most_at_once == 3


def test_sources_are_never_mixed(questions: Path, tmp_path: Path, endpoint: Endpoint):
    out = tmp_path / "out.jsonl"
    ask(questions, out, endpoint)
    content = out.read_bytes()
    for other in ({}, {"endpoint": endpoint.url, "model": "another"}):
        with pytest.raises(UserError):
            build(questions, out, **other)
    assert out.read_bytes() == content


def test_an_interrupted_run_resumes(
    questions: Path, tmp_path: Path, endpoint: Endpoint, rows: dict[str, Any], lines: Lines
):
    out, release = tmp_path / "out.jsonl", Event()

    def hang(question: str, before: int) -> Reply:
        if len(endpoint.requested) > 10:
            release.wait(60)
        return completion(GOOD)

    endpoint.answer = hang
    command = [*COMMAND, "--questions", questions, "--out", out, "--endpoint", endpoint.url]
    try:
        kill(
            [*command, "--model", "chat", "--concurrency", "2"],
            lambda: whole_lines(out) >= 3 + 10,
        )
    finally:
        release.set()
    before, requested = lines(out), dict(endpoint.requested)
    assert len(before) == 13
    with out.open("ab") as file:
        file.write(b'{"question_id": "r7", "image": "m7.j')
    report = ask(questions, out, endpoint)
    assert (report.before, report.written, report.failures) == (13, 14, {})
    after = lines(out)
    assert set(after) == set(rows)
    assert {id: after[id] for id in before} == before
    for id in set(before) - {"y", "n", "o"}:
        assert endpoint.requested[rows[id]["question"]] == requested[rows[id]["question"]] == 1


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [
        ('["Red.", "Dark  blue"]', "green", ["red", "dark blue"]),
        ('```json\n["a\\nb", "c"]\n```', "d", ["a b", "c"]),
        ('{"distractors": ["x", "y"]}', "z", ["x", "y"]),
        ('["iPhone", "MacBook"]', "iPad", ["iPhone", "MacBook"]),
        ("[]", "a", []),
        ("] [", "a", []),
        ("", "a", []),
    ],
)
def test_read_list(reply: str, answer: str, expected: list[str]):
    assert read_list(reply, answer) == expected


def test_the_command_ends_with_1_while_questions_are_missing(
    questions: Path,
    tmp_path: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: Lines,
):
    endpoint.answer = lambda question, _: completion("?" if question.endswith("4?") else GOOD)
    out = tmp_path / "out.jsonl"
    arguments = ["data", "gqa-mcq", "--questions", questions, "--out", out, "--endpoint", endpoint.url]
    arguments += ["--model", "chat", "--price-in", "1", "--price-out", "2", "--concurrency", "4"]
    monkeypatch.setattr(sys, "argv", ["dualfocus", *map(str, arguments)])
    codes, printed = [], []
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        codes.append(stopped.value.code or 0)
        printed.append(capsys.readouterr().out)
        endpoint.answer = lambda question, _: completion(GOOD)
    assert codes == [1, 0]
    assert str(out) in printed[0]
    assert [id for id in ("c4", "t4", "r4") if id in printed[0]]
    assert len(lines(out)) == 27
