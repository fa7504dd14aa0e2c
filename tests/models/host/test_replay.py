"""Replay: the score of a finished run again, of other rules on its answers, and of two runs at once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Settings, UserError, answer_batch, read_traces
from dualfocus_lmms.integrity import questions_fingerprint, write_data
from dualfocus_lmms.models.host.replay import Replay
from dualfocus_lmms.models.host.replay_options import ReplayOptions
from dualfocus_lmms.models.host.requests import read_request
from dualfocus_lmms.options_text import table
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.trace import TraceWriter, claim_folder

pytestmark = pytest.mark.seconds(5)

DOCS = [{"question": f"What is object {number}?", "answer": "cat"} for number in range(6)]
BOX = "[0.00, 0.00, 0.50, 0.50]"
GEN_KWARGS = {"max_new_tokens": 8, "until": ["\n"]}


def requests(prompt: str = "{}", task: str = "t", docs: list = DOCS, gen_kwargs: dict = GEN_KWARGS) -> list:
    """The host's requests, of its chat form, about images that differ."""

    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        image = Image.new("RGB", (8, 8), (int(doc["question"][-2]), 0, 0))
        text = prompt.format(doc["question"])
        content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    return [
        SimpleNamespace(
            args=(prompt.format(doc["question"]), messages, gen_kwargs, number, task, "test"), metadata={}
        )
        for number, doc in enumerate(docs)
    ]


def replies(stage: str, conversation: Any) -> Reply | str:
    """Macro is sure of objects 0, 2, 4; there is no box for object 5."""
    number = int(re.findall(r"object (\d)", conversation.turns[0].text)[0])
    if stage == "locate":
        return BOX if number < 5 else "nowhere"
    if stage == "micro":
        return Reply(f"micro {number}", (-0.5,), eos=-0.5)
    return Reply(f"macro {number}", (-0.1 if number % 2 == 0 else -0.9,), eos=-2.0)


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., str]:
    """Finish a run in a new folder; its name."""

    def run(
        name: str, asked: list | None = None, script: Any = replies, docs: list = DOCS,
        ended: bool = True, scores: Any = None, **settings: Any,
    ) -> str:  # fmt: skip
        folder = str(tmp_path / name)
        chosen = Settings.of(**settings)
        claim_folder(folder, chosen.to_dict(), resume=False)
        read = [read_request(one, tasks(asked, docs), chat=True) for one in asked or requests()]
        questions, limits = [one.question() for one in read], [one.limits for one in read]
        TraceWriter(folder).write(answer_batch(FakeBackend(script, scores=scores), questions, limits, chosen))
        if ended:
            write_data(folder, {f"{read[0].key['task']}/test": docs})
        return folder

    return run


def tasks(asked: list | None = None, docs: list = DOCS) -> dict[str, dict[str, list]]:
    name = (asked or requests())[0].args[4]
    return {name: {"test": docs}}


def replay(model_args: str, asked: list | None = None, docs: list = DOCS) -> list[str]:
    """What the replay answers."""
    return [result.text for result in replay_results(model_args, asked, docs)]


def replay_results(model_args: str, asked: list | None = None, docs: list = DOCS) -> list[Any]:
    model = Replay.create_from_arg_string(model_args, {"batch_size": 4, "device": "cuda"})
    model.task_dict = tasks(asked, docs)
    results = model.generate_until(asked or requests())
    model.clean()
    return results


def named(pathways: str) -> list[str]:
    """ "aib" -> macro 0, micro 1, second 2."""
    names = {"a": "macro", "i": "micro", "b": "second"}
    return [f"{names[letter]} {number}" for number, letter in enumerate(pathways)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "aiaiaa"),
        ({"select": "ppl"}, "aiaiaa"),
        ({"select": "ppl_tie_macro"}, "aiaiaa"),
        ({"select": "macro"}, "aaaaaa"),
        ({"select": "micro"}, "iiiiia"),
        ({"count_eos": True}, "iiiiia"),  # the ends of macro's turns are unlikely
        ({"select": "micro", "skip_confidence": 0.8}, "aiaiaa"),
        ({"select": "micro", "skip_confidence": 0.95}, "iiiiia"),
        ({"select": "micro", "skip_confidence": 0}, "aaaaaa"),
        ({"select": "micro", "skip_confidence": 0.8, "count_eos": True}, "iiiiia"),
    ],
)
def test_other_settings_choose_as_a_run_with_them_does(
    finish: Any, given: dict[str, Any], expected: str
) -> None:
    arguments = [f"trace={finish('first')}", *(f"{name}={value}" for name, value in given.items())]
    assert replay(",".join(arguments)) == named(expected)
    again, _ = read_traces(finish("again", **given))
    assert [trace.selection.text for trace in again] == named(expected)


def test_what_reaches_the_samples_file_is_what_such_a_run_writes(finish: Any) -> None:
    """All but the costs: a FakeBackend has none that would differ."""
    from dualfocus_lmms.models.host.model import SampleExtras

    given = {"skip_confidence": 0.8, "count_eos": True, "select": "micro"}
    first = finish("first")
    for skip in (0.2, 0.8):
        real, _ = read_traces(finish(f"real {skip}", **given | {"skip_confidence": skip}))
        results = replay_results(f"trace={first},select=micro,count_eos=True,skip_confidence={skip}")
        assert [result.token_counts.to_dict() for result in results] == [
            SampleExtras.of(trace).to_dict() for trace in real
        ]


def test_the_settings_are_those_of_the_run_unless_given(finish: Any) -> None:
    given = {"protocol": "release", "select": "ppl_tie_macro"}
    assert replay(f"trace={finish('release', **given)}") == named("iiiiia")  # counts the end
    assert replay(f"trace={finish('micro', select='micro', skip_confidence=0.8)}") == named("aiaiaa")


SCORES = {f"{name} {n}": (-0.1 * (n + 1), -0.4) for name in ("macro", "micro") for n in range(6)} | {
    "macro 2": (-0.2, -0.9),
    "micro 3": (-0.9, -0.0),
    "micro 4": (-0.1, -0.4),
}  # with the ends counted micro 2, 3, 4 are likelier than macro, without them micro 4


@pytest.mark.parametrize("rule", ["release", "micro_context"])
def test_recorded_scores_decide_again(finish: Any, rule: str) -> None:
    settings = {"protocol": "release", "select": rule}
    first = finish("first", scores=SCORES, **settings)
    for given in ({}, {"count_eos": False}, {"skip_confidence": 0.3}, {"select": "macro"}, {"select": "ppl"}):
        again, _ = read_traces(finish(f"again {given}", scores=SCORES, **settings | given))
        arguments = [f"trace={first}", *(f"{name}={value}" for name, value in given.items())]
        assert replay(",".join(arguments)) == [trace.selection.text for trace in again], given
    assert replay(f"trace={first}") != replay(f"trace={first},count_eos=False")


def test_scores_that_were_not_recorded_are_refused(finish: Any) -> None:
    plain, joint = finish("plain"), finish("joint", select="micro_context")
    for arguments in (f"trace={plain},select=release", f"trace={joint},select=release"):
        with pytest.raises(UserError, match=r"5 .*t/test/0"):
            replay(arguments)
    assert replay(f"trace={plain},select=release,skip_confidence=0") == named("aaaaaa")
    with pytest.raises(UserError, match=r"6 .*t/test/0"):
        replay(f"trace={joint},second={plain}")


def calibration(folder: Path, b: float, docs: Any = None, name: str = "b.json") -> str:
    """A rule's name; docs: the questions that it was fitted on."""
    asked = "another" if docs is None else questions_fingerprint(docs)
    fitted_on = [{"task": "fitted", "split": "test", "questions_fingerprint": asked, "samples": 6}]
    data = {"format": "dualfocus-calibration", "version": 1, "rule": "bias", "count_eos": False, "b": b}
    (folder / name).write_text(json.dumps(data | {"fitted_on": fitted_on}))
    return f"calibrated:{folder / name}"


@pytest.mark.parametrize(
    ("b", "expected"), [(-0.5, "iiiiia"), (0.0, "aiaiaa"), (0.3, "aiaiaa"), (0.5, "aaaaaa")]
)
def test_a_fitted_rule_chooses_as_a_run_with_it_does(
    finish: Any, tmp_path: Path, b: float, expected: str
) -> None:
    """Micro is more certain by 0.4 nats in 1 and 3."""
    name = calibration(tmp_path, b)
    assert replay(f"trace={finish('first')},select={name}") == named(expected)
    again, _ = read_traces(finish("again", select=name))
    assert [trace.selection.text for trace in again] == named(expected)
    assert {trace.selection.rule for trace in again} == {name}
    assert replay(f"trace={tmp_path / 'again'}") == named(expected)


def test_a_fitted_rule_that_has_changed_since_the_run_is_refused(finish: Any, tmp_path: Path) -> None:
    name = calibration(tmp_path, -0.5)
    first = finish("first", select=name)
    calibration(tmp_path, 0.5)
    with pytest.raises(UserError, match="changed"):
        replay(f"trace={first}")
    assert replay(f"trace={first},select={name}") == named("aaaaaa")
    (tmp_path / "b.json").unlink()
    with pytest.raises(UserError, match=r"b\.json"):
        replay(f"trace={first}")
    assert replay(f"trace={first},select=macro") == named("aaaaaa")


def test_a_fitted_rule_is_refused_on_its_own_questions(finish: Any, tmp_path: Path) -> None:
    name, first = calibration(tmp_path, -0.5, DOCS), finish("first")
    with pytest.raises(UserError, match=r"t \(test\)"):
        replay(f"trace={first},select={name}")
    in_sample = name.replace("calibrated:", "calibrated_in_sample:")
    assert replay(f"trace={first},select={in_sample}") == named("iiiiia")
    with pytest.raises(UserError, match="count_eos"):
        replay(f"trace={first},select={in_sample},count_eos=True")


def test_a_run_of_macro_alone_has_nothing_to_choose_from(finish: Any) -> None:
    first = finish("first", pathway="macro")
    assert replay(f"trace={first}") == replay(f"trace={first},select=macro") == named("aaaaaa")
    with pytest.raises(UserError):
        Replay(trace=first, select="ppl")


def test_skipped_samples_are_no_macro_answers_of_a_run_that_skips_less(finish: Any) -> None:
    first = finish("first", skip_confidence=0.8)
    assert replay(f"trace={first},skip_confidence=0.3") == named("aaaaaa")
    assert replay(f"trace={first},select=macro,skip_confidence=1.0") == named("aaaaaa")
    for given in ("skip_confidence=0.95", "skip_confidence=1.0", "count_eos=True"):
        with pytest.raises(UserError, match=r"3 .*t/test/0, t/test/2, t/test/4"):
            replay(f"trace={first},{given}")


def test_no_more_is_asked_than_the_run_answered(finish: Any) -> None:
    asked = requests()
    first = finish("first", asked[:4])
    assert replay(f"trace={first}", asked[:3]) == named("aia")
    with pytest.raises(UserError, match=r"2 .*t/test/4, t/test/5"):
        replay(f"trace={first}")
    with pytest.raises(UserError, match=r"6 .*other/test/0"):
        replay(f"trace={first}", requests(task="other"))


def test_a_damaged_line_is_a_missing_sample(finish: Any) -> None:
    first = finish("first")
    file = Path(first) / "rank0.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match=r"1 .*t/test/5"):
        replay(f"trace={first}")


@pytest.mark.parametrize("changed", [{"prompt": "{} Now!"}, {"gen_kwargs": GEN_KWARGS | {"until": ["."]}}])
def test_another_prompt_or_other_limits_are_refused(finish: Any, changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="t/test/0"):
        replay(f"trace={finish('first')}", requests(**changed))


def test_other_questions_are_refused_where_the_run_knows_its_own(finish: Any) -> None:
    corrected = [*DOCS[:5], DOCS[5] | {"answer": "dog"}]
    with pytest.raises(UserError, match=r"t \(test\)"):
        replay(f"trace={finish('first')}", docs=corrected)
    assert replay(f"trace={finish('killed', ended=False)}", docs=corrected) == named("aiaiaa")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"trace": "no/such/folder"},
        {"trace": "FIRST", "selects": "ppl"},
        {"trace": "FIRST", "select": "best"},
        {"trace": "FIRST", "select": "oracle"},
        {"trace": "FIRST", "skip_confidence": 1.5},
        {"trace": "FIRST", "count_eos": "perhaps"},
        {"trace": "FIRST", "second": "no/such/folder"},
    ],
)
def test_impossible_arguments_stop_before_any_task_is_asked(finish: Any, given: dict[str, Any]) -> None:
    first = finish("first")
    with pytest.raises(UserError):
        Replay(**{name: first if value == "FIRST" else value for name, value in given.items()})


def test_a_replay_is_one_process(finish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finish("first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError):
        Replay(trace=first)


def other_model(stage: str, conversation: Any) -> Reply | str:
    number = int(re.findall(r"object (\d)", conversation.turns[0].text)[0])
    return Reply(f"second {number}", (-0.3,), eos=-0.01) if stage == "macro" else replies(stage, conversation)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "ababab"),
        ("select=macro", "aaaaaa"),
        ("select=micro", "bbbbbb"),
        ("count_eos=True", "bbbbbb"),
        ("select=micro,skip_confidence=0.8", "ababab"),
    ],
)
def test_two_runs_choose_between_their_macro_answers(finish: Any, given: str, expected: str) -> None:
    """The first run skipped and located; neither matters here."""
    first, second = finish("first", skip_confidence=0.8), finish("second", script=other_model)
    assert replay(f"trace={first},second={second},{given}".rstrip(",")) == named(expected)


def test_the_second_answer_is_named_in_the_samples_file(finish: Any) -> None:
    first, second = finish("first"), finish("second", script=other_model, pathway="macro")
    extras = [result.token_counts.dualfocus for result in replay_results(f"trace={first},second={second}")]
    assert [extra["pathway"] for extra in extras] == ["macro", "second"] * 3
    assert [(extra["macro"], extra["second"]) for extra in extras] == list(
        zip(named("aaaaaa"), named("bbbbbb"), strict=True)
    )
    assert extras[1]["ppl"] == pytest.approx({"macro": math.exp(0.9), "second": math.exp(0.3)})
    assert extras[1]["margin"] == pytest.approx(0.3 - 0.9)
    assert not any("micro" in extra or extra["box"] or extra["fallback"] for extra in extras)


def test_the_second_run_may_have_another_prompt_and_so_another_task(finish: Any) -> None:
    """As in table 8, "LLaVA + PPL"."""
    first = finish("first")
    for task in ("t", "t_short"):
        asked = requests("{} Be brief.", task)
        assert replay(f"trace={first},second={finish(task, asked, other_model)}") == named("ababab")


def test_the_second_run_must_have_the_same_questions_and_images(finish: Any, tmp_path: Path) -> None:
    first = finish("first")

    def refused(second: str, match: str) -> None:
        with pytest.raises(UserError, match=match):
            replay(f"trace={first},second={second}")

    refused(finish("fewer", requests()[:5]), "t/test/5")
    refused(finish("other task", requests(task="u"), docs=DOCS, ended=False), r"u \(test\)")
    brief = requests("{} Be brief.")
    refused(finish("cannot tell", brief, ended=False), "t/test/0")
    refused(finish("other data", brief, docs=[*DOCS[:5], DOCS[5] | {"answer": "dog"}]), "t/test/0")
    seen = finish("other images")
    traces, _ = read_traces(seen)
    (Path(seen) / "rank0.jsonl").unlink()
    TraceWriter(seen).write([*traces[:5], replace(traces[5], image_hash="other")])
    refused(seen, "t/test/5")


def test_the_table_of_arguments_is_the_declaration() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "replay.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- arguments -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table(ReplayOptions)


def looking(stage: str, conversation: Any) -> Reply | str:
    """The first look is surer than macro, and the look into its crop, of 4 pixels, less sure than that."""
    if stage == "locate":
        return BOX
    nll = {"macro": 0.9, "micro": 0.5 if conversation.turns[0].images[0].width == 8 else 0.7}[stage]
    return Reply(f"{stage} {nll}", (-nll,), eos=-0.1)


def test_a_run_of_several_looks_is_replayed_by_the_best_of_them(finish):
    first = finish("first", script=looking, looks=3)
    (result, *_) = replay_results(f"trace={first}")
    assert result.text == "micro 0.5"
    extras = result.token_counts.dualfocus
    assert [look["micro"] for look in extras["looks"]] == ["micro 0.5", "micro 0.7"]
    assert (extras["micro"], extras["crop"]) == ("micro 0.5", (0, 0, 4, 4))
    assert replay(f"trace={first},select=macro") == ["macro 0.9"] * 6
    (skipped, *_) = replay_results(f"trace={first},skip_confidence=0.3")
    assert (skipped.text, "looks" in skipped.token_counts.dualfocus) == ("macro 0.9", False)
    with pytest.raises(UserError, match="looks=3"):
        replay(f"trace={first},count_eos=True")


def test_a_run_of_several_regions_is_replayed_with_all_of_them(finish):
    def several(stage: str, conversation: Any) -> Reply | str:
        return f"{BOX}, [0.50, 0.50, 1.00, 1.00]" if stage == "locate" else replies(stage, conversation)

    first = finish("first", script=several, regions="separate")
    (result, *_) = replay_results(f"trace={first},select=micro")
    assert result.text == "micro 0"
    assert result.token_counts.dualfocus["crops"] == ((0, 0, 5, 5), (3, 3, 8, 8))
    (skipped, *_) = replay_results(f"trace={first},skip_confidence=0")
    assert "crops" not in skipped.token_counts.dualfocus


def test_a_run_from_before_regions_and_looks_is_replayed(finish):
    first = finish("first")
    path = Path(first) / "run.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: settings[name] for name in settings if name not in ("regions", "looks")})
    )
    assert replay(f"trace={first},count_eos=True") == named("iiiiia")
