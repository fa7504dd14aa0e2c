"""Start-up of `dualfocus eval` against the bare host, interleaved: from process start to the first question.

    python examples/startup.py CHECKPOINT [--repeats 5]

Needs DUALFOCUS_DATA with POPE's files. Prints the medians in seconds, their spread and their ratio.
"""

import argparse
import statistics
import subprocess
import sys
import time

REST = ["--model", "dualfocus", "--tasks", "df_pope_random", "--limit", "1", "--model_args"]
COMMANDS = {
    "dualfocus eval": [sys.executable, "-m", "dualfocus_lmms", "eval", *REST],
    "lmms-eval": [sys.executable, "-m", "lmms_eval", *REST],
}


READY = "Running generate_until requests"  # the host's last line before the first question


def start_up(command: list[str]) -> float:
    """Seconds from the start of a process to the line that says it is ready."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        ready = [time.perf_counter() - started for line in process.stdout if READY in line]
    if process.returncode or not ready:
        sys.exit(f"Failed, with exit code {process.returncode}: {' '.join(command)}")
    return ready[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(given.repeats):
        for name, command in COMMANDS.items():
            seconds[name].append(start_up([*command, f"pretrained={given.checkpoint}"]))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(
            f"{name:15} median {medians[name]:.1f} s, {min(times):.1f} to {max(times):.1f}, n = {len(times)}"
        )
    print(f"ratio {medians['dualfocus eval'] / medians['lmms-eval']:.2f}")


if __name__ == "__main__":
    main()
