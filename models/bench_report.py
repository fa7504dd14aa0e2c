"""The benchmark's figures as a page of Markdown. Knows neither models nor clocks: see `bench`."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate


def markdown(report: dict[str, Any]) -> str:
    """How it was run, a table with a row for each batch size and mode, and what was checked."""
    setup = report["setup"]
    versions = ", ".join(f"{name} {number}" for name, number in setup["versions"].items())
    table = tabulate(
        [_cells(row) for row in report["rows"]],
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
        colalign=("right", "left", *["right"] * 8),
    )
    lines = [
        f"{setup['date']}; {setup['hardware']}, {setup['threads']} CPU threads; {versions}.",
        f"Checkpoint: {setup['checkpoint']}, {setup['parameters'] / 1e6:.1f} M parameters, {setup['dtype']}, "
        f"{report['tokens']['image_tokens']} tokens an image.",
        f"Replies of {setup['new_tokens']} tokens, boxes of {setup['box_tokens']}. Ratios are to macro only, "
        f"of times the median of {setup['repeats']} repeats (smallest to largest).",
        "",
        table,
        "",
        _token_line(report["tokens"]),
        *(_memory_line(facts) for facts in report["memory"]),
        _engines_line(report["engines"]),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> dict[str, str]:
    spread = f"({row['time_ratio_min']:.2f} to {row['time_ratio_max']:.2f})"
    return {
        "batch": str(row["batch_size"]),
        "mode": row["mode"],
        "n": str(row["n"]),
        "time, ratio": f"{row['time_ratio']:.2f} {spread}",
        "s per sample": f"{row['seconds_per_sample']:.3f}",
        "skipped": f"{row['skipped']:.1%}",
        "LM tokens per sample": f"{row['tokens_per_sample']:.1f}",
        "tokens, ratio": f"{row['token_ratio']:.3f}",
        "LM forwards per batch": f"{row['forwards_per_batch']:.1f}",
        "picture encodes per sample": f"{row['encodes_per_sample']:.2f}",
    }


def _token_line(facts: dict[str, Any]) -> str:
    return (
        f"- LM tokens per sample, DualFocus: {facts['ratio']:.3f} times macro only. "
        f"At most {facts['bound']} where an image is 576 tokens: {_verdict(facts['holds'])}."
    )


def _memory_line(facts: dict[str, Any]) -> str:
    line = f"- Peak memory, batch {facts['batch_size']}, weights included: "
    second = f"{_mib(facts['second_image_bytes'])} for the cache of the second image's tokens"
    if facts["holds"] is None:
        return f"{line}not measured (this takes CUDA or Linux). {second}."
    return (
        f"{line}DualFocus {_mib(facts['dualfocus_bytes'])}, macro only {_mib(facts['macro_bytes'])}, "
        f"ratio {facts['ratio']:.3f}. At most {_mib(facts['bound_bytes'])}, {facts['factor']} times macro "
        f"only and {second}: {_verdict(facts['holds'])}."
    )


def _engines_line(facts: dict[str, Any]) -> str:
    return (
        f"- Shared and naive engine, {facts['samples']} samples, {facts['dtype']}: {facts['same_tokens']} of "
        f"{facts['answers']} replies have the same tokens, log-probabilities differ by at most "
        f"{facts['largest_gap']:.1e}. All the same and at most {facts['tolerance']:.0e}, as float32 must be: "
        f"{_verdict(facts['holds'])}."
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _verdict(holds: bool | None) -> str:
    return "not judged" if holds is None else "holds" if holds else "DOES NOT HOLD"
