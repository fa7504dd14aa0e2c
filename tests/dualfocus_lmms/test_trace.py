"""Traces on disk: nothing lost, nothing damaged taken for a trace, no two runs mixed."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dualfocus_lmms import Answer, Selection, Trace, Usage, UserError, read_traces
from dualfocus_lmms.trace import TraceWriter, claim_folder, read_settings, record_template
from dualfocus_lmms.types import JointScores, Scores, TemplateChoice

SETTINGS = {"protocol": "paper", "select": "ppl", "skip_confidence": 1.0, "box_margin": 0}
LINE_BREAKS = "a\nb\rc\u2028d\u0085e\x0bf\x1cg"


def trace(doc_id: int = 0, text: str = "red") -> Trace:
    macro = Answer("macro", text, (5, 6), (-0.1, -1 / 3, -1e-12), True, Usage(40, 1, 0.25))
    return Trace(
        key={"task": "df_gqa", "split": "test", "doc_id": doc_id},
        question_id=f"q{doc_id}",
        prompts={"macro": "What is it?", "locate": "Where?", "micro": "So?"},
        image_size=(640, 480),
        image_hash="00ff",
        selection=Selection("micro", text, "ppl", -0.125),
        macro=macro,
        locate=Answer("locate", "[0.1, 0.2, 0.3, 0.4]", (7,), (-0.5,), False, Usage(9, 0, 0.125)),
        micro=replace(macro, pathway="micro", usage=Usage(700, 1, 1 / 3)),
        box=(0.1, 0.2, -0.3, 1.4),
        crop=(1, 2, 3, 4),
        ppl={"macro": math.exp(0.1), "micro": 1e300},
    )


def fill(folder: Path, *traces: Trace, rank: int = 0) -> None:
    writer = TraceWriter(folder, rank)
    writer.write(traces)
    writer.close()


TEXTS = ["red", "", "żółć 猫 🐈", 'quote " and \\ backslash', LINE_BREAKS, "\ud83d alone", "NaN"]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(tmp_path: Path, text: str) -> None:
    given = trace(text=text)
    assert Trace.from_json(given.to_json()) == given
    assert "\n" not in given.to_json()
    fill(tmp_path, given)
    assert read_traces(tmp_path) == ([given], [])


def test_the_texts_of_tokens_are_kept_and_cost_nothing_where_there_are_none() -> None:
    given = trace(text="two cats")
    assert "lengths" not in given.to_json()
    told = replace(given, macro=replace(given.macro, lengths=(3, 5)))
    assert '"lengths": [3, 5]' in told.to_json()
    read = Trace.from_json(told.to_json())
    assert (read.macro.pieces, read.micro and read.micro.pieces) == (("two", " cats"), None)
    with pytest.raises(ValueError, match="lengths"):
        Trace.from_json(told.to_json().replace("[3, 5]", "[3, 6]"))


@pytest.mark.parametrize(
    "judged",
    [
        JointScores(
            "release", Scores("a cat", (-0.5, -1 / 3), (-0.1, -0.2)), Scores("", (), (-0.25,)), seconds=0.5
        ),
        JointScores("release", winner="micro"),
    ],
)
def test_what_decided_is_kept(judged: JointScores) -> None:
    given = replace(trace(), judged=judged)
    read = Trace.from_json(given.to_json())
    assert read == given
    assert read.judged is not None
    assert read.judged.seconds == judged.seconds


def test_a_trace_from_before_anything_was_judged() -> None:
    data = json.loads(trace().to_json())
    del data["judged"]
    assert Trace.from_json(json.dumps(data)) == trace()


def test_a_trace_of_the_macro_pathway_alone(tmp_path: Path) -> None:
    given = replace(trace(), locate=None, micro=None, box=None, crop=None, fallback="pathway_macro")
    fill(tmp_path, given)
    assert read_traces(tmp_path) == ([given], [])
    assert given.answers == [given.macro]
    assert [answer.pathway for answer in trace().answers] == ["macro", "locate", "micro"]


def test_a_given_and_moved_box(tmp_path: Path) -> None:
    given = replace(
        trace(),
        locate=None,
        grounding="annotated",
        given_reply="[0.10, 0.20, 0.30, 0.40]",
        box_shift=25,
        shifted_box=(0.125, 0.1, 0.325, 0.3),
    )
    fill(tmp_path, given)
    assert read_traces(tmp_path) == ([given], [])
    assert [answer.pathway for answer in given.answers] == ["macro", "micro"]


def test_a_trace_from_before_boxes_could_be_given(tmp_path: Path) -> None:
    old = json.loads(trace().to_json())
    for name in ("grounding", "given_reply", "box_shift", "shifted_box"):
        del old[name]
    assert Trace.from_json(json.dumps(old)) == trace()
    assert (trace().grounding, trace().box_shift, trace().shifted_box) == ("model", 0, None)


def test_one_line_for_each_trace(tmp_path: Path) -> None:
    fill(tmp_path, *(trace(n, text) for n, text in enumerate(TEXTS)))
    assert (tmp_path / "rank0.jsonl").read_bytes().count(b"\n") == len(TEXTS)


def test_every_cut_of_the_last_line(tmp_path: Path) -> None:
    fill(tmp_path, trace(0), trace(1, "猫🐈"))
    path = tmp_path / "rank0.jsonl"
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for cut in (
        second + 1,
        second + 100,
        len(whole) // 2 + second // 2,
        whole.index("猫".encode()) + 1,
        len(whole) - 2,
    ):
        path.write_bytes(whole[:cut])
        traces, damaged = read_traces(tmp_path)
        assert traces == [trace(0)]
        assert [line.split(" ")[0] for line in damaged] == ["rank0.jsonl:2:"]
    path.write_bytes(whole[:-1])  # all but the line break
    assert read_traces(tmp_path) == ([trace(0), trace(1, "猫🐈")], [])


GARBAGE = [
    "garbage",
    "{",
    "[]",
    "null",
    "3",
    "{}",
    '{"version": 1}',
    '{"version": 99}',
    "\x00\x00",
    trace().to_json().replace('"version": 1', '"version": 2'),
    trace().to_json().replace('"ended": true', '"ended": false'),
    trace().to_json().replace("-0.1,", "NaN,"),
    json.dumps(json.loads(trace().to_json()) | {"macro": None}),
    json.dumps(json.loads(trace().to_json()) | {"selection": None}),
    json.dumps(json.loads(trace().to_json()) | {"micro": "red"}),
    json.dumps(json.loads(trace().to_json()) | {"more": 1}),
]


@pytest.mark.parametrize("line", GARBAGE)
def test_garbage_in_the_middle(tmp_path: Path, line: str) -> None:
    lines = [trace(0).to_json(), line, "", trace(1).to_json()]
    (tmp_path / "rank0.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    traces, damaged = read_traces(tmp_path)
    assert traces == [trace(0), trace(1)]
    assert [entry.split(" ")[0] for entry in damaged] == ["rank0.jsonl:2:"]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "rank0.jsonl").write_bytes(b"\xff\xfe\x00\n" + trace().to_json().encode() + b"\n")
    traces, damaged = read_traces(tmp_path)
    assert traces == [trace()]
    assert len(damaged) == 1


def test_of_equal_keys_the_last(tmp_path: Path) -> None:
    fill(tmp_path, trace(0, "old"), trace(1), trace(0, "new"))
    traces, damaged = read_traces(tmp_path)
    assert {each.key["doc_id"]: each.selection.text for each in traces} == {0: "new", 1: "red"}
    assert len(traces) == 2
    assert damaged == []


def test_two_ranks(tmp_path: Path) -> None:
    writers = [TraceWriter(tmp_path, rank) for rank in range(2)]
    for doc_id in range(6):
        writers[doc_id % 2].write([trace(doc_id)])
    traces, _ = read_traces(tmp_path)  # written, though no writer is closed
    assert [each.key["doc_id"] for each in traces] == [0, 2, 4, 1, 3, 5]
    for writer in writers:
        writer.close()


def test_a_writer_after_a_kill(tmp_path: Path) -> None:
    fill(tmp_path, trace(0), trace(1))
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    fill(tmp_path, trace(1, "again"), trace(2))
    traces, damaged = read_traces(tmp_path)
    assert traces == [trace(0), trace(1, "again"), trace(2)]
    assert len(damaged) == 1


def test_a_writer_continues_a_whole_file(tmp_path: Path) -> None:
    fill(tmp_path, trace(0))
    fill(tmp_path)
    fill(tmp_path, trace(1))
    assert (tmp_path / "rank0.jsonl").read_text().count("\n") == 2
    assert read_traces(tmp_path) == ([trace(0), trace(1)], [])


def test_a_full_disk_is_no_crash_and_loses_nothing_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, trace(0))
    writer = TraceWriter(tmp_path)

    class Full:
        name = "rank0.jsonl"

        def write(self, line: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(UserError, match=r"No space left.*resume=True"):
        writer.write([trace(1)])
    assert read_traces(tmp_path) == ([trace(0)], [])


def test_traces_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "rank0.jsonl").mkdir()
    with pytest.raises(UserError, match=r"rank0\.jsonl"):
        read_traces(tmp_path)


def test_a_folder_without_answers_is_taken_over(tmp_path: Path) -> None:
    """What a bad file of questions leaves does not refuse the mended command; a run with answers is kept."""
    claim_folder(tmp_path, {"protocol": "paper"}, resume=False)
    TraceWriter(tmp_path).close()
    for settings, resume in (({"protocol": "paper"}, False), ({"protocol": "release"}, True)):
        claim_folder(tmp_path, settings, resume)
        assert read_settings(tmp_path) == settings
    (tmp_path / "run.json").write_text("")
    claim_folder(tmp_path, {"protocol": "paper"}, resume=False)
    assert read_settings(tmp_path) == {"protocol": "paper"}
    fill(tmp_path, trace(0))
    for settings, resume in (({"protocol": "paper"}, False), ({"protocol": "release"}, True)):
        with pytest.raises(UserError, match="another folder"):
            claim_folder(tmp_path, settings, resume)


def test_no_folder_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        read_traces(tmp_path / "gone")


def test_a_new_folder_is_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    claim_folder(folder, SETTINGS, resume=False)
    assert read_settings(folder) == SETTINGS
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_folder_is_claimed(tmp_path: Path, resume: bool) -> None:
    claim_folder(tmp_path, SETTINGS, resume)
    assert read_settings(tmp_path) == SETTINGS


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    claim_folder(tmp_path, SETTINGS, resume=False)
    fill(tmp_path, trace(0))
    with pytest.raises(UserError, match="resume"):
        claim_folder(tmp_path, SETTINGS, resume=False)


def test_a_run_is_resumed(tmp_path: Path) -> None:
    claim_folder(tmp_path, SETTINGS, resume=False)
    fill(tmp_path, trace(0))
    claim_folder(tmp_path, dict(reversed(SETTINGS.items())), resume=True)
    assert read_traces(tmp_path) == ([trace(0)], [])
    assert read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"select": "macro"}, ["select", "ppl", "macro"]),
        ({"box_margin": 25, "protocol": "release"}, ["box_margin", "25", "protocol", "release"]),
        ({"new_option": 3}, ["new_option", "3"]),
    ],
)
def test_other_settings_do_not_resume(tmp_path: Path, changed: dict, named: list[str]) -> None:
    claim_folder(tmp_path, SETTINGS, resume=False)
    fill(tmp_path, trace(0))
    with pytest.raises(UserError) as caught:
        claim_folder(tmp_path, SETTINGS | changed, resume=True)
    assert all(word in str(caught.value) for word in named)
    assert "skip_confidence" not in str(caught.value)
    assert read_settings(tmp_path) == SETTINGS


OF_FAMILY, OWN = TemplateChoice("auto", "family"), TemplateChoice("auto", "checkpoint")
REPLACED = replace(OF_FAMILY, replaced=True)


def test_whose_template_was_used_is_recorded_and_does_not_change(tmp_path: Path) -> None:
    settings = SETTINGS | {"chat_template": "auto"}
    claim_folder(tmp_path, settings, resume=False)
    record_template(tmp_path, REPLACED)
    assert read_settings(tmp_path) == settings | {"chat_template_used": "family"}
    fill(tmp_path, trace(0))
    claim_folder(tmp_path, settings, resume=True)
    record_template(tmp_path, OF_FAMILY)
    with pytest.raises(UserError, match="chat_template_used"):
        record_template(tmp_path, OWN)
    with pytest.raises(UserError, match="chat_template was 'auto'"):
        claim_folder(tmp_path, settings | {"chat_template": "checkpoint"}, resume=True)


def test_a_run_from_before_templates_could_be_chosen_resumes_unless_its_template_was_replaced(
    tmp_path: Path,
) -> None:
    claim_folder(tmp_path, SETTINGS, resume=False)
    fill(tmp_path, trace(0))
    claim_folder(tmp_path, SETTINGS | {"chat_template": "auto"}, resume=True)
    with pytest.raises(UserError, match="another folder"):
        record_template(tmp_path, REPLACED)
    claim_folder(tmp_path, SETTINGS | {"chat_template": "checkpoint"}, resume=True)
    record_template(tmp_path, replace(OWN, asked="checkpoint"))
    settings = read_settings(tmp_path)
    assert (settings["chat_template"], settings["chat_template_used"]) == ("checkpoint", "checkpoint")
    with pytest.raises(UserError, match="chat_template was 'checkpoint'"):
        claim_folder(tmp_path, SETTINGS | {"chat_template": "auto"}, resume=True)


def test_a_trace_from_before_templates_could_be_chosen() -> None:
    given = replace(trace(), chat_template="auto", chat_template_used="family")
    assert Trace.from_json(given.to_json()) == given
    old = json.loads(given.to_json())
    del old["chat_template"], old["chat_template_used"]
    assert Trace.from_json(json.dumps(old)) == trace()


@pytest.mark.parametrize("resume", [False, True])
def test_traces_of_unknown_settings(tmp_path: Path, resume: bool) -> None:
    fill(tmp_path, trace())
    with pytest.raises(UserError, match=r"traces|already"):
        claim_folder(tmp_path, SETTINGS, resume)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"paper"'])
def test_damaged_settings(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    fill(tmp_path, trace(0))
    with pytest.raises(UserError, match=r"run\.json"):
        claim_folder(tmp_path, SETTINGS, resume=True)


def test_a_file_in_the_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        claim_folder(tmp_path / "taken", SETTINGS, resume=False)


def test_a_folder_that_another_process_writes_to_is_refused_until_that_ends(tmp_path):
    fill(tmp_path, trace(0))
    code = (
        "from dualfocus_lmms.trace import TraceWriter\n"
        f"writer = TraceWriter({str(tmp_path)!r})\nprint(1, flush=True)\ninput()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match=r"rank0\.jsonl"):
            TraceWriter(tmp_path)
        (tmp_path / "rank0.jsonl").write_bytes(b"")
        with pytest.raises(UserError, match=r"rank0\.jsonl"):  # at work, though it has no answer yet
            claim_folder(tmp_path, SETTINGS, resume=False)
        TraceWriter(tmp_path, rank=1).close()
        other.kill()
    fill(tmp_path, trace(1))
    traces, damaged = read_traces(tmp_path)
    assert (len(traces), damaged) == (1, [])


def test_runs_from_before_the_zoom_of_eq_3_are_resumed_where_nothing_is_enlarged(tmp_path: Path) -> None:
    claim_folder(tmp_path, SETTINGS, resume=False)
    fill(tmp_path, trace(0))
    later = SETTINGS | {"min_pixels": None, "max_pixels": None}
    claim_folder(tmp_path, later | {"crop_pixels": "original"}, resume=True)
    with pytest.raises(UserError, match=r"crop_pixels was 'original', now 'auto'"):
        claim_folder(tmp_path, later | {"crop_pixels": "auto"}, resume=True)
    with pytest.raises(UserError, match="max_pixels was None, now 5000"):
        claim_folder(tmp_path, later | {"crop_pixels": "original", "max_pixels": 5000}, resume=True)


def test_runs_from_before_there_were_several_regions_are_resumed(tmp_path: Path) -> None:
    claim_folder(tmp_path, SETTINGS, resume=False)
    fill(tmp_path, trace(0))
    claim_folder(tmp_path, SETTINGS | {"regions": "union"}, resume=True)
    with pytest.raises(UserError, match="regions was 'union', now 'separate'"):
        claim_folder(tmp_path, SETTINGS | {"regions": "separate"}, resume=True)


def test_older_traces_without_sizes_are_read() -> None:
    given = replace(trace(), input_size=(588, 308), crop_size=(56, 56))
    assert Trace.from_json(given.to_json()) == given
    older = json.loads(given.to_json())
    del older["input_size"], older["crop_size"]
    assert Trace.from_json(json.dumps(older)) == trace()


def test_a_folder_that_no_run_wrote_is_a_mistake(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no trace")
    with pytest.raises(UserError, match="rank0"):
        read_traces(tmp_path)
    claim_folder(tmp_path, {"pretrained": "x"}, resume=False)
    assert read_traces(tmp_path) == ([], [])  # a run that has no answer yet
