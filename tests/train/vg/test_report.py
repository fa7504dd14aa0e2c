"""What a build kept and dropped."""

from __future__ import annotations

import json

from dualfocus_lmms.train.vg.report import Line, Report


def test_merged_parts_equal_one_report() -> None:
    lines = [
        Line(
            f"q{i}",
            i,
            "What?",
            "That.",
            "matched" if i % 3 else "bad",
            box=(0, 0, i / 99, 1) if i % 3 else None,
        )
        for i in range(99)
    ]
    whole, parts = Report(seed=3), [Report(seed=3) for _ in range(4)]
    for i, line in enumerate(lines):
        whole.add(line)
        parts[i % 4].add(line)
    merged = Report(seed=3)
    for part in reversed(parts):
        merged.merge(Report.parse(json.dumps(part.to_dict()).encode()))
    assert merged == whole
    assert (len(whole.page["kept"]), len(whole.page["dropped"]), whole.questions) == (20, 20, 99)
    assert "66 of 99 questions kept (66.7%)" in whole.markdown()
    other = Report(seed=4)
    for line in lines:
        other.add(line)
    assert other.page != whole.page
