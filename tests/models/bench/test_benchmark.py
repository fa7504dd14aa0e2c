"""The benchmark at the size of a toy: what it counts, reports and judges. No time is judged here."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import SHARING
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration
from typer.testing import CliRunner

from dualfocus_lmms import Conversation, Settings, StopCriteria, UserError
from dualfocus_lmms.cli import app
from dualfocus_lmms.models.bench import machine
from dualfocus_lmms.models.bench import modes as bench_modes
from dualfocus_lmms.models.bench.benchmark import Tally, agreement, bench, measure, ratios, rows_of, spread
from dualfocus_lmms.models.bench.model import (
    ReleaseWay,
    Source,
    force_replies,
    image_tokens,
    noise_questions,
    random_checkpoint,
    slot_bytes,
)
from dualfocus_lmms.models.bench.modes import DUAL, MACRO, RELEASE, SKIPPING, Plan, forced_engines
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.registry import ENGINES, make_engine
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.llava import character_tokenizer, llava_config
from dualfocus_lmms.types import Prompt

pytestmark = pytest.mark.seconds(30)

ROOT = Path(__file__).resolve().parents[3]
PLAN = Plan(batch_sizes=(2,), samples=4, repeats=1, skip_share=0.5)
FEW = PLAN.but(samples=2, engines=("shared", "naive"))

Report = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The folder that a run writes, and the JSON in it."""
    out = tmp_path_factory.mktemp("bench")
    plan = Plan(batch_sizes=(1, 2), engines=tuple(ENGINES), samples=2, repeats=2, skip_share=0.5)
    text = bench(Source(size="tiny", device="cpu"), plan, out=str(out), profile=True)
    assert (out / "report.md").read_text(encoding="utf-8") == text
    return out, json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return random_checkpoint("tiny", "cpu")


def rows(report: Report, batch_size: int = 1) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["mode"], row["engine"]): row for row in report[1]["rows"] if row["batch_size"] == batch_size}


def test_every_mode_is_measured_at_every_batch_size(report: Report):
    wanted = {(MACRO, "tree"), (MACRO, "generate"), (SKIPPING, "tree"), (RELEASE, "generate")}
    wanted |= {(DUAL, name) for name in ENGINES}
    assert set(rows(report, 1)) == set(rows(report, 2)) == wanted


def test_the_work_of_each_mode_is_counted(report: Report):
    found = rows(report)
    unit, skipping, shared = found[MACRO, "tree"], found[SKIPPING, "tree"], found[DUAL, "shared"]
    naive, release = found[DUAL, "naive"], found[RELEASE, "generate"]
    # macro 3 tokens, locate 24, micro 3; the naive engine also scores each reply, the release the answers.
    assert [row["forwards_per_batch"] for row in (unit, shared, skipping, naive, release)] == [
        3, 30, 6.5, 33, 32,
    ]  # fmt: skip
    assert [row["encodes_per_sample"] for row in (unit, shared, skipping, naive, release)] == [
        1, 2, 1.5, 8, 8,
    ]  # fmt: skip
    assert [row["skipped"] for row in (unit, shared, skipping, naive, release)] == [0, 0, 0.5, 0, 0]
    assert 1 == unit["token_ratio"] < skipping["token_ratio"] < shared["token_ratio"] < naive["token_ratio"]
    assert [found[DUAL, name]["forwards_per_batch"] for name in ("tree", "template")] == [7, 10]


def test_questions_that_are_not_skipped_share_a_second_look(tiny: Checkpoint):
    """Two of four: one batch, though each of the two batches before it has one."""
    plan = PLAN.but(engines=("tree",))
    block = measure(forced_engines(tiny, plan), plan, 2)
    [skipping] = [row for row in rows_of(block, {}) if row["mode"] == SKIPPING]
    assert skipping["forwards_per_batch"] == (3 + 3 + 7) / 2
    assert (skipping["n"], skipping["skipped"]) == (4, 0.5)


def test_ratios_are_to_the_plain_model_and_to_the_release(report: Report):
    for batch_size in (1, 2):
        found = rows(report, batch_size)
        assert found[MACRO, "tree"]["time"]["all"] == [1.0] * (4 // batch_size)
        assert set(found[RELEASE, "generate"]["time_to_release"]["all"]) == {1.0}
        assert found[SKIPPING, "tree"]["time_to_release"] is None
        assert len(found[SKIPPING, "tree"]["time"]["all"]) == 2  # one for each repeat
        for row in found.values():
            assert row["time"]["low"] <= row["time"]["median"] <= row["time"]["high"]


def test_ratios_pair_what_both_answered():
    own, unit = Tally(), Tally()
    own.seconds = {(0, 0): 6.0, (0, 2): 2.0, (1, 0): 3.0}
    unit.seconds = {(0, 0): 2.0, (0, 2): 2.0, (0, 4): 8.0, (1, 0): 1.0}
    assert ratios(own, unit) == [3, 1, 3]
    whole = Tally({(0, 0): 6.0, (1, 0): 3.0}, {(0, 0): 4.0, (1, 0): 1.0})
    assert ratios(whole, unit) == [1.5, 3]
    assert spread([3.0, 1.0, 2.0, 4.0, 5.0]) == {
        "median": 3, "low": 2, "high": 4, "all": [3.0, 1.0, 2.0, 4.0, 5.0],
    }  # fmt: skip
    assert spread([7.0]) == {"median": 7, "low": 7, "high": 7, "all": [7.0]}


def test_every_engine_is_compared_with_the_naive_one(report: Report):
    found = {facts["engine"]: facts for facts in report[1]["engines"]}
    assert set(found) == set(ENGINES) - {"naive"}
    for facts in found.values():
        assert facts["holds"] is True
        assert facts["answers"] == facts["same_tokens"] >= 3


def test_the_page_shows_the_figures_of_the_json(report: Report):
    text = (report[0] / "report.md").read_text(encoding="utf-8")
    data = report[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    table = cells[2 : 2 + len(data["rows"])]
    for line, row in zip(table, data["rows"], strict=True):
        times = row["time"]
        assert line[:4] == [str(row["batch_size"]), row["mode"], row["engine"], str(row["n"])]
        assert line[4] == f"{times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f})"
        assert line[8:10] == [f"{row['tokens_per_sample']:.1f}", f"{row['token_ratio']:.3f}"]
    judged = cells[4 + len(data["rows"]) :]
    assert len(judged) == len({(bound["what"], bound["batch_size"]) for bound in data["bounds"]})
    for word in (data["setup"]["date"], data["setup"]["hardware"], torch.__version__, "float32", "tiny"):
        assert word in text
    assert data["floors"] is None
    assert "no GPU" in text


def test_memory_is_measured_where_the_system_tells(report: Report):
    found = rows(report, 2)
    if not machine.tells_peaks(torch.device("cpu")):
        assert all(row["peak_bytes"] is None for row in found.values())
        return
    weights = report[1]["setup"]["parameters"] * 4
    for engine in ("shared", "template", "tree"):
        assert found[DUAL, engine]["peak_bytes"] > weights
    assert found[MACRO, "tree"]["peak_bytes"] > weights


def test_a_profile_is_a_table_and_a_trace(report: Report):
    for size in (1, 2):
        assert "aten::mm" in (report[0] / f"profile-batch-{size}.txt").read_text(encoding="utf-8")
        with gzip.open(report[0] / f"trace-batch-{size}.json.gz") as file:
            assert any(event.get("name") == "aten::mm" for event in json.load(file)["traceEvents"])


def test_turns_stop_when_the_seconds_are_over_and_each_mode_has_one(tiny: Checkpoint):
    plan = PLAN.but(samples=8, repeats=5, engines=("tree",), seconds=0)
    block = measure(forced_engines(tiny, plan), plan, 2)
    rows = rows_of(block, {})
    assert {len(row["time"]["all"]) for row in rows} == {1}
    assert [row["n"] for row in rows] == [2, 2, 2, 1, 8]


def test_graphs_are_compared_with_the_plain_model_of_the_same_engine(tiny: Checkpoint):
    plan = PLAN.but(engines=("tree", "naive"), cuda_graphs=True)
    block = measure(forced_engines(tiny, plan), plan, 2)
    tallies = {(mode.name, mode.engine_name): tally for mode, tally in block.tallies}
    found = {(row["mode"], row["engine"]): row for row in rows_of(block, {})}
    graphs = "tree + CUDA graphs"
    assert found[DUAL, graphs]["time"]["all"] == ratios(tallies[DUAL, graphs], tallies[MACRO, graphs])
    assert found[MACRO, graphs]["time"]["all"] == ratios(tallies[MACRO, graphs], tallies[MACRO, "tree"])
    assert found[DUAL, graphs]["forwards_per_batch"] == found[DUAL, "tree"]["forwards_per_batch"] == 7
    assert all(facts["holds"] for facts in agreement([block], torch.float32))


def test_the_batched_plain_model_says_what_the_engine_says(tiny: Checkpoint):
    """Questions of differing lengths: padded on the left."""
    plan = PLAN.but(engines=("tree",))
    block = measure(forced_engines(tiny, plan), plan, 2)
    said = {
        mode.engine_name: [trace.macro.tokens for trace in tally.traces[:4]]
        for mode, tally in block.tallies
        if mode.name == MACRO
    }
    assert said["generate"] == said["tree"]


def test_at_576_tokens_an_image_two_passes_cost_at_most_2_1_times_the_tokens():
    config = llava_config("tiny", words := character_tokenizer())
    config.vision_config.image_size, config.image_seq_length = 336, 576
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    plan = PLAN.but(engines=("shared",))
    block = measure(forced_engines(Checkpoint(model, words, processor, LLAVA), plan), plan, 2)
    macro, _, dual, _, skipping = rows_of(block, {})
    # POPE's prompts are some 60 tokens with Llama's words.
    assert 576 + 40 < macro["tokens_per_sample"] < 576 + 70
    assert 2 < dual["token_ratio"] <= 2.1
    assert skipping["token_ratio"] == pytest.approx(1 + (dual["token_ratio"] - 1) / 2, abs=0.01)


def test_random_weights_write_a_box_whatever_is_asked(tiny: Checkpoint):
    engine = make_engine("shared", tiny)
    question = noise_questions(1)[0]
    for text in ("Where is it?", question.text):
        [answer] = engine.generate(
            Prompt.batch("locate", [Conversation().user(text, question.image)], [StopCriteria(23)])
        )
        engine.forget()
        assert answer.text == "[0.25, 0.25, 0.25, 0.25"
        assert len(answer.tokens) == 23  # as many as with Llama's words, the bracket would be the next
        assert all(logprob < 0 for logprob in answer.logprobs)


def test_the_release_generates_three_times_and_scores_both_answers_in_the_micro_context(tiny: Checkpoint):
    engine = force_replies(ReleaseWay(tiny))
    plan = PLAN.but(samples=1, batch_sizes=(1,))
    mode = bench_modes.modes({"shared": engine, RELEASE: engine}, plan)[-1]
    [trace] = bench_modes.answer(mode, noise_questions(1), 1, plan)
    assert [len(answer.tokens) for answer in trace.answers] == [3, 24, 3]
    assert (trace.judged.macro.text, trace.judged.micro.text) == ("Yes", "No")
    assert (mode.settings.protocol.name, mode.settings.rule_name) == ("release", "release")
    naive = make_engine("naive", tiny)
    naive.eos_ids, naive.box_format = engine.eos_ids, engine.box_format
    [slow] = bench_modes.answer(replace(mode, engine=naive), noise_questions(1), 1, plan)
    assert [answer.tokens for answer in slow.answers] == [answer.tokens for answer in trace.answers]


@pytest.mark.parametrize("family", SHARING)
def test_every_family_can_be_measured(family: str):
    checkpoint = Source(family=family, device="cpu").load()
    engines = forced_engines(checkpoint, FEW)
    assert image_tokens(engines["shared"]) > 1
    block = measure(engines, FEW, 2)
    assert {row["mode"] for row in rows_of(block, {})} == {MACRO, DUAL, RELEASE, SKIPPING}


def test_the_floors_count_what_a_batch_reads(tiny: Checkpoint):
    engine = force_replies(make_engine("shared", tiny))
    questions = noise_questions(2)
    asked = [Conversation().user(question.prompt, question.image) for question in questions]
    found = machine.floors(engine, questions, copying=1e9, matmul=1e9)
    text = tiny.model.model.language_model
    weights = sum(weight.numel() for weight in text.parameters()) - text.embed_tokens.weight.numel()
    weights += tiny.model.lm_head.weight.numel()
    assert slot_bytes(tiny) == 2 * 2 * 64 * 4  # keys and values, layers, width, float32
    prompts = sum(
        answer.usage.tokens for answer in engine.generate(Prompt.batch("macro", asked, [StopCriteria(1)] * 2))
    )
    slots = prompts + 2 * machine.STEPS / 2
    assert found["step_bytes"] == weights * 4 + slots * slot_bytes(tiny)
    assert found["prefill_operations"] > 2 * (weights - tiny.model.lm_head.weight.numel()) * prompts
    assert found["prefill_share"] == pytest.approx(
        found["prefill_operations"] / 1e9 / found["prefill_seconds"]
    )
    assert found["step_share"] == pytest.approx(found["step_bytes"] / 1e9 / found["step_seconds"])


def test_the_rates_of_a_machine_are_positive():
    cpu = torch.device("cpu")
    assert machine.copy_rate(cpu, 1 << 16) > 0
    assert machine.matmul_rate(cpu, torch.float32, 32) > 0


@pytest.mark.parametrize(
    ("share", "skipped"), [(0, 0), (0.2, 1), (0.5, 2), (0.58, 2), (0.75, 3), (0.9, 4), (1, 4)]
)
def test_the_threshold_lets_the_share_skip(share: float, skipped: int):
    confidences = [0.3, 0.9, 0.5, 0.7]
    threshold = bench_modes.skip_threshold(confidences, share)
    assert sum(confidence > threshold for confidence in confidences) == skipped


def test_the_plan_bounds_the_reply_with_the_box():
    assert bench_modes.plan_settings(PLAN).protocol.locate_tokens == 24
    assert Settings.of().protocol.locate_tokens != 24


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 3}, "fill whole batches"),
        ({"repeats": 0}, "repeats is a whole number from 1"),
        ({"batch_sizes": ()}, "whole numbers from 1"),
        ({"box_tokens": 0.58}, "box_tokens is .*0.58"),
        ({"skip_share": 58}, "share from 0 to 1"),
        ({"engines": ("fast",)}, "naive"),
        ({"seconds": -1}, "seconds is"),
        ({"sample": 4}, "Did you mean samples"),
    ],
)
def test_an_impossible_plan_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        PLAN.but(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "1t"}, "tiny, 100m, 7b"),
        ({"size": "tiny", "pretrained": "folder"}, "folder"),
        ({"size": "7b", "family": "qwen2_vl"}, "qwen2_vl"),
    ],
)
def test_an_impossible_model_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        Source(**values)


@pytest.mark.parametrize("values", [{"family": "gpt"}, {"size": "tiny", "dtype": "int4"}])
def test_a_model_that_does_not_exist_is_refused(values: dict[str, Any]):
    with pytest.raises(UserError, match="choose one of"):
        Source(**values, device="cpu").load()


def test_the_command_gives_all_that_it_is_given(monkeypatch: pytest.MonkeyPatch):
    given: list[Any] = []
    monkeypatch.setattr(
        "dualfocus_lmms.models.bench.benchmark.bench", lambda *values: given.append(values) or "done"
    )
    words = "--family qwen2_vl --device cpu --dtype float16 --batch-size 2 --batch-size 4 --engine naive"
    words += " --samples 8 --repeats 3 --new-tokens 5 --box-tokens 9 --skip-share 0.25 --out here --profile"
    words += " --cuda-graphs --seconds 60"
    done = CliRunner().invoke(app, ["bench", *words.split()])
    assert (done.exit_code, done.output) == (0, "done\n")
    source = Source(family="qwen2_vl", device="cpu", dtype="float16")
    plan = Plan(
        batch_sizes=(2, 4), samples=8, repeats=3, new_tokens=5, box_tokens=9, skip_share=0.25,
        engines=("naive",), cuda_graphs=True, seconds=60,
    )  # fmt: skip
    assert given == [(source, plan, "here", True)]
    CliRunner().invoke(app, ["bench"])
    assert given[1] == (Source(), Plan(), None, False)


def test_a_profile_needs_a_folder():
    with pytest.raises(UserError, match="--out"):
        bench(Source(size="tiny"), PLAN, profile=True)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path):
    (tmp_path / "file").touch()
    unknown = Source(pretrained="/nonexistent")
    with pytest.raises(UserError, match="--out"):
        bench(unknown, PLAN, str(tmp_path / "file" / "folder"))


def test_the_figures_in_the_docs_are_those_of_the_last_run():
    measured = ROOT / "results" / "data" / "speed" / "cpu-100m" / "report.md"
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert f"<!-- figures -->\n{measured.read_text(encoding='utf-8')}<!-- end -->" in page
