"""Start-up of `dualfocus eval` against the bare host, interleaved: one question each, from process start to exit.

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(given.repeats):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([*command, f"pretrained={given.checkpoint}"], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(
            f"{name:15} median {medians[name]:.1f} s, {min(times):.1f} to {max(times):.1f}, n = {len(times)}"
        )
    print(f"ratio {medians['dualfocus eval'] / medians['lmms-eval']:.2f}")


if __name__ == "__main__":
    main()
