"""The tasks with options through the host: their three prompts, a run of all of them, and no network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dualfocus_lmms import UserError, read_traces
from dualfocus_lmms.protocol import PROTOCOLS
from dualfocus_lmms.tasks.common.letters import read_letter

Load = Callable[[str], dict[Any, Any]]
TASKS = ("df_gqa_star", "df_seed_image", "df_vstar", "df_hrbench_4k", "df_hrbench_8k")
HUBS = {
    "df_gqa_star": "yhcao/GQA-MCQ",
    "df_seed_image": "lmms-lab-encoder/SEED-Bench",
    "df_vstar": "lmms-lab-encoder/vstar-bench",
    "df_hrbench_4k": "DreamMr/HR-Bench",
}


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("name", TASKS[:4])
def test_golden_prompts(
    load_task: Load,
    choice_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    name: str,
    protocol: str,
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    golden(f"{name}_{protocol}.txt", first_prompts(load_task(name)[name], protocol))


def test_a_run_of_all_scores_the_answers_it_traces(
    tiny_checkpoint: Path,
    run_command: Callable[..., Any],
    load_task: Load,
    choice_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    environment = {"LMMS_EVAL_DATASETS_CACHE": str(choice_folder / "cache"), "ACCELERATE_USE_CPU": "true"}
    out, trace = choice_folder / "out", choice_folder / "trace"
    done = run_command(
        "dualfocus", "eval", "--tasks", "df_gqa_star,df_seed_image,df_zoom",
        "--output_path", str(out), "--log_samples",
        "--model_args", f"pretrained={tiny_checkpoint},batch_size=4,trace={trace}",
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.rglob("*_results.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    traces, damaged = read_traces(trace)
    assert damaged == []
    assert len(traces) == 2 + 2 + 2 + 4 + 4
    for name in TASKS:
        task = load_task(name)[name]
        docs = list(task.test_docs())
        replies = {one.key["doc_id"]: one.selection.text for one in traces if one.key["task"] == name}
        assert sorted(replies) == list(range(len(docs)))
        correct = [_is_correct(doc, replies[number]) for number, doc in enumerate(docs)]
        assert results[name]["accuracy,none"] == pytest.approx(100 * sum(correct) / len(correct))
        assert results[name]["questions_without_image,none"] == (0 if "hrbench" in name else 1)
        asked = [(one.key["doc_id"], one.prompts["macro"]) for one in traces if one.key["task"] == name]
        assert [prompt for number, prompt in asked if prompt != task.doc_to_text(docs[number])] == []
    both = [results[f"df_hrbench_{size}"]["single,none"] for size in ("4k", "8k")]
    assert results["df_hrbench"]["single,none"] == pytest.approx(sum(both) / 2)
    assert "visual_reasoning,none" not in results["df_seed_image"]  # no question, no figure
    samples = [path.stat().st_size for path in out.rglob("*samples_df_hrbench_4k.jsonl")]
    assert samples
    assert max(samples) < 40_000  # four questions without their images


def _is_correct(doc: dict[str, Any], reply: str) -> bool:
    letter = read_letter(reply, doc["options"])
    if doc["answer"] in ("A", "B", "C", "D"):
        return letter == doc["answer"]
    text = reply if letter is None else doc["options"]["ABCD".index(letter)]
    return text.lower().rstrip(".") == doc["answer"]


@pytest.mark.parametrize("name", HUBS)
def test_without_files_and_network_the_error_names_the_files_and_their_folder(
    load_task: Load, host_tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import datasets
    import huggingface_hub
    from lmms_eval.api.task import ConfigurableTask
    from tenacity import RetryError

    from dualfocus_lmms.models.host.evaluate import _user_error

    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(ConfigurableTask.download.retry, "sleep", lambda _: None)
    with pytest.raises((ConnectionError, RetryError)) as failure:
        load_task(name)
    told = _user_error(failure.value)
    assert isinstance(told, UserError)
    assert f"https://huggingface.co/datasets/{HUBS[name]}" in str(told)
    assert "DUALFOCUS_DATA" in str(told)
    assert "docs/benchmarks.md" in str(told)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("df_gqa_star", "gqa/llava_gqa_testdev_balanced_mcq.jsonl"),
        ("df_gqa_star", "gqa/images"),
        ("df_seed_image", "seed/SEED-Bench.json"),
        ("df_seed_image", "seed/SEED-Bench-image"),
        ("df_vstar", "vstar/test_questions.jsonl"),
        ("df_hrbench_4k", "hrbench/hr_bench_4k.tsv"),
        ("df_hrbench_8k", "hrbench/hr_bench_8k.tsv"),
    ],
)
def test_a_missing_file_raises(
    load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, lost: str
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    (choice_folder / lost).rename(choice_folder / "elsewhere")
    with pytest.raises(UserError, match=lost):
        load_task(name)


def test_answers_are_scored_without_any_image(
    choice_folder: Path, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualfocus_lmms.tasks.common.score import score

    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    for folder in (
        "gqa/images",
        "seed/SEED-Bench-image",
        "vstar/direct_attributes",
        "vstar/relative_position",
    ):
        shutil.rmtree(choice_folder / folder)
    answers = {
        "df_gqa_star": ({"1": "B", "2": "No.", "3": "man"}, 200 / 3),
        "df_seed_image": ({"0": "One", "1": "The answer is C.", "3": "A"}, 200 / 3),
        "df_vstar": ({"0": "red", "1": "left"}, 100 / 3),
        "df_hrbench_4k": ({"0": "A", "1": "left", "2": "1", "3": "E"}, 50.0),
    }
    for name, (replies, expected) in answers.items():
        rows = [{"question_id": key, "text": reply} for key, reply in replies.items()]
        scores = score(name, write_lines(choice_folder / "answers.jsonl", rows))
        found = {metric.name: metric.value for metric in scores.metrics}
        assert found["accuracy"] == pytest.approx(expected), name
        assert found["questions_without_image"] == 0


@pytest.mark.parametrize("name", TASKS[:3])
def test_no_image_at_all_raises(
    load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    folders = {"df_gqa_star": ["gqa/images"], "df_seed_image": ["seed/SEED-Bench-image"]}
    for folder in folders.get(name, ["vstar/direct_attributes", "vstar/relative_position"]):
        for image in (choice_folder / folder).iterdir():
            image.unlink()
    with pytest.raises(UserError, match=f"{name}.* 3 "):
        load_task(name)
