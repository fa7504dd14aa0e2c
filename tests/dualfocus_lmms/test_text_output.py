"""Hostile text through each way out: it is shown, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from dualfocus_lmms import GenerationError, cli
from dualfocus_lmms.cli.output import show
from dualfocus_lmms.text_output import (
    csv_cell,
    csv_text,
    excerpt,
    json_text,
    link,
    log_patcher,
    markdown,
    script_json,
    terminal,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=http://e.x/a.png onerror=alert(1)>",
    "![x](http://e.x/a.png)",
    "[x](javascript:alert(1))",
    "<http://e.x>",
    "a | b || c",
    "a \\| b \\\\| c",
    "`code` ``x`` ```",
    "**bold** _it_ __b__ ~~no~~ *",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "1) item",
    "> quote",
    "---",
    "===",
    "a\n\n# b\n- c\n\n<b>d</b>",
    "&lt;b&gt; &amp; &#60;",
    "$x$ $$y$$",
    "\x1b[31mred\x1b]0;title\x07",
    "a\u202eb",
    "\\",
    "```\nfence",
    "    indented",
    "[1]: http://e.x",
    "[^1]",
    "- [ ] task",
]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False, "html": True})
LIST = {f"{name}_{end}" for name in ("bullet_list", "list_item", "paragraph") for end in ("open", "close")}
PLAIN = {"inline", "text", "softbreak", "text_special"}


def shown(source: str) -> tuple[set[str], str]:
    """(kinds of elements, text) of Markdown."""
    tokens = [token for block in MARKDOWN.parse(source) for token in (block, *(block.children or []))]
    text = "".join(token.content for token in tokens if token.type in ("text", "text_special"))
    return {token.type for token in tokens}, text


def visible(text: str) -> str:
    return " ".join(terminal(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_and_has_no_element(text):
    kinds, seen = shown(markdown(text))
    assert kinds <= PLAIN | {"paragraph_open", "paragraph_close"}
    assert seen.replace("\u2060", "") == visible(text)
    kinds, seen = shown(f"- {markdown(text)}")
    assert kinds <= PLAIN | LIST
    assert seen.replace("\u2060", "") == visible(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_markdown_table_holds_the_text_and_ends_where_it_ends(text):
    source = f"| a | b |\n| - | - |\n| {markdown(text)} | last |\n"
    tokens = MARKDOWN.parse(source)
    cells = [token for token in tokens if token.type == "inline"][2:]
    seen = ["".join(child.content for child in cell.children) for cell in cells]
    assert [text.replace("\u2060", "") for text in seen] == [visible(text), "last"]
    assert {child.type for cell in cells for child in cell.children} <= PLAIN


@pytest.mark.parametrize(
    "text", ["http://e.x", "HTTPS://e.x", "www.e.x", "@name", "a@e.x", "mailto:a", "xmpp:a"]
)
def test_what_github_would_link_by_itself_is_cut_invisibly(text):
    assert markdown(text) != text
    assert "\u2060" in markdown(text)
    assert not re.search(r"://|www\.|@\w|mailto:|xmpp:", markdown(text), re.IGNORECASE)


@pytest.mark.parametrize(
    "text", ["75.7", "-1.20", "+0.5", "df_gqa_star", "Is it (red)?", "a & b", "-", "3 + 4"]
)
def test_plain_text_stays_readable(text):
    assert markdown(text) == text


def test_a_text_is_cut_before_it_is_escaped():
    assert markdown("|" * 9, 6) == r"\|\|\|..."
    assert excerpt("a\n b" * 9, 6) == "a b..."


def test_a_link_leads_to_a_page_or_a_file_and_nowhere_else():
    for target in ("javascript:alert(1)", "data:text/html,x", "JavaScript:x", "vbscript:x"):
        assert shown(link("text", target)) == (
            {"paragraph_open", "inline", "text", "paragraph_close"},
            "text",
        )
    for target in ("http://e.x/a) [b](http://f.x", "runs/a b.json", "a](b", "http://e.x/<b>"):
        tokens = MARKDOWN.parse(link("text", target))[1].children
        assert [token.type for token in tokens] == ["link_open", "text", "link_close"]
    assert link("http://e.x", "http://e.x") == "<http://e.x>"


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2066, 0x200F, 0xD800])
def test_a_terminal_gets_no_control_character(code):
    letter = chr(code)
    if letter in "\t\n":
        assert terminal(letter) == letter
        return
    assert terminal(f"a{letter}b").isprintable()
    assert terminal(f"a{letter}b").startswith("a\\")
    assert json.loads(json_text(json.dumps({"a": letter}, ensure_ascii=False))) == {"a": letter}
    assert json_text(json.dumps({"a": letter}, ensure_ascii=False)).isprintable()


def test_a_terminal_gets_other_text_as_it_is():
    text = "Größe: 猫 👩‍👧 é\n\tx"
    assert terminal(text) == text


def test_commands_print_and_fail_without_control_characters(capsys, monkeypatch):
    show("\x1b[2Jred\n")
    monkeypatch.setattr(cli, "app", _fails)
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert out == "\\x1b[2Jred\n\n"
    assert err == "Error: said \\x1b]0;x\\x07\n"


def _fails(**_: object) -> None:
    raise GenerationError("said \x1b]0;x\x07")


def test_log_messages_are_without_control_characters():
    record = {"message": "a\x9bb"}
    log_patcher(record)
    assert record["message"] == "a\\x9bb"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "  =1", '=HYPERLINK("http://e.x")']
)
def test_no_cell_of_a_csv_file_is_a_formula(text):
    frame = pd.DataFrame({"answer": [text, "plain"], "=column": [1.5, -2.0]})
    header, first, second = csv.reader(io.StringIO(csv_text(frame), newline=""))
    assert header == ["answer", "'=column"]
    assert first == [f"'{text}".replace("\r", "\n"), "1.5"]
    assert second == ["plain", "-2.0"]


@pytest.mark.parametrize("value", ["-5", "+3.5", "a=b", "", 7, -7, None, 1.5])
def test_numbers_and_other_texts_stay_in_a_csv_file(value):
    assert csv_cell(value) == value


def test_nothing_in_a_pages_data_ends_its_element():
    value = {"a": "</script><script>alert(1)</script><!-- \u2028 \x1b"}
    text = script_json(value)
    assert "<" not in text
    assert text.isprintable()
    assert json.loads(text) == value
