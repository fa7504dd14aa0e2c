r"""Text of models, data sets and servers, as a terminal, Markdown, CSV or a page shows it: nothing but text.

>>> print(terminal("\x1b[31mred"), markdown("<b>|*"), csv_cell("=1+1"))
\x1b[31mred &lt;b&gt;\|\* '=1+1
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    import pandas as pd

Value = TypeVar("Value")

# Control characters but for line break and tab, those that turn the direction of writing, separators of lines
# that are no line break, and halves of characters.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK = re.compile(r"^(\d{1,9}(?=[.)](?: |$))|(?=[-+] |#{1,6}(?: |$)|--|==))")  # opens a list, heading, rule
_ENTITY = re.compile(r"&(?=[#\w])")
_LINK = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=\bmailto)(?=:)|(?<=\bxmpp)(?=:)|(?<=@)", re.IGNORECASE)
_JOINER = "\u2060"  # has no width; what GitHub links by itself is cut by it
_IN_URLS = ":/?#@!$&'*+,;=%~"  # left as they are in the target of a link
_FORMULA = tuple("=+-@\t\n")
_ROWS_AT_ONCE = 1 << 14  # of CSV


def terminal(text: str) -> str:
    """The text with control characters as escapes, `\\x1b`; line breaks and tabs stay.

    A terminal obeys them: they recolour, move the cursor, overwrite lines and set the clipboard.
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def log_patcher(record: Any) -> None:
    """What `loguru.logger.configure(patcher=...)` takes: messages go through `terminal`."""
    record["message"] = terminal(record["message"])


def excerpt(text: object, limit: int = 200) -> str:
    """A text on one line, for a message: at most `limit` characters, without control characters."""
    line = terminal(" ".join(str(text).split()))
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def markdown(text: str, limit: int | None = None) -> str:
    """The text on one line of GitHub's Markdown, in a table too: no element, link, image, formula or mention.

    limit: most characters that are shown; the rest becomes "...".
    """
    line = " ".join(terminal(text).split())
    if limit is not None and len(line) > limit:
        line = f"{line[: limit - 3]}..."
    line = _LINK.sub(_JOINER, line)
    line = _MARKUP.sub(r"\\\g<0>", line)
    line = _BLOCK.sub(r"\1\\", line)
    return _ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;")


def link(text: str, target: str) -> str:
    """A link of Markdown to a web page or to a file beside; the text alone where `target` is neither."""
    kind, colon, _ = target.partition(":")
    if colon and "/" not in kind and kind.lower() not in ("http", "https"):
        return markdown(text)
    place = quote(target, safe=_IN_URLS)
    return f"<{place}>" if colon and text == target else f"[{markdown(text)}]({place})"


def csv_cell(value: Value) -> Value | str:
    """A cell that a spreadsheet does not compute: an apostrophe precedes what would be a formula. Its line
    breaks are those that a cell may have."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) and not _number(text) else text


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV without its index, every text through `csv_cell`."""
    return "".join(csv_parts(frame))


def csv_parts(frame: pd.DataFrame) -> Iterator[str]:
    """`csv_text` in parts that follow each other."""
    import pandas as pd  # half a second, which a question does not need
    from pandas.api.types import is_numeric_dtype

    for start in range(0, max(len(frame), 1), _ROWS_AT_ONCE):
        some = frame.iloc[start : start + _ROWS_AT_ONCE]
        columns = [
            some.iloc[:, place] if is_numeric_dtype(kind) else some.iloc[:, place].map(csv_cell)
            for place, kind in enumerate(frame.dtypes)
        ]
        written = pd.concat(columns, axis=1) if columns else some
        written = written.set_axis([csv_cell(name) for name in frame.columns], axis=1)
        yield written.to_csv(index=False, header=start == 0, lineterminator="\n")


def json_text(text: str) -> str:
    """JSON with its control characters as escapes: the same values, and nothing for a terminal to obey."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def script_json(value: Any) -> str:
    """JSON that can stand in a `<script>` element: nothing in it ends the element or opens a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    return json_text(text).replace("<", "\\u003c")


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
