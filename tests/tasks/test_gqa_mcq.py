"""dualfocus data gqa-mcq: distractors offline and from a local server that behaves as endpoints do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest

from dualfocus_lmms import UserError, cli
from dualfocus_lmms.tasks import gqa_mcq, gqa_star_docs
from dualfocus_lmms.tasks.gqa_distractors import GqaQuestion, alike, named_options
from dualfocus_lmms.tasks.gqa_endpoint import read_list

COLORS = ["red", "blue", "green", "white", "black", "brown", "white", "white"]
THINGS = ["dog", "cup", "plate", "lamp", "bench", "bird", "pizza", "bag"]
COMMAND = [sys.executable, "-m", "dualfocus_lmms", "data", "gqa-mcq"]


def row(
    question: str, answer: str, image: str, types: str, group: str | None = None, program: Any = ()
) -> Any:
    """A question as GQA has it. types: "structural semantic detailed"."""
    names = dict(zip(("structural", "semantic", "detailed"), types.split(), strict=True))
    groups = {"global": group, "local": None}
    return {
        "question": question,
        "answer": answer,
        "imageId": image,
        "types": names,
        "groups": groups,
        "semantic": list(program),
    }


def make_rows() -> dict[str, Any]:
    """Eight colours, eight things that have a class and eight that have none, yes and no, one choice."""
    rows = {}
    for number, (color, thing) in enumerate(zip(COLORS, THINGS, strict=True)):
        image = f"n{number}"
        rows[f"c{number}"] = row(f"What color is it, {number}?", color, image, "query attr color", "color")
        rows[f"t{number}"] = row(f"What is it, {number}?", thing, image, "query obj category", "thing")
        rows[f"r{number}"] = row(f"What is on it, {number}?", thing, f"m{number}", "query rel relS")
    rows["y"] = row("Is it a dog?", "yes", "n0", "verify obj exist")
    rows["n"] = row("Is it a cat?", "no", "n0", "verify obj exist")
    steps = [
        {"operation": "select", "dependencies": [], "argument": "cup (12)"},
        {"operation": "choose color", "dependencies": [0], "argument": "blue|pink"},
    ]
    rows["o"] = row("Is the cup blue or pink?", "blue", "n1", "choose attr chooseAttr", None, steps)
    return rows


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(make_rows()), encoding="utf-8")
    return file


def lines(file: Path) -> dict[str, dict[str, Any]]:
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({line["question_id"] for line in read}) == len(read)
    return {line["question_id"]: line for line in read}


def options(line: dict[str, Any]) -> list[str]:
    """A line's options, cut out as the authors' evaluation cuts them out."""
    return [option[3:] for option in line["question"].split("\n")[1:]]


def build(questions: Path, out: Path | None = None, **settings: Any) -> gqa_mcq.Report:
    return gqa_mcq.build(questions, out, progress=False, **settings)


# --- offline -----------------------------------------------------------------------------------------------


def test_lines_have_the_published_form_and_name_their_source(questions: Path, tmp_path: Path):
    report = build(questions, tmp_path / "out.jsonl", seed=3)
    rows, written = make_rows(), lines(tmp_path / "out.jsonl")
    assert list(written) == list(rows)
    for id, line in written.items():
        bare, *labelled = line["question"].split("\n")
        assert bare == rows[id]["question"]
        assert [option[:3] for option in labelled] == ["A. ", "B. ", "C. ", "D. "][: len(labelled)]
        assert line["image"] == f"{rows[id]['imageId']}.jpg"
        assert line["source"] == "offline:seed3"
        assert line["answer"] == rows[id]["answer"]
        assert options(line).count(line["answer"]) == 1
    assert report.options == {2: 3, 4: 24}
    assert report.chance == pytest.approx(100 * (3 / 2 + 24 / 4) / 27)
    assert (report.written, report.before, report.failures, report.cost) == (27, 0, {}, None)


def test_distractors_are_of_the_answers_kind(questions: Path, tmp_path: Path):
    build(questions, tmp_path / "out.jsonl")
    for id, line in lines(tmp_path / "out.jsonl").items():
        expected = {"c": COLORS, "t": THINGS, "r": THINGS, "y": ["yes", "no"], "n": ["yes", "no"]}
        assert set(options(line)) <= set(expected.get(id[0], ["blue", "pink"]))
        assert len(set(options(line))) == len(options(line)) == (4 if id[0] in "ctr" else 2)


def test_a_class_seen_elsewhere_is_the_answers(tmp_path: Path, questions: Path):
    """Without a class of its own "dog" is a thing, as in other questions, and no place of the same type."""
    rows = make_rows() | {
        f"p{number}": row("What is on it?", place, f"k{number}", "query rel relS", "place")
        for number, place in enumerate(["street", "beach", "field", "park"])
    }
    questions.write_text(json.dumps(rows), encoding="utf-8")
    build(questions, tmp_path / "out.jsonl")
    written = lines(tmp_path / "out.jsonl")
    assert set(options(written["r0"])) <= set(THINGS)
    assert set(options(written["p0"])) == {"street", "beach", "field", "park"}


def test_what_may_be_right_as_well_is_left_out(tmp_path: Path):
    """A plural, a synonym, one word more, another thing on the same image; another colour there is fine."""
    people = ["woman", "lady", "Man", "men", "old man", "surfer"]
    rows = {
        f"w{number}": row("Who is it?", person, f"n{number}", "query rel relS", "person")
        for number, person in enumerate(people)
    }
    rows["same"] = row("Who stands there?", "skater", "n0", "query rel relS", "person")
    rows["a"] = row("What color?", "red", "n0", "query attr color", "color")
    rows["b"] = row("What color is that?", "blue", "n0", "query attr color", "color")
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    seen: dict[str, set[str]] = {id: set() for id in rows}
    for seed in range(20):
        build(file, tmp_path / f"{seed}.jsonl", seed=seed)
        for id, line in lines(tmp_path / f"{seed}.jsonl").items():
            seen[id] |= set(options(line))
            assert not ({"woman", "lady"} <= set(options(line)))  # nor are two distractors alike
    assert seen["w0"] == {"woman", "Man", "men", "old man", "surfer"}
    assert seen["w2"] == {"Man", "woman", "lady", "surfer", "skater"}
    assert seen["a"] == {"red", "blue"}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("table", "coffee table", True),
        ("Shoes.", "shoe", True),
        ("buses", "bus", True),
        ("women", "woman", True),
        ("couch", "sofa", True),
        ("person", "little boy", True),
        ("gray", "grey", True),
        ("man", "woman", False),
        ("left", "right", False),
        ("t-shirt", "shirt", False),
        ("red", "orange", False),
    ],
)
def test_alike(one: str, other: str, expected: bool):
    assert alike(one, other) is alike(other, one) is expected


SELECT = {"operation": "select", "dependencies": [], "argument": "man (1)"}
RELATE = {"operation": "relate", "dependencies": [0], "argument": "dog,near,s (2)"}
FILTER = {"operation": "filter color", "dependencies": [1], "argument": "black"}
CHOOSE = {"operation": "choose it", "dependencies": [0], "argument": ""}


@pytest.mark.parametrize(
    ("answer", "last", "expected"),
    [
        ("yes", {}, ["no"]),
        ("no", {}, ["yes"]),
        ("red", CHOOSE | {"argument": "red|dark blue"}, ["dark blue"]),
        ("right", CHOOSE | {"argument": "cup,to the left of|to the right of,s (7)"}, ["left"]),
        ("to the left of", CHOOSE | {"argument": "cup,to the left of|behind,s (7)"}, ["behind"]),
        ("dog", CHOOSE | {"dependencies": [0, 2]}, ["man"]),
        ("cat", CHOOSE | {"dependencies": [0, 2]}, []),
        ("red", {"operation": "query", "dependencies": [0], "argument": "color"}, []),
    ],
)
def test_named_options(answer: str, last: dict[str, Any], expected: list[str]):
    program = (SELECT, RELATE, FILTER, last)
    question = GqaQuestion("1", "?", answer, "n1", "choose", "attr", "chooseAttr", None, program)
    assert named_options(question) == expected


def test_seed_and_id_decide(questions: Path, tmp_path: Path):
    files = [tmp_path / name for name in ("first", "again", "other", "part")]
    for file, seed in zip(files, (0, 0, 1, 0), strict=True):
        build(questions, file, seed=seed, limit=5 if file.name == "part" else None)
    first, again, _, part = (file.read_bytes() for file in files)
    assert first == again
    assert first.startswith(part)
    assert len(part.splitlines()) == 5
    orders = [[options(line) for line in lines(file).values()] for file in (files[0], files[2])]
    assert orders[0] != orders[1]
    places = Counter(
        options(line).index(line["answer"]) for file in files[:3] for line in lines(file).values()
    )
    assert set(places) == {0, 1, 2, 3}


def test_a_run_that_was_cut_ends_with_the_same_file(questions: Path, tmp_path: Path):
    build(questions, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for length in (0, 5, 17, 400, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(whole[:length])
        report = build(questions, cut)
        assert cut.read_bytes() == whole
        assert report.before == whole[:length].count(b"\n")
        assert report.options == {2: 3, 4: 24}


def test_default_names_say_the_source(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    build(questions, seed=2)
    assert len(lines(tmp_path / "llava_gqa_testdev_balanced_mcq_offline-seed2.jsonl")) == 27
    name = gqa_mcq.default_path(gqa_mcq.source_label("org/chat_3.5:free", 0)).name
    assert name == "llava_gqa_testdev_balanced_mcq_endpoint-org-chat-3.5-free-seed0.jsonl"


def test_a_question_without_others_of_its_kind_is_named(tmp_path: Path):
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"7": row("What is it?", "dog", "n1", "query obj name")}), encoding="utf-8")
    report = build(file, tmp_path / "out.jsonl")
    assert (list(report.failures), report.written, report.chance) == (["7"], 0, None)
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text("utf-8"))["failures"] == report.failures


# --- what is refused ---------------------------------------------------------------------------------------


def test_other_files_are_refused_and_left_alone(questions: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    build(questions, out)
    own = out.read_text("utf-8").splitlines()[0]
    published = json.dumps(
        {"question_id": "c0", "image": "n0.jpg", "question": "What color is it, 0?\nA. red"}
    )
    texts = [
        questions.read_text("utf-8"),
        "[1]\n",
        f"{published}\n{published}",
        f"{own}\n{own[:40]}\n",
        f"{own}\n".replace("offline:seed0", "offline:seed1") + own[:30],
        f"{own}\n".replace("color", "colour"),
        f"{own}\n".replace('"c0"', '"c99"'),
        "\ufffd\u00e9",
    ]
    for text in texts:
        out.write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            build(questions, out)
        assert out.read_text("utf-8") == text
    with pytest.raises(UserError):
        build(questions, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"1": 5}',
        json.dumps({"1": {"question": "Is it?", "answer": "yes", "imageId": "n1"}}),
        json.dumps({"1": row("Is it?", "", "n1", "verify obj exist")}),
        json.dumps(
            {"1": {**row("Is it?", "yes", "n1", "verify obj exist"), "types": {"structural": "verify"}}}
        ),
    ],
)
def test_other_questions_are_refused(content: str, tmp_path: Path):
    (tmp_path / "questions.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError):
        build(tmp_path / "questions.json", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "http://127.0.0.1:1"},
        {"model": "chat"},
        {"endpoint": "127.0.0.1:1", "model": "chat"},
        {"endpoint": "http://127.0.0.1:1", "model": "chat", "price_in": 1.0},
        {"price_in": 1.0, "price_out": 1.0},
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], questions: Path, tmp_path: Path):
    with pytest.raises(UserError):
        build(questions, tmp_path / "out.jsonl", **settings)
    assert not (tmp_path / "out.jsonl").exists()


# --- an endpoint -------------------------------------------------------------------------------------------

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
        self.asked: Counter[str] = Counter()
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
            before = self.asked[question]
            self.asked[question] += 1
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


def test_good_replies(questions: Path, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    written = lines(tmp_path / "out.jsonl")
    assert set(written) == set(make_rows())
    assert {line["source"] for line in written.values()} == {"endpoint:chat:seed0"}
    assert set(options(written["c0"])) == {"red", "pink", "violet", "gold"}
    assert set(options(written["y"])) == {"yes", "no"}
    assert set(options(written["o"])) == {"blue", "pink"}
    assert set(endpoint.asked.values()) == {1}
    assert len(endpoint.asked) == OPEN  # what names its own options is not asked
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
    assert endpoint.asked.total() == OPEN


def test_refused_first_then_good(questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda _, before: (
        refusal(429 if before == 0 else 503) if before < 2 else completion(GOOD)
    )
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert (report.written, report.failures, report.spent.replies) == (27, {}, OPEN)
    assert set(endpoint.asked.values()) == {3}


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
def test_malformed_replies_are_asked_again_then_named(
    malformed: Reply, questions: Path, tmp_path: Path, endpoint: Endpoint
):
    once, always = "What color is it, 0?", "What color is it, 1?"
    endpoint.answer = lambda question, before: (
        malformed if question == always or (question == once and before == 0) else completion(GOOD)
    )
    out = tmp_path / "out.jsonl"
    report = ask(questions, out, endpoint)
    assert list(report.failures) == ["c1"]
    assert (endpoint.asked[once], endpoint.asked[always]) == (2, 3)
    assert set(lines(out)) == set(make_rows()) - {"c1"}
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text("utf-8"))["failures"] == report.failures
    assert report.spent.replies == OPEN - 1 + 1 + 3
    endpoint.answer, asked = lambda *_: completion(GOOD), endpoint.asked.total()
    again = ask(questions, out, endpoint)
    assert (again.failures, again.written, endpoint.asked.total() - asked) == ({}, 1, 1)
    assert set(lines(out)) == set(make_rows())


def test_a_body_that_breaks_off_is_a_failure(questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda question, _: (200, "{", {}) if question.endswith("4?") else completion(GOOD)
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert sorted(report.failures) == ["c4", "r4", "t4"]


def test_replies_without_usage_make_the_cost_unknown(questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda question, _: completion(GOOD, None if question.endswith("4?") else USAGE)
    report = ask(questions, tmp_path / "out.jsonl", endpoint)
    assert (report.spent.uncounted, report.spent.prompt_tokens, report.cost) == (3, 2100, None)


def test_an_endpoint_that_is_down_is_not_asked_for_everything(
    questions: Path, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gqa_mcq, "GIVE_UP", 4)
    endpoint.answer = lambda *_: refusal(500)
    report = ask(questions, tmp_path / "out.jsonl", endpoint, retries=1, concurrency=2)
    assert len(report.failures) == OPEN
    assert set(lines(tmp_path / "out.jsonl")) == {"y", "n", "o"}
    assert 4 <= len(endpoint.asked) <= 4 + 3
    assert set(endpoint.asked.values()) == {2}
    assert report.cost == 0.0


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_stops_the_run(status: int, questions: Path, tmp_path: Path, endpoint: Endpoint):
    endpoint.answer = lambda *_: refusal(status)
    with pytest.raises(UserError):
        ask(questions, tmp_path / "out.jsonl", endpoint)
    assert len(endpoint.asked) <= 8
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


def test_a_killed_run_goes_on(questions: Path, tmp_path: Path, endpoint: Endpoint):
    out, release = tmp_path / "out.jsonl", Event()

    def hang(question: str, before: int) -> Reply:
        if len(endpoint.asked) > 10:
            release.wait(60)
        return completion(GOOD)

    endpoint.answer = hang
    command = [
        *COMMAND,
        "--questions",
        questions,
        "--out",
        out,
        "--endpoint",
        endpoint.url,
        "--model",
        "chat",
    ]
    started = subprocess.Popen([*command, "--concurrency", "2"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not out.exists() or out.read_bytes().count(b"\n") < 3 + 10:
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        release.set()
    before, asked = lines(out), dict(endpoint.asked)
    assert len(before) == 13
    with out.open("ab") as file:
        file.write(b'{"question_id": "r7", "image": "m7.j')
    report = ask(questions, out, endpoint)
    assert (report.before, report.written, report.failures) == (13, 14, {})
    after = lines(out)
    assert set(after) == set(make_rows())
    assert {id: after[id] for id in before} == before
    rows = make_rows()
    for id in set(before) - {"y", "n", "o"}:
        assert endpoint.asked[rows[id]["question"]] == asked[rows[id]["question"]] == 1


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


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_ends_with_1_while_questions_are_missing(
    questions: Path,
    tmp_path: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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


# --- the task that reads it --------------------------------------------------------------------------------


def test_df_gqa_star_reads_the_file(tmp_path: Path, save_picture: Callable[[Path], None]):
    (tmp_path / "gqa" / "images").mkdir(parents=True)
    rows = {id: row for id, row in make_rows().items() if row["imageId"] in ("n0", "n1")}
    for image in ("n0", "n1"):
        save_picture(tmp_path / "gqa" / "images" / f"{image}.jpg")
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(make_rows()), encoding="utf-8")
    build(file, tmp_path / gqa_star_docs.CHOICES, seed=5)
    docs = gqa_star_docs.read_questions(tmp_path)
    assert {doc["question_id"]: doc["answer"] for doc in docs} == {id: rows[id]["answer"] for id in rows}
    assert {doc["source"] for doc in docs} == {"offline:seed5"}
    for doc in docs:
        assert doc["question"] == rows[doc["question_id"]]["question"]
        right = "ABCD"[doc["options"].index(doc["answer"])]
        assert gqa_star_docs.is_right(right, doc["options"], doc["answer"])


# --- real questions ----------------------------------------------------------------------------------------


def test_real_questions(shared_data: Path, tmp_path: Path):
    """Real questions. LLaVA's answers stand in for GQA's, and a question's first words for its type."""
    folder = shared_data / "data" / "llava_eval" / "gqa"
    asked = [
        json.loads(line) for line in (folder / "llava_gqa_testdev_balanced.jsonl").open(encoding="utf-8")
    ]
    said = [json.loads(line) for line in (folder / "answers_llava-v1.5-13b.jsonl").open(encoding="utf-8")]
    answers = {line["question_id"]: line["text"].lower() for line in said}
    rows = {}
    for line in asked:
        text, answer = line["text"].split("\n")[0], answers[line["question_id"]]
        structural = "verify" if answer in ("yes", "no") else "query"
        types = f"{structural} rel {'-'.join(text.split()[:2]).lower()}"
        rows[line["question_id"]] = row(text, answer, line["image"].removesuffix(".jpg"), types)
    file, out = tmp_path / "questions.json", tmp_path / "out.jsonl"
    file.write_text(json.dumps(rows), encoding="utf-8")
    report = build(file, out, limit=3000)
    assert (report.questions, report.written, report.failures) == (3000, 3000, {})
    written = lines(out)
    assert list(written) == list(rows)[:3000]
    for id, line in written.items():
        found = options(line)
        assert found.count(rows[id]["answer"]) == 1
        assert len({text.casefold() for text in found}) == len(found)
    closed = sum(answer in ("yes", "no") for answer in list(answers.values())[:3000])
    assert report.options[2] >= closed > 1000
    assert report.options[4] > 0.8 * (3000 - closed)
