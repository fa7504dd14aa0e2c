"""The page in a real browser: filters, keys, many samples, narrow screens; and that it asks no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dualfocus_lmms import Answer, Selection, Trace
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.results.report import box_tables, comparison, gallery, page, plots, tables

Browser = Any  # see conftest
SAMPLES = 5000
EVIL = "</script><img src=https://example.org/x onerror=alert(1)> & <b>bold</b>"
RUNS, TASKS = ("first", "second"), ("df_a", "df_b")


def drawn(doc_id: int) -> Image.Image:
    return Image.new("RGB", (640, 480), (40, 90, doc_id % 256))


def make_samples() -> pd.DataFrame:
    """SAMPLES of two runs and two tasks; the outcomes of each come in turn, a seventh has no second look."""
    answer = Answer("macro", "yes", (1,), (-0.1,), ended=False)
    hashes = [image_hash(drawn(number)) for number in range(256)]
    combinations = list(gallery.OUTCOMES)
    rows = []
    for number in range(SAMPLES):
        turn = number % 7
        macro, micro, selected = combinations[turn] if turn < 6 else (True, False, True)
        chosen = "micro" if turn < 6 and selected == micro and macro != micro else "macro"
        trace = Trace(
            key={},
            question_id="",
            prompts={},
            image_size=(640, 480),
            image_hash=hashes[number % 256],
            selection=Selection(chosen, "x", "ppl"),  # type: ignore[arg-type]
            macro=answer,
            box=(0.25, 0.25, 0.5, 0.75) if turn < 6 else None,
            crop=(160, 120, 320, 360) if turn < 6 else None,
            fallback=None if turn < 6 else "no_box",
        )
        rows.append(
            {
                "run": RUNS[number // (SAMPLES // 2)],
                "task": TASKS[number // (SAMPLES // 4) % 2],
                "doc_id": number,
                "question_key": str(number),
                "trace": trace,
                "question": EVIL if number == 0 else f"What is number {number}?",
                "answers": ["yes", "no"],
                "text_macro": "" if number == 1 else "yes",
                "text_micro": "no" if turn < 6 else None,
                "macro": 100.0 * macro,
                "micro": 100.0 * micro if turn < 6 else np.nan,
                "selected": 100.0 * selected,
                "oracle": 100.0 * (macro or micro),
                "ppl_macro": 1.1 + turn / 10,
                "ppl_micro": 1.4 if turn < 6 else np.nan,
                "pathway": chosen,
                "fallback": trace.fallback,
                "iou": 0.5,
                "dimension": None,
            }
            | tables.from_traces([trace])
        )
    frame = pd.DataFrame(rows)
    frame[list(tables.FROM_TRACES)] = frame[list(tables.FROM_TRACES)].map(lambda values: values[0])
    for way in ("macro", "micro"):
        frame[f"nll_{way}"] = np.log(frame[f"ppl_{way}"])
    return frame.assign(confidence_macro=1 / frame["ppl_macro"], outcome=gallery.outcome_names(frame))


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = make_samples()
    rows, images = gallery.collect(samples, 60, {(run, task): drawn for run in RUNS for task in TASKS})
    pages = [
        page.RunPage(
            name=name,
            facts=[("pretrained", EVIL)],
            tiles=[page.Tile("macro", "50.00", "whole image", "macro")],
            sections=[
                page.Section("pathways", "Pathways", [tables.ablation(some)]),
                page.Section(
                    "perplexity", "Perplexity", [tables.perplexities(some)], plots.perplexities(some)
                ),
                page.Section(
                    "boxes", "Boxes", [tables.fallbacks(some), box_tables.boxes(some)], plots.areas(some)
                ),
            ],
            notices=["12 of 24 samples are here."],
        )
        for name, some in samples.groupby("run")
    ]
    runs = {str(name): some for name, some in samples.groupby("run")}
    compared = [comparison.by_run(runs, {name: {} for name in runs})]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.render("A report", pages, compared, rows, images, ["few images"]), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, html: Path) -> Browser:
    browser.requests.clear()
    browser.errors.clear()
    browser.open(html)
    return browser


def question(browser: Browser) -> str:
    return browser.run("document.querySelector('.detail h3')?.textContent ?? ''")


def count(browser: Browser) -> int:
    return int(browser.run("document.getElementById('count').textContent").split()[0].replace(",", ""))


def badge(browser: Browser) -> str:
    return browser.run("document.querySelector('.badge').textContent")


def chip(browser: Browser, number: int) -> None:
    browser.run(f"document.querySelectorAll('#outcomes button')[{number}].click()")


def choose(browser: Browser, name: str, value: str) -> None:
    """In a list of choices, as a person does."""
    browser.run(
        f"(() => {{ const field = document.getElementById('{name}'); field.value = '{value}';"
        "field.dispatchEvent(new Event('change')); field.dispatchEvent(new Event('input')); })()"
    )


def test_no_script_fails_and_nothing_is_fetched(opened: Browser, html: Path):
    chip(opened, 2)
    opened.press("j")
    assert opened.errors == []
    assert {address.partition(":")[0] for address in opened.requests} == {"file", "data"}
    assert {a for a in opened.requests if a.startswith("file")} == {html.resolve().as_uri()}


def test_texts_of_a_run_are_texts(opened: Browser):
    choose(opened, "search", "bold")
    assert count(opened) == 1
    assert question(opened) == EVIL
    assert opened.run("document.querySelectorAll('img[src^=http], .facts b').length") == 0


def test_the_filter_by_outcome(opened: Browser):
    half = SAMPLES // 2
    assert count(opened) == half
    numbers = opened.run("[...document.querySelectorAll('#outcomes span')].map((one) => one.textContent)")
    assert [int(number.replace(",", "")) for number in numbers] == [half, 715, *[357] * 5]
    for place, name in enumerate(gallery.OUTCOMES.values(), 1):
        chip(opened, place)
        assert badge(opened) == name
        assert count(opened) == int(numbers[place].replace(",", ""))
    assert opened.run("document.querySelectorAll('#outcomes [aria-pressed=true]').length") == 1


def test_filters_by_task_second_look_image_and_text(opened: Browser):
    choose(opened, "task", "1")
    assert count(opened) == SAMPLES // 4
    assert "df_b" in opened.run("document.querySelector('.meta').textContent")
    choose(opened, "look", "no_box")
    assert 170 < count(opened) < 190
    assert opened.run("document.querySelectorAll('.answer.chosen.macro').length") == 1
    choose(opened, "task", "-1")
    choose(opened, "look", "any")
    opened.run("document.getElementById('with-image').click()")
    with_image = count(opened)
    assert 0 < with_image <= 60
    assert opened.run("document.querySelectorAll('.photo img').length") == 1
    choose(opened, "search", "NUMBER 77?")
    opened.run("document.getElementById('with-image').click()")
    assert (count(opened), question(opened)) == (1, "What is number 77?")


def test_nothing_found_and_the_way_back(opened: Browser):
    choose(opened, "search", "there is no such text")
    assert count(opened) == 0
    assert question(opened) == ""
    opened.press("j")
    opened.run("document.querySelector('.empty-state button').click()")
    assert count(opened) == SAMPLES // 2


def test_the_keyboard(opened: Browser):
    first = question(opened)
    opened.press("j")
    second = question(opened)
    assert second != first
    opened.press("k")
    assert question(opened) == first
    opened.press("2")
    assert badge(opened) == "rescued"
    opened.press("0")
    assert count(opened) == SAMPLES // 2
    opened.run("document.getElementById('rows').focus()")
    opened.press("Home")
    opened.press("ArrowDown")
    assert question(opened) == second
    opened.press("End")
    last = question(opened)
    assert last == f"What is number {SAMPLES // 2 - 1}?"
    assert opened.run(
        "document.querySelector('.row[aria-selected=true]').getBoundingClientRect().bottom"
    ) <= (opened.run("document.getElementById('rows').getBoundingClientRect().bottom + 1"))
    opened.press("ArrowDown")
    assert question(opened) == last
    opened.press("/")
    opened.press("7")
    assert opened.run("document.getElementById('search').value") == "7"  # typing is no command
    opened.press("Escape")
    assert opened.run("document.activeElement.id") == "rows"


def test_thousands_of_samples_are_few_elements(opened: Browser):
    listed = "document.querySelectorAll('.row').length"
    assert 5 < opened.run(listed) < 60
    opened.run("document.getElementById('rows').scrollTop = 1e9")
    assert (
        opened.run(
            "new Promise((done) => setTimeout(() => done(document.querySelectorAll('.row').length), 300))"
        )
        < 60
    )
    numbers = opened.run("[...document.querySelectorAll('.row p:first-child')].map((one) => one.textContent)")
    assert f"What is number {SAMPLES // 2 - 1}?" in numbers


def test_a_run_is_chosen_with_its_samples(opened: Browser):
    opened.run("document.getElementById('tab-1').click()")
    assert opened.run("[...document.querySelectorAll('.run')].map((run) => run.hidden)") == [True, False]
    assert count(opened) == SAMPLES // 2
    opened.run("document.getElementById('rows').focus()")
    opened.press("End")
    assert question(opened) == f"What is number {SAMPLES - 1}?"


def test_an_address_with_a_sample_opens_it(browser: Browser, html: Path, tmp_path: Path):
    browser.open(html)
    browser.run("document.getElementById('tab-1').click()")
    browser.press("j")
    here, shown = browser.run("location.hash"), question(browser)
    browser.reload()
    assert (browser.run("location.hash"), question(browser)) == (here, shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, html: Path, width: int, scheme: str):
    browser.errors.clear()
    browser.open(html, width=width, height=800, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    shade = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, shade[4:-1].split(","))) > 128) == (scheme == "light")
    browser.run("document.getElementById('theme').click()")
    other = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, other[4:-1].split(","))) > 128) == (scheme == "dark")
    assert browser.errors == []


def test_the_page_forbids_every_address(html: Path):
    text = html.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert text.count("</script>") == 3  # nothing in the data ends its element
    assert len(text) < 25_000_000
