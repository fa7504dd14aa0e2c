"""Traces: everything one sample did, one line of JSON each, safe against a kill at any moment.

A trace folder holds `run.json` (the settings that decide answers), one `rank<N>.jsonl` per process, and
once a run has ended `data.json` (fingerprints of the data, see `integrity`).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.json_text import STRICT, Kind
from dualfocus_lmms.text_output import excerpt
from dualfocus_lmms.types import Answer, JointScores, Selection, TemplateChoice

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSION: Literal[1] = 1
# Settings that older runs did not write, with the value that stands for what they did.
_ADDED = {"crop_pixels": "original", "regions": "union", "looks": 1}
# Fields of a trace that only a run with other settings than the default ones has.
_SELDOM = ("boxes", "crops", "crop_sizes", "looks", "attention")


@dataclass(frozen=True, slots=True)
class Look:
    """One of several looks: what was located in the image, or in the crop of the look before, and what was
    answered.

    box and crop as in `Trace`, of the original image. micro: None where nothing was located, or just the crop
    of the look before.
    """

    locate: Answer | None
    box: tuple[float, float, float, float] | None
    crop: tuple[int, int, int, int] | None
    crop_size: tuple[int, int] | None
    micro: Answer | None

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True, slots=True, repr=False)
class Trace:
    """What one sample did.

    key: how a run finds it (task, split, doc_id). prompts: the text of each stage that ran. image_size:
    (width, height) in pixels. image_hash: of the decoded pixels. box: the located region as fractions of the
    original image, before any clipping. crop: left, top, right, bottom in pixels. input_size and crop_size:
    (width, height) in pixels of the image and of the crop as the model received them, where their number of
    tokens follows from that; None where its encoder or its tiles have one size. fallback: why there is no
    micro answer ("no_box", "empty_region", "skip_confidence", "pathway_macro"), else None.

    grounding: where box comes from. When that is not the model, there is no locate answer, and given_reply is
    the text that stood in its place. shifted_box: box moved by box_shift pixels, which is what was cropped;
    None where nothing was moved.

    ppl: the perplexities of the answers under their own pathways. judged: what decided where the rule
    compares them under one context, else None. stop: the strings at which an answer was cut.

    chat_template, chat_template_used: whose template was requested and whose was used, see `TemplateChoice`;
    None in traces that are older than the choice.

    boxes, crops, crop_sizes: with regions=separate, each region in reading order; None else. box is then the
    one around all of them, and crop and crop_size are None where several were shown.

    looks: every look, the first included, where there was more than one; None else. locate, box, crop and
    micro are then those of the look whose answer has the lowest perplexity.

    attention: with keep_maps, the attention from which grounding=attention or attention_plain chose box; None
    else, and where no region was needed.
    """

    key: dict[str, Any]
    question_id: str
    prompts: dict[str, str]
    image_size: tuple[int, int]
    image_hash: str
    selection: Selection
    macro: Answer
    locate: Answer | None = None
    micro: Answer | None = None
    box: tuple[float, float, float, float] | None = None
    crop: tuple[int, int, int, int] | None = None
    fallback: str | None = None
    ppl: dict[str, float] = field(default_factory=dict)
    grounding: str = "model"
    given_reply: str | None = None
    box_shift: int = 0
    shifted_box: tuple[float, float, float, float] | None = None
    judged: JointScores | None = None
    stop: tuple[str, ...] = ()
    chat_template: str | None = None
    chat_template_used: str | None = None
    input_size: tuple[int, int] | None = None
    crop_size: tuple[int, int] | None = None
    version: Literal[1] = VERSION
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    crops: tuple[tuple[int, int, int, int], ...] | None = None
    crop_sizes: tuple[tuple[int, int], ...] | None = None
    looks: tuple[Look, ...] | None = None
    attention: AttentionMap | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def to_json(self) -> str:
        """One line of JSON without a line break."""
        values = asdict(self)
        for name in _SELDOM:
            if values[name] is None:
                del values[name]
        for look in (values, *values.get("looks", ())):
            for stage in ("macro", "locate", "micro"):
                if (answer := look.get(stage)) is not None and answer["lengths"] is None:
                    del answer["lengths"]
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> Trace:
        """The trace that `to_json` wrote. ValueError when the line is damaged or of another version."""
        return _TRACE.parse(line)

    def __repr__(self) -> str:
        chosen = self.selection
        return f"Trace({self.question_id!r}: {excerpt(chosen.text, 60)!r}, {chosen.pathway})"

    def _repr_html_(self) -> str:
        """The trace in a notebook: `notebook.html`."""
        from dualfocus_lmms.notebook import html

        return html(self)

    @property
    def shown(self) -> tuple[tuple[int, int, int, int], ...]:
        """The crops of the second look, left, top, right, bottom in pixels; none without one."""
        return self.crops or (() if self.crop is None else (self.crop,))

    @property
    def seconds(self) -> float:
        """What all answers took together."""
        return sum(answer.usage.seconds for answer in self.answers)

    @property
    def answers(self) -> list[Answer]:
        """All answers in order, those of every look."""
        looks = self.looks or (self,)
        answers = [self.macro, *(answer for look in looks for answer in (look.locate, look.micro))]
        return [answer for answer in answers if answer is not None]


_TRACE: Kind[Trace] = Kind(Trace)
_SETTINGS: Kind[dict[str, Any]] = Kind(dict[str, Any])


def trace_key(key: Mapping[str, Any]) -> str:
    """A trace's key as a string that sorts and compares."""
    return json.dumps(dict(key), sort_keys=True, default=str)


def sample_of(trace: Trace) -> tuple[str, str, int]:
    """(task, split, doc_id): which sample of a run a trace is of. ValueError where its key names none."""
    task, split, doc_id = (trace.key.get(name) for name in ("task", "split", "doc_id"))
    named = isinstance(task, str) and isinstance(split, str)
    if not named or type(doc_id) is not int or not 0 <= doc_id < 2**63:
        raise ValueError(f"key: task, split and doc_id name no sample, got {trace.key!r:.80}")
    return str(task), str(split), doc_id


class TraceWriter:
    """Appends traces to a folder, each one handed to the operating system before `write` returns.

    UserError when another process writes to the same file.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        path = Path(folder) / f"rank{rank}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
        except OSError as error:
            raise UserError(
                f"Cannot write traces to {path}: {error}. Give a folder that is writable."
            ) from error
        _hold(self._file)
        if self._file.tell() > 0:  # a kill can leave half a line: close it, so that the next one stands alone
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
        self._end = self._file.tell()  # nobody else writes to it

    def write(self, traces: Iterable[Trace]) -> list[int]:
        """The byte that each trace begins at, for `read`. UserError where there is no room for them."""
        starts = []
        try:
            for trace in traces:
                line = trace.to_json().encode("utf-8", "backslashreplace") + b"\n"
                self._file.write(line)
                starts.append(self._end)
                self._end += len(line)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"Cannot write traces to {self._file.name}: {error}. What was answered before is in it: make "
                "room, then give resume=True."
            ) from error

        return starts

    def read(self, start: int) -> Trace:
        """What was written at a byte. Another open file would end the lock of this one when it is closed."""
        self._file.seek(start)
        return Trace.from_json(self._file.readline())

    @property
    def folder(self) -> Path:
        """Where it writes to."""
        return Path(self._file.name).parent

    def close(self) -> None:
        self._file.close()


def _hold(file: BinaryIO) -> None:
    """Let no other process `_hold` a file while this one has it open. A kill frees it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"Another process writes traces to {file.name}: wait for its end, or give another folder."
            ) from error
        # Not every file system has locks: without them nothing is held.


def claim_folder(folder: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Make `folder` the trace folder of a run with `settings`; call it from one process only.

    A folder with answers is taken again only with `resume`, and only by the same settings: UserError names
    those that differ. One without answers, as a run leaves it that failed before its first, is anybody's.
    """
    folder = Path(folder)
    run = folder / "run.json"
    try:
        if _answered(folder):
            _check_same_run(folder, run, settings, resume)
            return
        for path in folder.glob("rank*.jsonl"):
            with path.open("ab") as file:
                _hold(file)  # of a run at work that has no answer yet
        folder.mkdir(parents=True, exist_ok=True)
        write_json(run, settings)
    except OSError as error:
        raise UserError(f"Cannot make the trace folder {folder}: {error}. Give another folder.") from error


def _check_same_run(folder: Path, run: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """UserError where a folder with answers cannot be continued."""
    if not resume:
        raise UserError(
            f"The trace folder {folder} already holds a run. Add resume=True to continue it, or give another "
            "folder."
        )
    if not run.exists():
        raise UserError(
            f"{folder} holds traces but no run.json: it cannot be resumed safely. Give another folder."
        )
    _compare(folder, read_settings(folder), json.loads(json.dumps(dict(settings))))


def record_template(folder: str | Path, template: TemplateChoice) -> None:
    """Write to `run.json` whose chat template a run uses, which is known only once the model is loaded.

    Call it from one process only. UserError where its answers were given under another one.
    """
    folder, settings = Path(folder), read_settings(folder)
    used = settings.get("chat_template_used")
    if used is None and template.replaced and _answered(folder):
        raise UserError(
            f"The run in {folder} was begun before chat_template could be chosen, and does not say whose it "
            f"has; chat_template={template.asked} means the family's now. Give chat_template=checkpoint (what"
            " was used where chat_template.jinja or tokenizer_config.json has one), chat_template=family, or "
            "another folder."
        )
    now = {"chat_template": template.asked} | settings | {"chat_template_used": template.used}
    if used is None:
        write_json(folder / "run.json", now)
    else:
        _compare(folder, settings, now)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object of a trace folder (`run.json`, `data.json`), complete and on the disk at the return."""
    atomic_write(path, json.dumps(dict(values), indent=2, sort_keys=True) + "\n", sync=True)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The settings of the run that wrote a trace folder."""
    return _SETTINGS.read(
        Path(folder) / "run.json",
        "It holds the settings of the answers in the folder: restore it, or give another folder.",
    )


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    added = _ADDED | {"chat_template": now.get("chat_template")}  # an older run does not say which it had
    before = {name: value for name, value in added.items() if name in now} | dict(before)
    known = before.keys() - {"chat_template_used"} | now.keys()  # `record_template` compares that one
    differing = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(known)
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise UserError(
            f"The run in {folder} cannot be resumed with other settings: {'; '.join(differing)}. "
            "Use the same settings, or give another folder."
        )


def _answered(folder: Path) -> bool:
    """Whether a trace folder holds any answer."""
    return any(path.stat().st_size for path in folder.glob("rank*.jsonl"))
