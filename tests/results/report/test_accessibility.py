"""The page as it is read: axe-core at every size and medium, a screenshot of each, and the time of a filter.

With DUALFOCUS_SCREENSHOTS=FOLDER the screenshots are kept, to be looked at.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chromium import Browser
from PIL import Image
from report_page import SAMPLES, with_each_sample

MEDIA = {
    "desktop": (1280, 900, "light", "screen"),
    "phone": (390, 844, "light", "screen"),
    "dark": (1280, 900, "dark", "screen"),
    "print": (1030, 728, "dark", "print"),  # A4 on its side, from a dark screen
}
SCRIPT = """
window.choose = (id, value) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event("change"));
  field.dispatchEvent(new Event("input"));
};
window.timed = (step) => { // milliseconds from no filter until the page is laid out
  history.replaceState(null, "", "#");
  dispatchEvent(new Event("popstate"));
  const before = document.body.offsetHeight;
  const start = performance.now();
  step();
  return before && document.body.offsetHeight && performance.now() - start;
};
"""


@pytest.mark.parametrize("name", MEDIA)
def test_no_serious_fault_and_a_screenshot(browser: Browser, html: Path, tmp_path: Path, name: str):
    width, height, *_ = MEDIA[name]
    browser.open(html, *MEDIA[name])
    assert browser.faults() == []
    path = Path(os.environ.get("DUALFOCUS_SCREENSHOTS", tmp_path)) / f"{name}.png"
    browser.screenshot(path, whole=True)
    with Image.open(path) as image:
        assert image.width == width
        assert image.height > height
        corner = image.convert("L").getpixel((0, 0))
    assert (corner < 128) == (name == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_in_an_enlarged_image_or_an_empty_list(browser: Browser, html: Path, scheme: str):
    browser.open(html, scheme=scheme)
    browser.run("document.querySelector('button.frame').click()")
    assert browser.run("document.querySelector('#large').open")
    assert browser.faults() == []
    browser.press("Escape")
    browser.run("document.querySelectorAll('#outcomes button')[6].click()")
    browser.run("document.getElementById('with-image').click()")
    assert browser.faults() == []


def test_twenty_thousand_samples_are_filtered_and_sorted_in_under_0_3_seconds(
    browser: Browser, html: Path, tmp_path: Path
):
    many = tmp_path / "many.html"
    many.write_text(with_each_sample(20_000 // SAMPLES, html.read_text(encoding="utf-8")), encoding="utf-8")
    browser.open(many)
    assert browser.run("document.getElementById('count').textContent") == "10,000 samples"  # of each run
    steps = {
        "outcome": "document.querySelectorAll('#outcomes button')[2].click()",
        "task": "choose('task', '1')",
        "look": "choose('look', 'micro')",
        "search": "choose('search', 'number 7')",
        "differs": "choose('other', 'answer 1')",
        "sort": "choose('sort', 'margin down')",
    }
    browser.run(SCRIPT)
    # Of three times the least: the first also makes what is searched, and other processes may run.
    milliseconds = {
        name: min(browser.run(f"[1, 2, 3].map(() => timed(() => {{ {step} }}))"))
        for name, step in steps.items()
    }
    assert max(milliseconds.values()) < 300, milliseconds
