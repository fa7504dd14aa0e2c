"""The attention that traces keep, over the images of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.results.report.build import report

HEATED = [0, 2]  # of the questions that have a map


def corner_map() -> dict[str, Any]:
    """Hot in the left upper quarter of the image."""
    weights = Image.new("F", (8, 8), 0.5)
    weights.paste(3.0, (0, 0, 4, 4))
    return asdict(AttentionMap.of(weights, (0.0, 0.0, 1.0, 1.0)))


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory,
    write_nano: Callable[..., Path],
    nano_scripts: dict[str, list[Any]],
) -> Path:
    folder = write_nano(tmp_path_factory.mktemp("heated"), {"detail": nano_scripts["detail"][:4]}, drawn=True)
    file = folder / "traces" / "rank0.jsonl"
    traces = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for number in HEATED:
        traces[number] |= {"attention": corner_map(), "grounding": "attention"}
    file.write_text("".join(json.dumps(trace) + "\n" for trace in traces), encoding="utf-8")
    made = report([folder], folder / "report")
    assert (made.samples, made.images) == (4, 4)
    return folder / "report" / "report.html"


def color(browser: Any, x: float, y: float, path: Path) -> tuple[int, int, int]:
    """What is seen of the image at a place of it, in fractions."""
    left, top, width, height = browser.run(
        "(() => { const r = document.querySelector('.photo').getBoundingClientRect();"
        "return [r.left, r.top, r.width, r.height]; })()"
    )
    browser.screenshot(path)
    with Image.open(path) as seen:
        return seen.convert("RGB").getpixel((round(left + x * width), round(top + y * height)))


def show(browser: Any, page: Path, sample: int) -> None:
    browser.open(page)
    browser.run(f"location.hash = '#sample={sample}'; open()")
    browser.run("document.querySelector('.pair').scrollIntoView({ block: 'center' })")
    browser.run("Promise.all([...document.images].map((image) => image.decode()))")


def test_the_attention_lies_over_the_image_until_it_is_switched_off(browser: Any, page: Path, tmp_path: Path):
    show(browser, page, 0)
    heated = [color(browser, *place, tmp_path / "heat.png") for place in ((0.03, 0.03), (0.97, 0.97))]
    browser.run("document.querySelector('.key-of-boxes input').click()")
    plain = [color(browser, *place, tmp_path / "plain.png") for place in ((0.03, 0.03), (0.97, 0.97))]
    for (seen, bare), tint in zip(
        zip(heated, plain, strict=True), ((252, 233, 122), (27, 16, 64)), strict=True
    ):
        mixed = [(one + other) / 2 for one, other in zip(bare, tint, strict=True)]
        assert list(seen) == pytest.approx(mixed, abs=12)
    assert browser.run("document.querySelectorAll('.heat').length") == 1
    browser.press("j")
    browser.press("j")
    assert browser.run("document.querySelector('.heat').hidden") is True  # as it was left
    browser.run("document.querySelector('.key-of-boxes input').click()")
    assert browser.run("document.querySelector('.heat').hidden") is False
    browser.run("document.querySelector('button.frame').click()")
    assert browser.run("document.querySelector('#large .heat').hidden") is False
    assert browser.errors == []


def test_samples_without_a_map_are_as_before(browser: Any, page: Path):
    show(browser, page, 1)
    assert browser.run("document.querySelector('.key-of-boxes input, .heat')") is None
    rows = json.loads(browser.run("document.getElementById('rows-data').textContent"))
    assert ["heat" in detail for detail in rows["details"]] == [number in HEATED for number in range(4)]


def test_the_small_image_takes_little_of_the_page(page: Path):
    text = page.read_text(encoding="utf-8")
    rows = json.loads(text.split('id="rows-data">')[1].split("</script>")[0])
    assert [len(detail["heat"]) < 4_000 for detail in rows["details"] if "heat" in detail] == [True, True]
