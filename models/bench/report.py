"""The benchmark's figures as a page of Markdown. Knows neither models nor clocks: see `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

_GIGA, _TERA = 1e9, 1e12


def markdown(report: dict[str, Any]) -> str:
    """How it was run, a table with a row for each batch size and mode, and what was checked."""
    setup = report["setup"]
    versions = ", ".join(f"{name} {number}" for name, number in setup["versions"].items())
    lines = [
        f"{setup['date']}; {setup['hardware']}, {setup['threads']} CPU threads; {versions}.",
        f"Checkpoint: {setup['checkpoint']}, {setup['parameters'] / 1e6:.1f} M parameters, {setup['dtype']}, "
        f"{setup['image_tokens']} tokens an image.",
        f"Answers of {setup['new_tokens']} tokens, boxes of {setup['box_tokens']}; {setup['samples']} "
        f"questions, {setup['repeats']} times. Times: medians (quartiles).",
        "",
        _table([_cells(row) for row in report["rows"]], text_columns=(1, 2)),
        "",
        *_bounds(report["bounds"]),
        "",
        *(_engine_line(facts) for facts in report["engines"]),
        *_floor_lines(report["floors"]),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, str]], text_columns: Sequence[int]) -> str:
    aligned = ["left" if column in text_columns else "right" for column in range(len(rows[0]))]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True, colalign=aligned)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "batch": str(row["batch_size"]),
        "mode": row["mode"],
        "engine": row["engine"],
        "n": str(row["n"]),
        "time / macro only": _spread(row["time"]),
        "time / release's way": _spread(row["time_to_release"]),
        "s per question": f"{row['seconds_per_sample']['median']:.3f}",
        "skipped": f"{row['skipped']:.1%}",
        "LM tokens per question": f"{row['tokens_per_sample']:.1f}",
        "tokens / macro only": f"{row['token_ratio']:.3f}",
        "LM forwards per batch": f"{row['forwards_per_batch']:.1f}",
        "encodes per question": f"{row['encodes_per_sample']:.2f}",
        "peak memory, MiB": "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}",
    }


def _spread(values: dict[str, Any] | None) -> str:
    return "-" if values is None else f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def _bounds(bounds: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each ratio and batch size, a column for each engine."""
    if not bounds:
        return ["No engine was held to the bounds."]
    engines = list(dict.fromkeys(bound["engine"] for bound in bounds))
    rows: dict[tuple[int, str], dict[str, str]] = {}
    for bound in bounds:
        cells = {
            "bound": bound["what"],
            "batch": str(bound["batch_size"]),
            "at most": f"{bound['limit']:.2f}",
        }
        row = rows.setdefault((bound["batch_size"], bound["what"]), cells | dict.fromkeys(engines, "-"))
        row[bound["engine"]] = f"{bound['measured']:.2f}: {_verdict(bound['holds'])}"
    return [_table(list(rows.values()), text_columns=(0, *range(3, 3 + len(engines))))]


def _engine_line(facts: dict[str, Any]) -> str:
    return (
        f"- Engines {facts['engine']} and naive: {facts['same_tokens']} of {facts['answers']} replies have "
        f"the same tokens, log-probabilities differ by at most {facts['largest_gap']:.1e}. All the same and "
        f"at most {facts['tolerance']:.0e}, as float32 must be: {_verdict(facts['holds'])}."
    )


def _floor_lines(floors: Sequence[dict[str, Any]] | None) -> list[str]:
    if floors is None:
        return ["- Shares of the floors of memory and arithmetic: not measured, for there was no GPU."]
    return [
        f"- Floors, batch {facts['batch_size']}: prefill, {facts['prefill_operations'] / _TERA:.2f} TFLOP in "
        f"{facts['prefill_seconds'] * 1e3:.1f} ms ({facts['prepare_seconds'] * 1e3:.1f} ms on the CPU), "
        f"reaches {facts['prefill_share']:.0%} of the rate of a matrix product "
        f"({facts['matmul_rate'] / _TERA:.0f} TFLOP/s); a decoding step, "
        f"{facts['step_bytes'] / _GIGA:.2f} GB in {facts['step_seconds'] * 1e3:.2f} ms, "
        f"{facts['step_share']:.0%} of the rate of a copy ({facts['copy_rate'] / _GIGA:.0f} GB/s)."
        for facts in floors
    ]


def _verdict(holds: bool | None) -> str:
    return "not judged" if holds is None else "holds" if holds else "DOES NOT HOLD"
