"""Peak memory and time of the commands that read traces, on made runs of any size.

python tests/scale.py 10000 100000    # a table, as in docs/robustness.md; 1,000,000 traces take 3 GB of disk
python tests/scale.py 1000000 --only report --folder /tmp/scale

Each command is a process of its own. host: what a process has loaded that runs no command but knows the task,
which is part of every other row but check's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from tabulate import tabulate

from dualfocus_lmms import Answer, Selection, Settings, Trace, Usage
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.trace import claim_folder

TASK, SPLIT = "df_local", "test"
SIZE = (640, 480)
PERIOD = 8 * 97 * 7  # questions that differ; then they come again, with the same answers
COLORS = ("red", "green", "blue", "yellow", "black", "white", "grey", "brown")
THINGS = ("car", "boat", "lamp", "chair", "clock", "plate", "horse", "kite")
MARK = "@@"  # stands for a number
DATE = "20261128_000000"


def question(number: int) -> dict[str, Any]:
    """A line of the file of questions."""
    thing, place = THINGS[number % 8], number // 8 % 97
    return {
        "image": "image.png",
        "question": f"What is the colour of the {thing} that stands nearest to sign number {place}?",
        "answer": COLORS[number % 7],
    }


def trace(number: int, context: str, prompt: str, pixels: str) -> Trace:
    """A trace of 2 KB, as a model of the LLaVA kind leaves it."""
    chance = random.Random(number)
    right = question(number)["answer"]
    texts = [right if chance.random() < share else chance.choice(COLORS) for share in (0.6, 0.7)]
    logs = [tuple(-chance.expovariate(4) for _ in range(3)) for _ in texts]
    usage = Usage(tokens=640, encodes=1, seconds=round(chance.uniform(0.1, 0.3), 6))
    macro, micro = (
        Answer(stage, text, (263, chance.randrange(32000)), log, True, usage)  # type: ignore[arg-type]
        for stage, text, log in zip(("macro", "micro"), texts, logs, strict=True)
    )
    left, top = chance.uniform(0, 0.6), chance.uniform(0, 0.6)
    box = tuple(round(value, 3) for value in (left, top, left + 0.3, top + 0.3))
    drawn = tuple(-chance.expovariate(9) for _ in range(26))
    locate = Answer("locate", str(list(box)), tuple(range(300, 325)), drawn, True, Usage(70, 0, 0.2))
    looked = chance.random() > 0.05
    ppl = {"macro": macro.ppl()} | ({"micro": micro.ppl()} if looked else {})
    chosen = macro if not looked or ppl["macro"] < ppl["micro"] else micro
    return Trace(
        key={"task": TASK, "split": SPLIT, "doc_id": number, "context": context},
        question_id=f"{TASK}/{SPLIT}/{number}",
        prompts={
            "macro": prompt,
            "locate": f"Please give the region that answers: {question(number)['question']}",
            **({"micro": prompt} if looked else {}),
        },
        image_size=SIZE,
        image_hash=pixels,
        selection=Selection(
            chosen.pathway,
            chosen.text,
            "ppl",
            math.log(ppl["micro"] / ppl["macro"]) if looked else None,
        ),
        macro=macro,
        locate=locate,
        micro=micro if looked else None,
        box=box if looked else None,  # type: ignore[arg-type]
        crop=(int(left * 640), int(top * 480), int(left * 640) + 192, int(top * 480) + 144)
        if looked
        else None,
        fallback=None if looked else "no_box",
        ppl=ppl,
        chat_template="auto",
        chat_template_used="family",
    )


# --- a run -------------------------------------------------------------------------------------------------


def requests(count: int) -> Iterator[Any]:
    """The questions as the host asks a model."""
    from dualfocus_lmms.models.host.requests import read_request

    gen = {"max_new_tokens": 128, "do_sample": False, "temperature": 0, "until": []}
    for number in range(count):
        text = _prompt(number)
        asked = SimpleNamespace(args=(text, gen, None, number, TASK, SPLIT), metadata={})
        yield read_request(asked, {TASK: {SPLIT: None}}, chat=False)


def write_run(folder: Path, count: int) -> None:
    """Questions, traces, and what the host leaves: results and logged samples."""
    picture = Image.effect_noise(SIZE, 60).convert("RGB")
    picture.save(folder / "image.png")
    pixels = image_hash(picture)
    run = folder / "run"
    claim_folder(run / "traces", {"pretrained": "made", "select": "ppl", "pathway": "both"}, resume=False)
    kept = [_lines(request, pixels) for request in requests(min(count, PERIOD))]
    with (
        (folder / "questions.jsonl").open("w") as questions,
        (run / "traces" / "rank0.jsonl").open("w") as traces,
        (run / f"{DATE}_samples_{TASK}.jsonl").open("w") as samples,
    ):
        for number in range(count):
            found, row = kept[number % PERIOD]
            questions.write(json.dumps(question(number)) + "\n")
            traces.write(found.replace(MARK, str(number)) + "\n")
            samples.write(row.replace(MARK, str(number)) + "\n")
    right = sum('"accuracy": 100.0' in kept[number % PERIOD][1] for number in range(count))
    about = {"original": count, "effective": count}
    scores = {"alias": TASK, "accuracy,none": 100 * right / count, "accuracy_stderr,none": 0.1}
    results = {
        "results": {TASK: scores},
        "higher_is_better": {TASK: {"accuracy": True}},
        "configs": {TASK: {"task": TASK, "test_split": SPLIT}},
        "n-samples": {TASK: about},
        "config": {"model": "dualfocus", "model_args": "pretrained=made", "resolved_cli_args": {}},
        "date": DATE,
    }
    (run / f"{DATE}_results.json").write_text(json.dumps(results))


def _lines(request: Any, pixels: str) -> tuple[str, str]:
    """The lines of a question's trace and of its logged sample, with MARK for its number."""
    number = request.key["doc_id"]
    answer = question(number)["answer"]
    found = trace(number, request.key["context"], _prompt(number), pixels)
    row = {
        "doc_id": number,
        "input": found.prompts["macro"],
        "target": [answer],
        "filtered_resps": [found.selection.text],
        "accuracy": 100.0 * (found.selection.text == answer),
        "doc_hash": "0" * 64,
    }
    line = found.to_json().replace(f'"{TASK}/{SPLIT}/{number}"', f'"{TASK}/{SPLIT}/{MARK}"')
    numbered = f'"doc_id": {number}'
    return line.replace(numbered, f'"doc_id": {MARK}', 1), json.dumps(row).replace(
        numbered, f'"doc_id": {MARK}', 1
    )


def _prompt(number: int) -> str:
    from dualfocus_lmms.tasks.local.docs import prompt

    return prompt(question(number) | {"options": []})


# --- commands ----------------------------------------------------------------------------------------------


def host(folder: Path, count: int) -> None:
    """The task and its questions."""
    from dualfocus_lmms.tasks.common.score import load_task

    assert len(load_task(TASK).eval_docs_no_media) == count


def end(folder: Path, count: int) -> None:
    """The end of a run: data.json."""
    from dualfocus_lmms.integrity import write_data
    from dualfocus_lmms.tasks.common.score import load_task

    write_data(folder / "run" / "traces", {f"{TASK}/{SPLIT}": load_task(TASK).eval_docs_no_media})


def report(folder: Path, count: int) -> None:
    _command("report", str(folder / "run"), "--out", str(folder / "report"))


def check(folder: Path, count: int) -> None:
    baseline = str(folder / "baseline.json")
    _command("check", str(folder / "run"), "--update", "--baseline", baseline)
    _command("check", str(folder / "run"), "--baseline", baseline)


def calibrate(folder: Path, count: int) -> None:
    _command("calibrate", str(folder / "run"), "--out", str(folder / "rule.json"))


def logistic(folder: Path, count: int) -> None:
    _command("calibrate", str(folder / "run"), "--rule", "logistic", "--out", str(folder / "rule.json"))


def resume(folder: Path, count: int) -> None:
    """A finished run, resumed: what the model class does, without the host and without a model."""
    from dualfocus_lmms.models.host.model import SampleExtras
    from dualfocus_lmms.models.run.runner import Runner, open_traces
    from dualfocus_lmms.testing import FakeBackend

    writer, finished, damaged = open_traces(str(folder / "run" / "traces"), 0, resume=True)
    assert not damaged
    runner = Runner(FakeBackend(lambda stage, conversation: ""), Settings.of(), 8, writer, finished)
    found = runner.run(list(requests(count)))
    assert sum(SampleExtras.of(one).input_tokens > 0 for one in found) == count


def replay(folder: Path, count: int) -> None:
    """A replay, without the host."""
    from dualfocus_lmms import replay

    run = replay.Recorded.read(str(folder / "run" / "traces"))
    settings = replay.ReplayOptions.of({"trace": run.folder, "select": "micro"}).settings(run.settings)
    found = replay.choose_again(replay.find(run, [one.key for one in requests(count)], {}), settings)
    assert sum(one.selection.text != "" for one in found) == count


def replay_in_host(folder: Path, count: int) -> None:
    """A replay in lmms-eval."""
    where = f"trace={folder / 'run' / 'traces'},select=micro"
    _command("eval", "--model", "dualfocus_replay", "--model_args", where, "--tasks", TASK)


COMMANDS: dict[str, Callable[[Path, int], None]] = {
    one.__name__: one
    for one in (host, end, report, check, calibrate, logistic, resume, replay, replay_in_host)
}
LEFT_OUT = ("replay_in_host",)  # unless it is named: the host keeps every request and every reply


def _command(*arguments: str) -> None:
    from dualfocus_lmms.cli import app

    app(list(arguments), standalone_mode=False)


# --- measuring ---------------------------------------------------------------------------------------------


def measured(command: str, folder: Path, count: int) -> tuple[float, float]:
    """(GiB, seconds) of a command: its process at its largest, and its processor time."""
    environment = os.environ | {"DUALFOCUS_LOCAL": str(folder / "questions.jsonl"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(count), "--inside", command, "--folder", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{command} with {count} traces failed: {status}")
    return used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime


@contextmanager
def made(folder: Path | None, count: int) -> Iterator[Path]:
    """A folder with a run of `count` traces; a given one is kept."""
    where = folder or Path(tempfile.mkdtemp(prefix="scale"))
    if not (where / "run").exists():
        where.mkdir(parents=True, exist_ok=True)
        write_run(where, count)
        measured("end", where, count)
    try:
        yield where
    finally:
        if folder is None:
            shutil.rmtree(where)


def main(counts: Sequence[int], only: Sequence[str], folder: Path | None) -> None:
    rows = []
    for count in counts:
        with made(folder, count) as where:
            for command in only:
                start = time.time()
                memory, seconds = measured(command, where, count)
                rows.append([f"{count:,}", command.replace("_", " "), f"{memory:.2f}", f"{seconds:.0f}"])
                print(*rows[-1], f"({time.time() - start:.0f} s by the clock)", file=sys.stderr, flush=True)
    headers = ["traces", "command", "GiB", "s"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--only", action="append", choices=COMMANDS)
    parser.add_argument("--folder", type=Path, help="keep the run here; of a single count")
    parser.add_argument("--inside", choices=COMMANDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        COMMANDS[given.inside](given.folder, given.counts[0])
    else:
        main(given.counts, given.only or [one for one in COMMANDS if one not in LEFT_OUT], given.folder)
