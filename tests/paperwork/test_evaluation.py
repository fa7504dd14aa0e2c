"""Published checkpoints, real but for their weights, through lmms-eval: all of them in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paperwork.build import GENERIC, SIZES, Built
from PIL import Image

from dualfocus_lmms import Question, Settings, StopCriteria, answer_batch, read_traces
from dualfocus_lmms.models.engines.registry import make_engine

pytestmark = pytest.mark.seconds(40)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, noise: Callable[[int, int], Image.Image]) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number, size in enumerate([(300, 200), (64, 90)]):
        noise(*size).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": f"What is in image {number}?", "answer": "red"})
    (folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "mine.jsonl"


def test_an_evaluation_has_the_answers_of_the_plain_model(
    built: Callable[[str], Built], questions: Path, run_command: Any, tmp_path: Path
):
    models = {}
    for name in SIZES:
        family = ",family=generic" if name in GENERIC else ""
        models[name] = f"pretrained={built(name).folder},trace={tmp_path / name},dtype=float32{family}"
    runs = [
        {
            "model": "dualfocus",
            "model_args": f"{given},grounding=center,batch_size=2",
            "tasks": "df_local",
            "gen_kwargs": "max_new_tokens=4",
            "output_path": str(tmp_path / "output" / name),
        }
        for name, given in models.items()
    ]
    config = tmp_path / "runs.json"  # JSON is YAML
    config.write_text(json.dumps(runs))
    environment = {
        "DUALFOCUS_LOCAL": str(questions), "LMMS_EVAL_DATASETS_CACHE": str(tmp_path / "cache"),
        "ACCELERATE_USE_CPU": "true", "DUALFOCUS_ONLY_OUR_TASKS": "1",
    }  # fmt: skip
    done = run_command("dualfocus", "eval", "--config", str(config), env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in SIZES:
        traces, damaged = read_traces(tmp_path / name)
        assert (len(traces), damaged) == (2, [])
        asked, limits = [], []
        for number, trace in enumerate(traces):
            image = Image.open(questions.parent / f"{number}.png").convert("RGB")
            asked.append(Question(str(number), image, f"What is in image {number}?", trace.prompts["macro"]))
            limits.append(StopCriteria(4, trace.stop))
        naive = make_engine("naive", built(name).checkpoint)
        expected = answer_batch(naive, asked, limits, Settings.of(grounding="center"))
        for trace, plain in zip(traces, expected, strict=True):
            assert [answer.tokens for answer in trace.answers] == [answer.tokens for answer in plain.answers]
            assert trace.ppl == pytest.approx(plain.ppl, rel=1e-3)
            assert trace.chat_template_used == plain.chat_template_used
        (results,) = (tmp_path / "output" / name).rglob("*_results.json")
        assert json.loads(results.read_text())["results"]["df_local"]["accuracy,none"] == 0
