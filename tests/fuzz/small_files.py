"""What the files that the fuzzer damages have in common: how they are written, and their questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS = {"pretrained": "/somewhere/nano", "protocol": "paper", "pathway": "both", "select": "ppl",
            "skip_confidence": 1.0, "count_eos": False, "versions": {"torch": "2"}}  # fmt: skip
DATE = "20261122_000000"
QUESTIONS = [{"image": "a.png", "question": f"Question {number}?", "answer": "yes"} for number in range(4)]


def put(path: Path, content: Any) -> None:
    """Write text as it is, a list of rows as JSON lines, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
