"""What the gate found, as Markdown for people and as JUnit XML for machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from xml.etree import ElementTree

from tabulate import tabulate

from dualfocus_lmms.results.gate.check import Check, Comparison, Flip, TaskCheck
from dualfocus_lmms.text_output import markdown as plain
from dualfocus_lmms.text_output import terminal

_CELL = 80  # characters of a text in a table


def markdown(check: Check) -> str:
    """The verdict, every comparison, and the answers that changed."""
    failures = check.all_failures
    verdict = f"failed, {len(failures)} times" if failures else "passed"
    blocks = [f"## {plain(check.run)} against {plain(check.baseline)}: {verdict}"]
    if failures:
        blocks.append("\n".join(f"- {plain(failure)}" for failure in failures))
    blocks.append(_comparisons(check.tasks, bound=check.max_drop is not None))
    blocks.append(_rule(check))
    if check.new:
        blocks.append(f"Not in the baseline: {plain(', '.join(check.new))}.")
    blocks += [_flips(task) for task in check.tasks if task.flips]
    return "\n\n".join(blocks) + "\n"


def _rule(check: Check) -> str:
    """What decides, in sentences: the tests, the bound, and what neither of them judges."""
    items = [(task.task, item) for task in check.tasks for item in task.comparisons]
    tests = sum(item.p is not None for _, item in items)
    untested = [f"{task} {item.metric}" for task, item in items if item.test == "none" and not item.failure]
    sentences = []
    if check.alpha:
        sentences.append(
            f"A drop fails when its corrected p is below {check.alpha:g}: p is two-sided, and corrected for "
            f"the number of tests (Holm), here {tests}. At most {check.alpha:.3g} of all checks of what is "
            "as good as before fail."
        )
    if check.max_drop is not None:
        sentences.append(f"A drop of more than {check.max_drop:g} fails (--max-drop), significant or not.")
    elif untested:
        sentences.append(
            f"Not judged, for want of a standard error: {plain(', '.join(untested))}. --max-drop would."
        )
    return " ".join(sentences)


def _comparisons(tasks: Sequence[TaskCheck], bound: bool) -> str:
    rows = [
        [
            plain(task.task),
            plain(item.metric),
            _number(item.before),
            _number(item.now),
            _number(item.gain, "+"),
            _p(item.p),
            _p(item.corrected),
            item.test,
            _verdict(item, bound),
        ]
        for task in tasks
        for item in task.comparisons
    ]
    headers = ["task", "metric", "before", "now", "better by", "p", "corrected", "test", ""]
    aligned = ("left", "left", "right", "right", "right", "right", "right", "left", "left")
    if not rows:
        return "Nothing was compared."
    return tabulate(rows, headers, tablefmt="github", colalign=aligned, disable_numparse=True)


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _verdict(item: Comparison, bound: bool) -> str:
    """What became of a metric; one that fails, with what decided."""
    if item.decided is not None:
        by = {"p": "significant", "bound": "above --max-drop", "gone": "gone"}[item.decided]
        return f"**fails**: {by}"
    return "ok" if bound or item.p is not None else "not judged"


def _number(value: float, sign: str = "") -> str:
    return "-" if isnan(value) else f"{value:{sign}.2f}"


def _flips(task: TaskCheck) -> str:
    """The first answers that score less, then those that score more."""
    rows = [
        [
            str(flip.doc_id),
            f"{flip.before:g}",
            f"{flip.now:g}",
            plain(flip.question, _CELL),
            plain(flip.target, _CELL),
            plain(flip.answer, _CELL),
        ]
        for flip in sorted(task.flips, key=_lost_first)
    ]
    headers = ["sample", "before", "now", "question", "right", "answer now"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return f"### {plain(task.task)}: {task.lost} answers score less, {task.gained} more\n\n{table}"


def _lost_first(flip: Flip) -> tuple[bool, int]:
    return flip.now > flip.before, flip.doc_id


def junit(check: Check) -> str:
    """A suite for the run, and one for each task: a case for the task as a whole, one for each metric."""
    root = ElementTree.Element("testsuites", name="dualfocus check")
    run = [("complete", list(check.failures))]
    suites = [_suite(root, "run", run)]
    suites += [_suite(root, task.task, list(_cases(task))) for task in check.tasks]
    for name in ("tests", "failures"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in suites)))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return terminal(text) + "\n"  # XML has no control characters


def _cases(task: TaskCheck) -> Iterator[tuple[str, list[str]]]:
    yield "samples and data", list(task.failures)
    for item in task.comparisons:
        yield item.metric, [_sentence(item)] if item.failure else []


def _sentence(item: Comparison) -> str:
    return f"{item.metric} {item.failure} Before {_number(item.before)}, now {_number(item.now)}."


def _suite(
    root: ElementTree.Element, name: str, cases: Sequence[tuple[str, list[str]]]
) -> ElementTree.Element:
    failed = [reasons for _, reasons in cases if reasons]
    suite = ElementTree.SubElement(
        root, "testsuite", name=name, tests=str(len(cases)), failures=str(len(failed)), errors="0"
    )
    for case, reasons in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=name, name=case)
        if reasons:
            ElementTree.SubElement(element, "failure", message=reasons[0]).text = "\n".join(reasons)
    return suite
