"""The files that the fuzzer damages, small and whole, and how each is read."""

# ruff: noqa: E501 - tables of files

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzz.mutations import bent_json, bent_lines, bent_text, bent_yaml

from dualfocus_lmms import Answer, Selection, Trace, Usage
from dualfocus_lmms.integrity import read_data, write_data
from dualfocus_lmms.trace import TraceWriter, claim_folder, read_traces
from dualfocus_lmms.types import JointScores, Scores

SETTINGS = {"pretrained": "/somewhere/nano", "protocol": "paper", "pathway": "both", "select": "ppl",
            "skip_confidence": 1.0, "count_eos": False, "versions": {"torch": "2"}}  # fmt: skip
DATE = "20261122_000000"
QUESTIONS = [{"image": "a.png", "question": f"Question {number}?", "answer": "yes"} for number in range(4)]
DOCS = [{"question": row["question"], "options": [], "answers": ["yes"]} for row in QUESTIONS]
OPTIONS = {"image": "a.png", "question": "Which?", "answer": "B", "options": ["red", "blue"]}


def put(path: Path, content: Any) -> None:
    """Write text as it is, a list of rows as JSON lines, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def trace(doc_id: int, task: str = "df_local") -> Trace:
    macro = Answer("macro", "yes", (1, 2), (-0.1, -0.2, -0.3), ended=True, usage=Usage(40, 1, 0.25))
    micro = Answer("micro", "no", (2,), (-0.4,), ended=False)
    return Trace(
        key={"task": task, "split": "test", "doc_id": doc_id, "context": "c"},
        question_id=f"{task}/test/{doc_id}",
        prompts={"macro": f"Question {doc_id}?", "locate": "Where?", "micro": "So?"},
        image_size=(60, 40),
        image_hash=f"image {doc_id}",
        selection=Selection("macro", "yes", "ppl", 0.1, (0.1, 0.4)),
        macro=macro,
        locate=replace(macro, pathway="locate", text="[0, 0, 0.5, 0.5]"),
        micro=micro,
        box=(0.0, 0.0, 0.5, 0.5),
        crop=(0, 0, 30, 20),
        ppl={"macro": macro.ppl(), "micro": micro.ppl()},
        judged=JointScores(
            "release", Scores("yes", (-0.5,), (-0.1,)), Scores("no", (), (-0.25,)), seconds=0.5
        ),
        stop=("\n",),
    )


def write_traces(folder: Path, task: str = "df_local") -> None:
    claim_folder(folder, SETTINGS, resume=False)
    writer = TraceWriter(folder)
    writer.write(trace(doc_id, task) for doc_id in range(4))
    writer.close()
    write_data(folder, {f"{task}/test": DOCS})


def write_run(folder: Path) -> None:
    """A run as the host and the model leave it, with its questions."""
    write_traces(folder / "run" / "traces")
    sizes = {"df_local": {"original": 4, "effective": 4}}
    results = {
        "results": {"df_local": {"alias": "df_local", "accuracy,none": 75.0, "accuracy_stderr,none": 25.0}},
        "group_subtasks": {},
        "higher_is_better": {"df_local": {"accuracy": True}},
        "configs": {"df_local": {"task": "df_local", "test_split": "test"}},
        "versions": {"df_local": 1.0},
        "n-samples": sizes,
        "config": {
            "model": "dualfocus",
            "model_args": "pretrained=nano,trace=traces",
            "resolved_cli_args": {},
        },
        "model_name": "nano",
        "date": DATE,
    }
    put(folder / "run" / "model" / f"{DATE}_results.json", results)
    rows = [
        {
            "doc_id": doc_id,
            "input": "Q?",
            "target": "yes",
            "filtered_resps": ["yes"],
            "accuracy": 100.0 * (doc_id > 0),
        }
        for doc_id in range(4)
    ]
    put(folder / "run" / "model" / f"{DATE}_samples_df_local.jsonl", rows)


# --- runs --------------------------------------------------------------------------------------------------


def resume(folder: Path) -> None:
    """Nothing is lost but the damaged lines, and the folder goes on."""
    finished, damaged = read_traces(folder)
    kept = {found.key["doc_id"] for found in finished}
    lines = (folder / "rank0.jsonl").read_bytes().split(b"\n")
    for doc_id in range(4):
        line = trace(doc_id).to_json().encode()
        assert line not in lines or doc_id in kept, f"the trace of {doc_id}"
    assert all(entry.startswith("rank0.jsonl:") for entry in damaged)
    claim_folder(folder, SETTINGS, resume=True)
    TraceWriter(folder).close()
    write_data(folder, {"df_local/test": QUESTIONS})


def finish(folder: Path) -> None:
    """A run ends whatever its data.json holds, and it is whole then."""
    write_data(folder, {"df_local/test": QUESTIONS})
    assert read_data(folder)["df_local/test"]["samples"] == 4


@functools.cache
def whole_baseline() -> Any:
    import tempfile

    from dualfocus_lmms.results.baseline import Baseline
    from dualfocus_lmms.results.runs import load_run

    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name))
        return Baseline.of(load_run(Path(name) / "run"))


def check(folder: Path) -> None:
    from dualfocus_lmms.results.gate import report
    from dualfocus_lmms.results.gate.check import check as gate
    from dualfocus_lmms.results.runs import load_run

    result = gate(load_run(folder / "run"), whole_baseline())
    report.markdown(result)
    report.junit(result)


def baseline(folder: Path) -> None:
    from dualfocus_lmms.results.baseline import Baseline
    from dualfocus_lmms.results.gate import report
    from dualfocus_lmms.results.gate.check import check as gate
    from dualfocus_lmms.results.runs import load_run

    report.markdown(gate(load_run(folder / "run"), Baseline.load(folder / "baseline.json")))


def write_baseline(folder: Path) -> None:
    write_run(folder)
    whole_baseline().save(folder / "baseline.json")


def leaderboard(folder: Path) -> None:
    from dualfocus_lmms.results.leaderboard import records
    from dualfocus_lmms.results.runs import load_run

    records.record(load_run(folder / "run"), "a machine")


def write_record(folder: Path) -> None:
    from dualfocus_lmms.results.leaderboard import records
    from dualfocus_lmms.results.runs import load_run

    write_run(folder)
    (folder / "published").mkdir()
    made = records.add(records.record(load_run(folder / "run"), "a machine"), folder)
    made.rename(made.with_name("record.json"))


def read_records(folder: Path) -> None:
    from dualfocus_lmms.results.leaderboard import table

    for form in ("md", "csv", "html"):
        table.render(table.leaderboard(folder, None), form)


def replay(folder: Path) -> None:
    from dualfocus_lmms.models.host.replay import Recorded, ReplayOptions, choose_again

    run = Recorded.read(str(folder))
    options = ReplayOptions.of({"trace": str(folder), "select": "micro"})
    choose_again(list(run.traces.values()), options.settings(run.settings))


@functools.cache
def _local_task(place: str) -> Any:
    from dualfocus_lmms.tasks.common.score import load_task

    os.environ.setdefault("LMMS_EVAL_DATASETS_CACHE", place)
    return load_task("df_local")


def write_report(folder: Path) -> None:
    write_run(folder)
    put(folder / "questions.jsonl", QUESTIONS)
    os.environ["DUALFOCUS_LOCAL"] = str(folder / "questions.jsonl")
    _local_task(str(folder))


def report(folder: Path) -> None:
    from dualfocus_lmms.results import outcomes
    from dualfocus_lmms.results.report import build

    original = outcomes.load_task
    outcomes.load_task = lambda *_, **__: _local_task("")  # the questions are whole: loading takes a second
    try:
        build.report([folder / "run"], folder / "report", pictures=0)
    finally:
        outcomes.load_task = original
    assert (folder / "report" / "report.html").stat().st_size > 0


# --- questions and answers ---------------------------------------------------------------------------------


def task(name: str, read: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Reads a task's questions as the host gets them, without images, and asks and scores the first."""

    def documents(folder: Path) -> None:
        from importlib import import_module

        from dualfocus_lmms.tasks.common.official import with_fingerprint
        from dualfocus_lmms.tasks.common.sources import build_dataset, usable, without_images

        with without_images():
            docs = with_fingerprint(build_dataset(lambda: read(folder)))
        usable(docs[0])
        getattr(import_module(f"dualfocus_lmms.tasks.{name}.docs"), "prompt", usable)(docs[0])

    return documents


def _module(name: str) -> Any:
    from importlib import import_module

    return import_module(f"dualfocus_lmms.tasks.{name}.docs")


def write_tasks(folder: Path) -> None:
    """Official files of every task, two or three questions each."""
    data = folder / "data"
    put(folder / "questions.jsonl", [*QUESTIONS, OPTIONS])
    rows = [{"question_id": n, "image": "a.png", "text": "Is there a dog?", "label": "yes"} for n in range(3)]
    put(data / "pope" / "coco_pope_random.json", rows)
    rows = [
        {"image": "a/b.jpg", "text": "Which cup?\n(A) red\n(B) blue\nAnswer.", "category": "direct_attributes",
         "question_id": str(n), "label": "A"} for n in range(3)
    ]  # fmt: skip
    put(data / "vstar" / "test_questions.jsonl", rows)
    types = {"structural": "query", "semantic": "attr", "detailed": "weather"}
    gqa = {
        str(n): {"imageId": "n1", "question": "What color is it?", "answer": ("red", "blue", "pink")[n], "types": types,
                 "groups": {"global": "color"}, "semantic": [{"operation": "select", "dependencies": [],
                 "argument": "bus (1)"}]} for n in range(3)
    }  # fmt: skip
    put(data / "gqa" / "testdev_balanced_questions.json", gqa)
    rows = [
        {"question_id": str(n), "image": "n1.jpg", "question": "What color is it?\nA. blue\nB. red\nC. pink"}
        for n in range(3)
    ]
    put(data / "gqa" / "llava_gqa_testdev_balanced_mcq.jsonl", rows)
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    seed = [
        {"question_id": str(n), "question_type_id": 5, "data_type": "image", "data_id": "100", "question": "How many?",
         "answer": "A", **choices} for n in range(3)
    ]  # fmt: skip
    put(data / "seed" / "SEED-Bench.json", {"questions": seed, "question_type": {"Scene Understanding": 1}})
    text = [
        {"question_id": n, "image_id": "a", "question": "what is it?", "answers": ["x"] * 10}
        for n in range(3)
    ]
    put(data / "textvqa" / "TextVQA_0.5.1_val.json", {"data": text})
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image"]
    cells = [
        [str(n), "Which?", "", "red", "blue", "", "", "A", "x", "logic_reasoning", "0"] for n in range(3)
    ]
    put(
        data / "mmbench" / "mmbench_dev_20230712.tsv",
        "".join("\t".join(row) + "\n" for row in [names, *cells]),
    )
    names = ["index", "question", "answer", "category", *"ABCD", "cycle_category", "image"]
    cells = [[str(n), "Which?", "A", "single", "1", "2", "3", "4", str(n % 2), "QUJD" * 9] for n in range(4)]
    put(data / "hrbench" / "hr_bench_4k.tsv", "".join("\t".join(row) + "\n" for row in [names, *cells]))


def write_answers(folder: Path) -> None:
    from openpyxl import Workbook

    put(folder / "answers.jsonl", [{"question_id": n, "text": "yes"} for n in range(3)])
    book = Workbook()
    book.active.append(["index", "question", "A", "B", "answer", "prediction"])
    for n in range(3):
        book.active.append([n, "Which?", "red", "blue", "A", "B"])
    book.save(folder / "answers.xlsx")


def sheet(folder: Path) -> None:
    from dualfocus_lmms.tasks.common.score import holds_truth, read_answers

    file = folder / "answers.xlsx"
    read_answers(file)
    if holds_truth(file):
        _module("mmbench").read_submission(file)


def answers(folder: Path) -> None:
    from dualfocus_lmms.tasks.common.score import read_answers

    read_answers(folder / "answers.jsonl")


def mcq(folder: Path) -> None:
    from dualfocus_lmms.tasks.gqa.mcq import build

    build(folder / "data" / "gqa" / "testdev_balanced_questions.json", folder / "mcq.jsonl", progress=False)


def write_mcq(folder: Path) -> None:
    write_tasks(folder)
    mcq(folder)


# --- training ----------------------------------------------------------------------------------------------


RECIPE = {
    "model": "dualfocus-nano", "output": "out", "data": [{"path": "samples", "kind": "samples", "share": 1.0}],
    "train": ["projector", "language_model"], "batch_size": 8, "micro_batch_size": 4, "steps": 10,
    "evaluation": {"path": "samples", "every": 5}, "training": {"learning_rate": 1e-4, "warmup_steps": 2},
}  # fmt: skip


def write_recipe(folder: Path) -> None:
    put(
        folder / "recipe.yaml",
        json.dumps(RECIPE, indent=1).replace('"path": "samples"', f'"path": {json.dumps(str(folder))}'),
    )


def recipe(folder: Path) -> None:
    from dualfocus_lmms.train.trainer.recipe import load_recipe

    load_recipe(str(folder / "recipe.yaml"))


def write_settings(folder: Path) -> None:
    from dualfocus_lmms.train.vg.config import DEFAULTS

    put(folder / "vg.yaml", DEFAULTS.read_text(encoding="utf-8"))


def settings(folder: Path) -> None:
    from dualfocus_lmms.train.vg.config import VGConfig

    VGConfig.load(folder / "vg.yaml")


def write_llava(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    records = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(3)]
    put(folder / "llava.json", json.dumps(records))
    put(folder / "a.png", "an image, opened later")


def llava(folder: Path) -> None:
    from dualfocus_lmms.train.trainer.collate import llava_source

    llava_source(str(folder / "llava.json"), str(folder))


def write_genome(folder: Path) -> None:
    thing = {"object_id": 1, "names": ["dog"], "synsets": ["dog.n.01"], "x": 10, "y": 10, "w": 30, "h": 30}
    images, ids = folder / "vg", range(1, 4)
    put(
        images / "image_data.json",
        json.dumps([{"image_id": n, "width": 99, "height": 99, "url": "x"} for n in ids]),
    )
    put(images / "objects.json", json.dumps([{"image_id": n, "objects": [thing]} for n in ids]))
    qas = [
        {"qa_id": 1, "image_id": 1, "question": "What color is the dog?", "answer": "Brown.", "q_objects": []}
    ]
    put(images / "question_answers.json", json.dumps([{"id": n, "qas": qas} for n in ids]))
    put(images / "attributes.json", json.dumps([{"image_id": n, "attributes": [thing]} for n in ids]))
    region = {"region_id": 7, "x": 5, "y": 5, "width": 40, "height": 40, "phrase": "a dog"}
    put(images / "region_descriptions.json", json.dumps([{"id": n, "regions": [region]} for n in ids]))
    put(images / "qa_to_region_mapping.json", {"1": 7})


def genome(folder: Path) -> None:
    from dualfocus_lmms.train.vg.visual_genome import build

    build(folder / "vg", folder / "out", annotations_only=True, progress=False)


def write_build(folder: Path) -> None:
    write_genome(folder)
    genome(folder)


def write_samples(folder: Path) -> None:
    from dualfocus_lmms import Box
    from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample
    from dualfocus_lmms.train.data.samples import write_samples as write

    image = SampleImage(b"bytes", "a.jpg")
    rows = [
        TrainingSample(str(n), image, "What?", "A dog.", Box(0, 0, 0.5, 0.5), image, "vg:1") for n in range(3)
    ]
    write(rows, folder)


def samples(folder: Path) -> None:
    from dualfocus_lmms.train.data.samples import read_samples

    list(read_samples(folder))


# --- arguments ---------------------------------------------------------------------------------------------

ARGUMENTS = {
    "dualfocus": "pretrained=nano,protocol=paper,select=ppl,skip_confidence=0.9,box_margin=3,count_eos=True,"
    "batch_size=auto,max_batch_size=8,box_shift=2,grounding=model,dtype=float32,device=cpu,trace=t,resume=True",
    "dualfocus_server": "base_url=http://localhost:1/v1,model=m,family=llava,concurrency=4,retries=2,timeout=3.5,"
    "guided_box=True,protocol=paper,skip_confidence=0.5",
    "dualfocus_replay": "trace=t,select=micro,skip_confidence=0.7,count_eos=False,second=u",
}


def arguments(folder: Path) -> None:
    from dualfocus_lmms.models.host.options import ModelOptions, parse_model_args
    from dualfocus_lmms.models.host.replay import ReplayOptions
    from dualfocus_lmms.models.server.host import ServerOptions

    (file,) = folder.iterdir()
    given = parse_model_args(file.read_bytes().decode("utf-8", "replace"))
    if file.name == "dualfocus_replay":
        ReplayOptions.of(given).settings(SETTINGS)
    else:
        kind = ModelOptions if file.name == "dualfocus" else ServerOptions
        kind.of(given).identity()


def readers(make: Callable[..., Any]) -> list[Any]:
    """All of them; weight is about what one reading costs."""
    results, rows = f"run/model/{DATE}_results.json", f"run/model/{DATE}_samples_df_local.jsonl"
    traces, data = "run/traces/rank0.jsonl", "run/traces/data.json"
    gqa = "data/gqa/testdev_balanced_questions.json"
    found = [
        make("traces, resumed", "rank0.jsonl", write_traces, resume, bent_lines, 4),
        make("run.json, resumed", "run.json", write_traces, resume, bent_json),
        make("data.json, at a run's end", "data.json", write_traces, finish, bent_json),
        make("traces, replayed", "rank0.jsonl", write_traces, replay, bent_lines),
        make("run.json, replayed", "run.json", write_traces, replay, bent_json),
        *(
            make(f"{name}, checked", file, write_run, check, mutation)
            for name, file, mutation in (
                ("traces", traces, bent_lines), ("data.json", data, bent_json), ("results", results, bent_json),
                ("logged samples", rows, bent_lines),
            )
        ),
        make("baseline", "baseline.json", write_baseline, baseline, bent_json),
        make("results, recorded", results, write_run, leaderboard, bent_json),
        make("record", "runs/record.json", write_record, read_records, bent_json),
        *(
            make(f"{name}, reported", file, write_report, report, mutation, 0.02)
            for name, file, mutation in (("traces", traces, bent_lines), ("results", results, bent_json))
        ),
        make("answers", "answers.jsonl", write_answers, answers, bent_lines),
        make("Excel file of answers", "answers.xlsx", write_answers, sheet, None, 0.5),
        *(
            make(f"questions: {name}", file, write_tasks, task(module, read), mutation, 0.5)
            for name, file, module, read, mutation in (
                ("df_local", "questions.jsonl", "local",
                 lambda folder: _module("local").read_questions(folder / "questions.jsonl"), bent_lines),
                ("df_pope", "data/pope/coco_pope_random.json", "pope",
                 lambda folder: _module("pope").read_split(folder / "data", "random"), bent_lines),
                ("df_vstar", "data/vstar/test_questions.jsonl", "vstar", _official("vstar"), bent_lines),
                ("df_gqa", gqa, "gqa", _official("gqa"), bent_json),
                ("df_gqa_star", "data/gqa/llava_gqa_testdev_balanced_mcq.jsonl", "gqa_star", _official("gqa_star"),
                 bent_lines),
                ("df_gqa_star's answers", gqa, "gqa_star", _official("gqa_star"), bent_json),
                ("df_seed_image", "data/seed/SEED-Bench.json", "seed", _official("seed"), bent_json),
                ("df_textvqa_val", "data/textvqa/TextVQA_0.5.1_val.json", "textvqa", _official("textvqa"), bent_json),
                ("df_mmbench", "data/mmbench/mmbench_dev_20230712.tsv", "mmbench", _official("mmbench"), None),
                ("df_hrbench", "data/hrbench/hr_bench_4k.tsv", "hrbench",
                 lambda folder: _module("hrbench").read_questions(folder / "data", "hrbench_4k"), None),
            )
        ),
        make("GQA's questions, for distractors", gqa, write_tasks, mcq, bent_json),
        make("distractors, continued", "mcq.jsonl", write_mcq, mcq, bent_lines),
        make("recipe", "recipe.yaml", write_recipe, recipe, bent_yaml, 0.5),
        make("settings of data vg", "vg.yaml", write_settings, settings, bent_yaml, 0.2),
        make("LLaVA's JSON", "llava.json", write_llava, llava, bent_json),
        *(
            make(f"Visual Genome: {name}", f"vg/{name}.json", write_genome, genome, bent_json, 0.3)
            for name in ("image_data", "objects", "question_answers", "attributes", "region_descriptions",
                         "qa_to_region_mapping")
        ),
        make("data vg, continued: build.json", "out/build.json", write_build, genome, bent_json, 0.3),
        make("data vg, continued: a part", "out/parts/part-00000.json", write_build, genome, bent_json, 0.3),
        make("samples in Parquet", "samples-00000.parquet", write_samples, samples, None),
        *(
            make(f"model arguments of {name}", name, functools.partial(_write_arguments, {name: text}), arguments,
                   bent_text, 1.0, True)
            for name, text in ARGUMENTS.items()
        ),
    ]  # fmt: skip
    return found


def _official(name: str) -> Callable[[Path], Any]:
    return lambda folder: _module(name).read_questions(folder / "data")


def _write_arguments(given: Mapping[str, str], folder: Path) -> None:
    for name, text in given.items():
        put(folder / name, text)
