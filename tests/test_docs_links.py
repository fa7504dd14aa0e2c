"""The docs name what exists: files and headings behind links, targets of make, paths, modules, the rooms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rooms import MAY_IMPORT, modules

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "results" / "README.md"]
TREE = re.compile(r"^<!-- tree -->\n```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)

ROOMS = re.compile(r"^<!-- rooms -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
FOLDERS = re.compile(r"(?:dualfocus_lmms|models|tasks|train|results|tests|docs|examples)/[\w./-]*")
MODULE = re.compile(r"\bdualfocus_lmms(?:\.\w+)+")
HISTORY = ("CHANGELOG.md", "docs/log.md")  # pages that name what is no more
EXAMPLES = ("countbench", "llava_next_video")  # what a reader of CONTRIBUTING.md makes
GROUPS = {"dualfocus_lmms.families", "dualfocus_lmms.rules"}  # entry-point groups, not modules

FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)? *$", re.MULTILINE)
# In code alone: `make test`, or a line of a block that begins with it. "make demo's" in prose is no command.
MAKE = re.compile(r"(?:^|`|\()\s*make ([a-z][a-z-]*)(?=[`\s]|$)", re.MULTILINE)


def links(text: str) -> list[str]:
    """The targets of links within the project, without those in code."""
    prose = CODE.sub("", FENCE.sub("", text))
    return [target for target in LINK.findall(prose) if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings.

    Letters, digits, "-" and "_" stay, blanks become "-", the rest goes; the second of a name ends with "-1".
    """
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        shown = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def commands(text: str) -> set[str]:
    """The targets of make that a page names, in code."""
    blocks = "\n".join(block.group() for block in FENCE.finditer(text))
    spans = "\n".join(span.group() for span in CODE.finditer(FENCE.sub("", text)))
    return set(MAKE.findall(blocks)) | set(MAKE.findall(spans))


def tree(text: str) -> Iterator[tuple[str, str | None]]:
    """Each path of the tree, and where it leads if it is shown as a link: "a -> ../b".

    A line is its depth (four columns each), then one name or several with commas between, then, after two
    blanks, what it is.
    """
    (block,) = TREE.findall(text)
    folders: list[str] = []
    for line in block.splitlines()[1:]:  # the first is the folder of the project
        marks, rest = re.fullmatch(r"((?:│   |    )*[├└]── )(.*)", line).groups()  # type: ignore[union-attr]
        depth = len(marks) // 4 - 1
        names = re.split(r" {2,}", rest, maxsplit=1)[0].split(", ")
        for name in names:
            shown, _, target = name.partition(" -> ")
            yield "/".join([*folders[:depth], shown.rstrip("/")]), target or None
        folders[depth:] = [names[-1].rstrip("/")]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_page = target.suffix == ".md" and target.is_file()
        if not target.exists() or (
            anchor and is_page and anchor not in slugs(target.read_text(encoding="utf-8"))
        ):
            wrong.append(link)
    assert wrong == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = {name(page): commands(page.read_text(encoding="utf-8")) - targets for page in PAGES}
    assert {page: missing for page, missing in named.items() if missing} == {}
    assert commands((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) >= {"test", "check"}


def test_the_tree_is_there() -> None:
    shown = list(tree((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert len(shown) > 40
    assert [path for path, _ in shown if not (ROOT / path).exists()] == []
    for path, target in shown:
        assert (ROOT / path).is_symlink() == (target is not None), path
        if target is not None:
            assert (ROOT / path).readlink().as_posix() == target


def without_examples(page: Path) -> str:
    """The lines of a page, without those about what only its reader makes; "" for a page of history."""
    lines = [] if name(page) in HISTORY else page.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not any(word in line for word in EXAMPLES))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_in_code_are_there(page: Path) -> None:
    spans = [span.group().strip("`") for span in CODE.finditer(FENCE.sub("", without_examples(page)))]
    paths = [span for span in spans if FOLDERS.fullmatch(span) and "NAME" not in span]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_are_there(page: Path) -> None:
    named = {found for found in MODULE.findall(without_examples(page)) if "NAME" not in found} - GROUPS
    files = modules(ROOT)

    def exists(dotted: str) -> bool:
        module, _, member = dotted.rpartition(".")
        return dotted in files or (module in files and member in files[module].read_text(encoding="utf-8"))

    assert [found for found in sorted(named) if not exists(found)] == []


def in_rooms(cell: str) -> list[str]:
    """The rooms that a cell names: "`models/`, `models/run/`" is models and models.run."""
    return [path.replace("/", ".") for path in re.findall(r"`([\w/]+)/`", cell)]


def test_the_table_of_rooms_is_that_of_the_rules() -> None:
    (table,) = ROOMS.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    shown = {room: set(in_rooms(row[-1])) for row in rows for room in in_rooms(row[0])}
    rules = {room: set(allowed) for room, allowed in MAY_IMPORT.items() if room != "method"}
    assert {room: shown[room] for room in shown if not room.startswith("dualfocus_lmms")} == rules


def reached(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """What each room imports, directly or through others."""

    def below(room: str) -> set[str]:
        return {low for near in arrows.get(room, ()) for low in (near, *below(near))}

    return {room: found for room in arrows if (found := below(room))}


def test_the_drawn_arrows_are_those_of_the_rules() -> None:
    """Each arrow that does not follow from others, and no more."""
    (drawing,) = re.findall(
        r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.DOTALL
    )
    drawn: dict[str, set[str]] = {}
    for line in drawing.splitlines()[1:]:
        room, _, targets = re.sub(r"\[.*?\]", "", line).partition(" --> ")
        drawn.setdefault(room.strip(), set()).update(targets.split(" & "))
    rules = {
        room.removeprefix("models."): {low.removeprefix("models.") for low in allowed}
        for room, allowed in MAY_IMPORT.items()
        if room.startswith("models")
    }
    assert reached(drawn) == reached(rules)
    for room, low in [(room, low) for room, lows in drawn.items() for low in lows]:
        assert low not in reached({**drawn, room: drawn[room] - {low}}).get(room, ()), (room, low)


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text("utf-8"))}
    assert [name(page) for page in PAGES if page != index and page not in linked] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# GQA\\*\n## V\\*Bench", {"gqa", "vbench"}),
        ("# What was tested, and what was not", {"what-was-tested-and-what-was-not"}),
        ("## `df_nano`, drawn\n### [Links](a.md) too ###", {"df_nano-drawn", "links-too"}),
        ("# A - B", {"a---b"}),
        ("# Twice\n# Twice\n# Twice", {"twice", "twice-1", "twice-2"}),
        ("```bash\n# no heading\n```\n# One", {"one"}),
    ],
)
def test_slugs_are_those_of_github(text: str, expected: set[str]) -> None:
    assert slugs(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](b.md) and [c](../d/e.md#f-g), [h](#i)", ["b.md", "../d/e.md#f-g", "#i"]),
        ("[a](https://b.example/c.md), [d](mailto:e@f.example)", []),
        ("`[a](b.md)`, ``[`](c.md)``", []),
        ("```\n[a](b.md)\n```\n![two\nlines](d.png)", ["d.png"]),
    ],
)
def test_what_a_link_is(text: str, expected: list[str]) -> None:
    assert links(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`make test`, `make check` and make sure", {"test", "check"}),
        ('```bash\nmake nano ARGS="--seed 1"  # as\nx; make it\n```', {"nano"}),
        ("`cmake build`: make figures", set()),
    ],
)
def test_what_a_command_is(text: str, expected: set[str]) -> None:
    assert commands(text) == expected


def test_how_a_tree_is_read() -> None:
    lines = ["p/", "├── a/     one", "│   ├── b.md, c/  two", "│   └── d -> ../e", "└── f.md"]
    text = "<!-- tree -->\n```text\n" + "\n".join(lines) + "\n```\n"
    assert list(tree(text)) == [("a", None), ("a/b.md", None), ("a/c", None), ("a/d", "../e"), ("f.md", None)]


def test_the_tests_that_the_makefile_names_exist():
    named = re.findall(r"tests/[\w/]+\.py(?:::\w+)?", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(named) > 10
    for file, _, test in (name.partition("::") for name in named):
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8")
