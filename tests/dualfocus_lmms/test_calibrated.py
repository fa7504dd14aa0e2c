"""Rules with fitted numbers: which answer each gives, what they refuse, and what a run keeps of them."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Answer, Settings, UserError, visualize
from dualfocus_lmms.api import DualFocusModel
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import FEATURES, Bias, CalibratedRule, Case, agreement, features
from dualfocus_lmms.plugins import load_rule
from dualfocus_lmms.selection import select
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.trace import Trace, claim_folder

SEEN = {"task": "t", "split": "validation", "questions_fingerprint": "0123456789abcdef", "samples": 9}
BIAS = {
    "format": "dualfocus-calibration",
    "version": 1,
    "rule": "bias",
    "count_eos": False,
    "b": 0.5,
    "fitted_on": [SEEN],
}
PLAIN = {"mean": 0.0, "scale": 1.0, "weight": 0.0}
LOGISTIC = {name: value for name, value in BIAS.items() if name != "b"} | {
    "rule": "logistic",
    "intercept": -1.0,
    "features": dict.fromkeys(FEATURES, PLAIN) | {"area": {"mean": 0.25, "scale": 0.5, "weight": 4.0}},
}


def answer(pathway: Any, *logprobs: float, ended: bool = False, text: str = "") -> Answer:
    tokens = tuple(range(len(logprobs) - ended))
    return Answer(pathway, text or f"the {pathway} one", tokens, logprobs, ended)


def write(path: Path, data: Any) -> str:
    path.write_text(json.dumps(data))
    return f"calibrated:{path}"


@pytest.mark.parametrize(
    ("b", "macro", "micro", "expected"),
    [
        (0.5, -1.0, -0.6, "macro"),  # micro is more certain, but not by half a nat
        (0.5, -1.0, -0.4, "micro"),
        (0.5, -1.0, -0.5, "micro"),  # a tie goes to micro
        (-0.5, -0.6, -1.0, "micro"),
        (-0.5, -0.4, -1.0, "macro"),
    ],
)
def test_micro_must_be_more_certain_by_b(tmp_path: Path, b: float, macro: float, micro: float, expected: str):
    name = write(tmp_path / "b.json", BIAS | {"b": b})
    chosen = select(name, load_rule(name), answer("macro", macro), answer("micro", micro), False)
    assert (chosen.pathway, chosen.text, chosen.rule) == (expected, f"the {expected} one", name)
    assert chosen.compared == (-macro, -micro + b)
    assert chosen.margin == pytest.approx(-micro + b + macro)


def test_b_of_0_is_eq_8():
    chance = random.Random(0)
    values = [chance.choice([-0.1, -0.2, -0.25, -chance.random()]) for _ in range(30)]
    rule, eq_8 = CalibratedRule(Bias(0.0), False, ()), load_rule("ppl")
    for macro, micro in itertools.product(values, repeat=2):
        both = answer("macro", macro, -0.3), answer("micro", micro, -0.3)
        assert select("x", rule, *both, False).pathway == select("ppl", eq_8, *both, False).pathway


@pytest.mark.parametrize(
    ("box", "odds", "expected"),
    [
        (Box(0.0, 0.0, 0.5, 0.5), -1.0, "macro"),
        (Box(0.0, 0.0, 1.0, 0.5), 1.0, "micro"),
        (Box(0.0, 0.0, 2.0, 0.5), 1.0, "micro"),  # what lies outside the image does not count
        (Box(0.0, 0.0, 0.75, 0.5), 0.0, "micro"),  # a tie
        (None, 5.0, "micro"),  # as the whole image
    ],
)
def test_a_logistic_rule_takes_the_likelier_one(tmp_path: Path, box: Box | None, odds: float, expected: str):
    name = write(tmp_path / "rule.json", LOGISTIC)
    answers = answer("macro", -0.1), answer("micro", -0.9)
    chosen = select(name, load_rule(name), *answers, False, box=box)
    assert chosen.pathway == expected
    macro, micro = chosen.compared
    assert math.exp(-macro) + math.exp(-micro) == pytest.approx(1)
    assert -chosen.margin == pytest.approx(odds, abs=1e-12)


def test_what_a_logistic_rule_weighs():
    macro = answer("macro", -0.5, -0.7, -9.0, ended=True, text="A red car")
    micro = answer("micro", -0.2, text="red car")
    found = features(Case(macro, micro, Box(0.5, 0.5, 1.5, 1.0), False))
    expected = {"nll_macro": 0.6, "nll_micro": 0.2, "tokens_macro": 2, "tokens_micro": 1, "area": 0.25}
    assert found == pytest.approx(expected | {"agreement": 2 / 3})
    assert features(Case(macro, micro, None, True))["nll_macro"] == pytest.approx(10.2 / 3)


@pytest.mark.parametrize(
    ("one", "other", "share"), [("4", "4", 1), ("4", "7", 0), ("", "", 1), ("", "4", 0), ("No  no", "NO", 1)]
)
def test_agreement(one: str, other: str, share: float):
    assert agreement(one, other) == agreement(other, one) == share


def test_without_a_micro_answer_it_is_macro(tmp_path: Path):
    name = write(tmp_path / "b.json", BIAS)
    chosen = select(name, load_rule(name), answer("macro", -9.0), None, False)
    assert (chosen.pathway, chosen.margin, chosen.compared) == ("macro", None, None)


# --- files -------------------------------------------------------------------------------------------------

DAMAGED = {
    "no object": [1],
    "another kind of file": {"version": 1, "tasks": {}},
    "a later version": BIAS | {"version": 2},
    "a rule that is none": BIAS | {"rule": "tree"},
    "no b": {name: value for name, value in BIAS.items() if name != "b"},
    "b is a text": BIAS | {"b": "0.5"},
    "b is true": BIAS | {"b": True},
    "b has no end": BIAS | {"b": math.inf},
    "count_eos is a number": BIAS | {"count_eos": 1},
    "no questions": {name: value for name, value in BIAS.items() if name != "fitted_on"},
    "questions without a fingerprint": BIAS | {"fitted_on": [{"task": "t", "split": "test", "samples": 1}]},
    "questions that are a number": BIAS | {"fitted_on": 3},
    "a feature too few": LOGISTIC | {"features": {"area": PLAIN}},
    "a feature too many": LOGISTIC | {"features": LOGISTIC["features"] | {"colour": PLAIN}},
    "a scale of 0": LOGISTIC | {"features": LOGISTIC["features"] | {"area": PLAIN | {"scale": 0.0}}},
    "features that are a list": LOGISTIC | {"features": [1]},
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_holds_no_rule_is_refused(tmp_path: Path, data: Any):
    name = write(tmp_path / "b.json", data)
    with pytest.raises(UserError) as caught:
        Settings.of(select=name)
    assert all(word in str(caught.value) for word in (str(tmp_path / "b.json"), "dualfocus calibrate"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    (tmp_path / "b.json").write_text("{")
    for path in (tmp_path / "b.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Settings.of(select=f"calibrated:{path}")
    with pytest.raises(UserError, match="calibrated:FILE"):
        Settings.of(select="calibrate")


def test_other_perplexities_than_it_was_fitted_on_are_refused(tmp_path: Path):
    name = write(tmp_path / "b.json", BIAS)
    with pytest.raises(UserError, match="count_eos=True"):
        Settings.of(select=name, count_eos=True)
    with pytest.raises(UserError, match="count_eos=True"):
        Settings.of(select=name, protocol="release")
    assert Settings.of(select=name, protocol="release", count_eos=False).rule_name == name


def test_the_same_questions_are_refused_unless_the_name_says_so(tmp_path: Path):
    name = write(tmp_path / "b.json", BIAS)
    same, others = {("t2", "test"): SEEN["questions_fingerprint"]}, {("t", "validation"): "another"}
    load_rule(name).check_unseen(name, others)
    with pytest.raises(UserError, match=r"t2 \(test\).*calibrated_in_sample:"):
        load_rule(name).check_unseen(name, same | others)
    allowed = name.replace("calibrated:", "calibrated_in_sample:")
    load_rule(allowed).check_unseen(allowed, same)
    assert Settings.of(select=allowed).to_dict()["select"] == allowed


@pytest.mark.parametrize("data", [BIAS, LOGISTIC], ids=["bias", "logistic"])
def test_a_run_keeps_what_is_in_the_file(tmp_path: Path, data: dict[str, Any]):
    name = write(tmp_path / "b.json", data)
    kept = Settings.of(select=name).to_dict()
    assert kept["calibration"] == {key: data[key] for key in data if key not in ("format", "version")}
    claim_folder(tmp_path / "traces", kept, resume=False)
    (tmp_path / "traces" / "rank0.jsonl").write_text("{}\n")  # an answer, whose settings are then kept
    claim_folder(tmp_path / "traces", Settings.of(select=name).to_dict(), resume=True)
    write(tmp_path / "b.json", BIAS | {"b": 0.25})
    with pytest.raises(UserError, match="calibration"):
        claim_folder(tmp_path / "traces", Settings.of(select=name).to_dict(), resume=True)


# --- in use ------------------------------------------------------------------------------------------------


def test_from_python(tmp_path: Path):
    name = write(tmp_path / "b.json", BIAS | {"b": 1.0})
    script = {"macro": Reply("red", (-0.7,)), "locate": "[0, 0, 0.5, 0.5]", "micro": Reply("blue", (-0.1,))}
    image = Image.new("RGB", (40, 20))
    trace = DualFocusModel.on(FakeBackend(script), select=name).ask(image, "What colour?")
    assert (trace.selection.text, trace.selection.compared) == ("red", (0.7, 1.1))
    assert DualFocusModel.on(FakeBackend(script)).ask(image, "What colour?").selection.text == "blue"
    assert Trace.from_json(trace.to_json()).selection == trace.selection
    assert "0.700 (macro)" in visualize.verdict(trace)
    assert "1.100 (micro)" in visualize.verdict(trace)


def test_the_region_of_a_question_reaches_the_rule(tmp_path: Path):
    name = write(tmp_path / "rule.json", LOGISTIC)
    for box, expected in (("[0, 0, 0.5, 0.5]", "red"), ("[0, 0, 1, 0.9]", "blue")):
        script = {"macro": Reply("red", (-0.7,)), "locate": box, "micro": Reply("blue", (-0.1,))}
        model = DualFocusModel.on(FakeBackend(script), select=name)
        assert model.ask(Image.new("RGB", (40, 20)), "What colour?").selection.text == expected


def test_it_is_used_without_scikit_learn(tmp_path: Path):
    name = write(tmp_path / "rule.json", LOGISTIC)
    code = (
        f"import sys; from dualfocus_lmms import Settings; Settings.of(select={name!r}); "
        "print({'sklearn', 'torch', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
