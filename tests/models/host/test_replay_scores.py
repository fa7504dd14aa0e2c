"""A replay through the host: the scores of runs on a tiny model, and of answers that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Answer, Trace, read_traces
from dualfocus_lmms.trace import TraceWriter, claim_folder, read_settings, write_json

pytestmark = pytest.mark.seconds(20)

THINGS = {"cat": "yes", "dog": "no", "tv": "yes", "car": "no", "person": "yes"}
RED, GREEN, BLUE, SAND = (250, 20, 20), (20, 250, 20), (20, 20, 250), (220, 180, 90)
COLORS = [(RED, BLUE), (GREEN, BLUE), (BLUE, SAND), (SAND, BLUE)]  # what is around, what is in the middle
LABELS = [*THINGS.values()] * len(COLORS)


@pytest.fixture(scope="module")
def host(
    run_command: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs by name, one after the other in one call of the host; its exit code, and each one's results.

    Their data are POPE's files in miniature: 3 splits of 20 questions about 4 images of two colours.
    """
    folder = tmp_path_factory.mktemp("replay")
    images = folder / "pope" / "images"
    images.mkdir(parents=True)
    for number, (around, middle) in enumerate(COLORS):
        drawn = Image.new("RGB", (64, 48), around)
        drawn.paste(middle, (16, 12, 48, 36))
        drawn.save(images / f"{number}.png")
    asked = [(f"{number}.png", thing) for number in range(len(COLORS)) for thing in THINGS]
    for split in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": number, "image": image, "label": label, "text": f"Is there a {thing}, {split}?"}
            for number, ((image, thing), label) in enumerate(zip(asked, LABELS, strict=True))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "pope" / f"coco_pope_{split}.json").write_text(text)
    environment = {
        "DUALFOCUS_DATA": str(folder), "LMMS_EVAL_DATASETS_CACHE": str(folder / "cache"),
        "ACCELERATE_USE_CPU": "true", "DUALFOCUS_ONLY_OUR_TASKS": "1",
    }  # fmt: skip

    def start(command: str, runs: dict[str, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        outputs = {name: folder / "output" / name for name in runs}
        config = folder / "runs.json"  # JSON is YAML
        config.write_text(
            json.dumps([{**one, "output_path": str(outputs[name])} for name, one in runs.items()])
        )
        done = run_command(*command.split(), "--config", str(config), env=environment)
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        results = {}
        for name, output in outputs.items():
            for file in output.rglob("*_results.json"):  # one, or none where the run failed
                results[name] = json.loads(file.read_text())["results"]
        return done.returncode, results

    return start


def run(model_args: str, model: str = "dualfocus_replay", tasks: str = "df_pope", **more: Any) -> dict:
    return {"model": model, "model_args": model_args, "tasks": tasks, **more}


@pytest.fixture(scope="module")
def first(host: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run's trace folder; and results, those of that run among them."""
    trace = tmp_path_factory.mktemp("first") / "traces"
    model = f"pretrained={tiny_checkpoint},grounding=center,batch_size=8"
    runs = {
        "both": run(f"{model},trace={trace}", "dualfocus"),
        "macro": run(f"{model},pathway=macro", "dualfocus"),
        "both again": run(f"trace={trace}"),
        "macro again": run(f"trace={trace},select=macro", force_simple=True),
        "changed": run(f"trace={trace}", gen_kwargs="max_new_tokens=3"),
    }
    code, results = host("dualfocus eval", runs)
    assert code == 2  # the last one's generation settings are not the run's
    assert "changed" not in results
    return trace, results


def test_the_score_of_a_run_again_and_that_of_its_macro_answers(first: tuple[Path, dict]) -> None:
    """Every metric, its error and the fingerprints, of the group and its tasks; with both request forms."""
    trace, results = first
    traces, _ = read_traces(trace)
    assert any(trace.micro and trace.micro.text != trace.macro.text for trace in traces)
    for name in ("both", "macro"):
        assert set(results[name]) == {
            "df_pope", "df_pope_random", "df_pope_popular", "df_pope_adversarial"
        }  # fmt: skip
        assert results[f"{name} again"] == results[name]


def answer(pathway: Any, right: bool, label: str, logprob: float) -> Answer:
    text = label if right else {"yes": "no", "no": "yes"}[label]
    return Answer(pathway, text, (1,), (logprob,), ended=False)


def two_looks(trace: Trace, number: int, label: str) -> Trace:
    """Of 20, macro is right in 0-9 and the more certain one in even ones, micro in 5-18."""
    macro = answer("macro", number < 10, label, -0.1 if number % 2 == 0 else -0.9)
    micro = answer("micro", 5 <= number < 19, label, -0.5)
    return replace(trace, macro=macro, micro=micro, fallback=None)


def other_plain_model(trace: Trace, number: int, label: str) -> Trace:
    """Right in 15-19."""
    return replace(trace, macro=answer("macro", number >= 15, label, -0.3))


def doctored(source: Path, folder: Path, change: Callable[[Trace, int, str], Trace]) -> str:
    """A copy of a finished run with other answers."""
    claim_folder(folder, read_settings(source), resume=False)
    write_json(folder / "data.json", json.loads((source / "data.json").read_text()))
    numbered = [(trace, trace.key["doc_id"]) for trace in read_traces(source)[0]]
    TraceWriter(folder).write(change(trace, number, LABELS[number]) for trace, number in numbered)
    return str(folder)


def test_known_answers_have_known_scores_and_thresholds_those_of_runs(
    host: Any, first: tuple[Path, dict], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Through the bare host."""
    trace, _ = first
    looks = f"trace={doctored(trace, tmp_path / 'looks', two_looks)}"
    other = doctored(trace, tmp_path / "other", other_plain_model)
    right = {
        looks: 5 + 7,  # 0, 2, 4, 6, 8; 5, 7, 9, 11, 13, 15, 17
        f"{looks},select=macro": 10,
        f"{looks},select=micro": 14,
        f"{looks},skip_confidence=0.3": 10,
        f"{looks},select=micro,skip_confidence=0.8": 5 + 7,
        f"{looks},second={other}": 5 + 3,  # 0, 2, 4, 6, 8; 15, 17, 19
        f"{looks},second={other},select=micro": 5,
    }
    confident = sorted(trace.macro.confidence() for trace in read_traces(trace)[0])[30]
    model = f"pretrained={tiny_checkpoint},grounding=center,batch_size=8"
    runs = {
        **{str(number): run(given, tasks="df_pope_random") for number, given in enumerate(right)},
        "skip": run(f"{model},skip_confidence={confident}", "dualfocus"),
        "micro": run(f"{model},select=micro", "dualfocus"),
        "skip again": run(f"trace={trace},skip_confidence={confident}"),
        "micro again": run(f"trace={trace},select=micro"),
    }
    _, results = host("lmms-eval", runs)
    found = [results[str(number)]["df_pope_random"]["accuracy,none"] for number in range(len(right))]
    assert found == pytest.approx([100 * count / 20 for count in right.values()])
    for name in ("skip", "micro"):
        assert results[f"{name} again"] == results[name]
