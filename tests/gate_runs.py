"""The scores of runs that the gate compares, and edits of what the host wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

WriteRun = Callable[..., Path]
GOOD = [100.0 if place % 10 < 6 else 0.0 for place in range(1000)]  # 60 % right


def changed(scores: Sequence[float], to: float, places: Sequence[int]) -> list[float]:
    return [to if place in set(places) else score for place, score in enumerate(scores)]


WORSE = changed(GOOD, 0.0, range(0, 300, 10))  # 30 of 1,000 right ones are wrong now


def edit_results(folder: Path, edit: Callable[[dict], None]) -> None:
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text())
    edit(results)
    file.write_text(json.dumps(results))
