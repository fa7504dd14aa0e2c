"""The page in a real browser: filters, keys, many samples, narrow screens; and that it asks no network."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from chromium import Browser
from report_page import EVIL, SAMPLES

from dualfocus_lmms.results.report import gallery


@pytest.fixture
def opened(browser: Browser, html: Path) -> Browser:
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


def hash_values(browser: Browser) -> dict[str, str]:
    return browser.run("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def test_the_address_keeps_filters_order_and_sample(opened: Browser):
    choose(opened, "task", "1")
    choose(opened, "sort", "margin down")
    opened.press("3")
    for _ in range(3):
        opened.press("j")
    opened.run("new Promise((done) => setTimeout(done, 300))")
    values, shown, found = hash_values(opened), question(opened), count(opened)
    assert values.items() >= {"task": "df_b", "sort": "margin down", "outcome": "3"}.items()
    opened.reload()
    assert (hash_values(opened), question(opened), count(opened)) == (values, shown, found)
    assert badge(opened) == list(gallery.OUTCOMES.values())[2]


def test_back_and_forward(opened: Browser):
    chip(opened, 2)
    first = question(opened), count(opened)
    choose(opened, "look", "no_box")
    assert count(opened) == 0
    wait = "new Promise((done) => { addEventListener('popstate', () => done(1)); history.%s(); })"
    opened.run(wait % "back")
    assert (question(opened), count(opened)) == first
    assert opened.run("document.getElementById('look').value") == "any"
    opened.run(wait % "forward")
    assert count(opened) == 0


def test_an_address_of_something_else_shows_everything(browser: Browser, html: Path):
    browser.open(html)
    browser.run("location.hash = '#task=none&look=%3Cb%3E&outcome=99&sort=x&differs=y&sample=1e9&run=7'")
    browser.reload()
    assert count(browser) == SAMPLES // 2


def test_samples_are_sorted(opened: Browser):
    choose(opened, "sort", "ppl_macro down")
    said = "document.querySelector('.row .said').textContent"
    assert opened.run(said).startswith("1.700")  # those without a second look
    choose(opened, "sort", "margin")
    assert opened.run(said).startswith("-3.000")
    opened.run("document.getElementById('rows').focus()")
    opened.press("End")
    assert opened.run("document.querySelectorAll('.answer')[1].querySelector('.empty') !== null")


def test_where_two_runs_differ(opened: Browser):
    choose(opened, "other", "verdict 1")
    right = [selected for _, _, selected in gallery.OUTCOMES] + [True]
    differing = sum(right[n % 7] != right[(n + SAMPLES // 2) % 7] for n in range(SAMPLES // 2))
    assert count(opened) == differing
    number = int(question(opened).split()[-1].rstrip("?"))
    opened.run("document.querySelector('.twin button').click()")
    assert question(opened) == f"What is number {number + SAMPLES // 2}?"
    assert opened.run("document.querySelector('#tab-1').getAttribute('aria-selected')") == "true"


def test_a_sample_shows_its_trace(opened: Browser):
    assert opened.run("document.querySelector('.stage pre').textContent").startswith(EVIL)
    tokens = opened.run("[...document.querySelectorAll('.token')].map((one) => one.textContent)")
    assert tokens == ["7 90.5%", "end 13.5%"]
    assert "500.0 ms" in opened.run("document.querySelector('.stage h4').textContent")
    options = opened.run("[...document.querySelectorAll('.options li')].map((one) => one.textContent)")
    assert options == ["A yes", "B no"]
    assert opened.run("document.querySelector('.wanted').textContent") == "Expected: A (yes)"
    assert opened.run("document.querySelectorAll('.photo .annotated').length") == 1
    assert opened.run("document.querySelectorAll('.detail b').length") == len(tokens) + len(options)


def test_a_reply_is_coloured_by_the_probability_of_its_tokens(opened: Browser):
    """The third and the fourth token write one character; a closing token has no text."""
    opened.run("document.getElementById('tab-1').click()")
    pieces = (
        "[...document.querySelectorAll('%s .piece')].map((one) => [one.textContent, one.title.split(',')[0]])"
    )
    # 100 exp(-0.2), exp(-0.7), exp(-0.5 - 0.6 - 3.0)
    shown = [["yes", "81.9%"], [" sir", "49.7%"], ["🐱", "1.7%"]]
    assert opened.run(pieces % ".answer.macro") == shown
    assert opened.run(pieces % ".stage.macro") == shown
    assert (
        opened.run("document.querySelector('.stage.macro pre:last-of-type').textContent")
        == "yes sir🐱end 99.9%"
    )
    assert opened.run("document.querySelector('.answer.macro .text').textContent") == "yes sir🐱"
    titles = opened.run("[...document.querySelectorAll('.stage.macro [title]')].map((one) => one.title)")
    assert [title for title in titles if "240, 159, 9" in title]
    doubts = ".map((one) => one.style.getPropertyValue('--doubt'))"
    shades = opened.run(f"[...document.querySelectorAll('.stage.macro [title]')]{doubts}")
    assert shades == ["11%", "30%", "59%", "0%"]
    assert opened.run("document.querySelectorAll('.key-of-tokens').length") == 1
    opened.run("document.getElementById('tab-0').click()")  # a trace without the texts of tokens
    assert opened.run("document.querySelectorAll('.piece, .key-of-tokens').length") == 0


def test_an_image_is_enlarged_and_the_crop_has_a_loupe(opened: Browser):
    chip(opened, 2)
    opened.run("document.querySelector('button.frame').click()")
    assert opened.run("document.querySelector('#large').open")
    before = question(opened)
    opened.press("j")  # belongs to the samples, not to the image
    opened.press("Escape")
    assert (opened.run("document.querySelector('#large').open"), question(opened)) == (False, before)
    moved = "new PointerEvent('pointermove', {bubbles: true})"
    opened.run(f"document.querySelector('.frame .crop').dispatchEvent({moved})")
    assert opened.run("document.querySelector('.loupe').hidden") is False
    assert opened.errors == []


def test_the_listed_samples_are_files(opened: Browser):
    choose(opened, "search", "number 77")
    opened.run("HTMLAnchorElement.prototype.click = function () { window.file = this.download; }")
    opened.run("URL.createObjectURL = (blob) => { window.saved = blob; return ''; }")
    opened.run("document.querySelectorAll('.export button')[1].click()")
    rows = list(csv.DictReader(io.StringIO(opened.run("saved.text()"))))
    assert len(rows) == count(opened)
    assert {row["task"] for row in rows} == {"df_a"}
    assert float(rows[0]["ppl_macro"]) == 1.1 + 77 % 7 / 10
    opened.run("document.querySelectorAll('.export button')[2].click()")
    lines = [json.loads(line) for line in opened.run("saved.text()").splitlines()]
    assert [line["doc_id"] for line in lines] == [int(row["doc_id"]) for row in rows]
    assert opened.run("window.file") == "samples.jsonl"


def test_a_table_is_sorted_by_its_header(opened: Browser):
    table = "document.querySelector('.run [data-name=boxes] table')"
    column = f"[...{table}.tBodies[0].rows].map((row) => row.cells[1].textContent)"
    before = opened.run(column)
    numbers = sorted(int(cell.replace(",", "")) for cell in before)
    for expected in (numbers, numbers[::-1]):
        opened.run(f"{table}.tHead.querySelectorAll('button')[1].click()")
        assert [int(cell.replace(",", "")) for cell in opened.run(column)] == expected
    assert opened.run(f"{table}.tHead.rows[0].cells[1].ariaSort") == "descending"
    opened.run(f"{table}.tHead.querySelectorAll('button')[1].click()")
    assert opened.run(column) == before


def test_dates_are_those_of_the_reader(browser: Browser, html: Path):
    browser.call("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
    try:
        browser.open(html)
        assert browser.run("document.querySelector('time').textContent") == (
            "28 July 2026 at 00:28 Japan Standard Time"
        )
    finally:
        browser.call("Emulation.setTimezoneOverride", timezoneId="")


def test_print_cuts_no_table(browser: Browser, html: Path):
    browser.open(html, width=1030, scheme="dark", medium="print")
    wide = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert browser.run(f"{wide}.length") == 0
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, html: Path, width: int, scheme: str):
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
