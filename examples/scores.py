"""The scores of lmms-eval runs side by side.

python examples/scores.py OUTPUT_PATH OUTPUT_PATH ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tabulate import tabulate


def scores(folder: Path) -> dict[str, float]:
    """{"task metric": score} of the newest run under a folder given to --output_path."""
    files = sorted(folder.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        sys.exit(f"No results under {folder}: the run did not finish.")
    results = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
    return {
        f"{task} {metric.partition(',')[0]}": value
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in metric
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs = {Path(folder).name: scores(Path(folder)) for folder in sys.argv[1:]}
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    rows = [[name, *(run.get(name) for run in runs.values())] for name in names]
    print(tabulate(rows, ["", *runs], floatfmt=".1f"))
