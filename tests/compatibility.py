"""Installs the package from nothing with the lowest, the pinned and the newest releases, and tries each.

    python tests/compatibility.py [--python 3.12] [--set newest] [--folder FOLDER]

Needs uv, and the Pythons that are to be tried: on PATH, of pyenv, or given as paths. Each set of releases is
installed into an environment of its own and used from a folder outside the source: an evaluation through
lmms-eval, the contract tests, and the comparison of engines on every family. Rows go to
results/data/compatibility.json as they are done; docs/compatibility.md is written from it. Exit code 1 where
a row fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from configparser import ConfigParser
from datetime import date
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE = ROOT / "results" / "data" / "compatibility.json", ROOT / "docs" / "compatibility.md"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
BARE_GPU = "torch==2.11.*", "torchvision==0.26.*", "transformers==5.17.*", "accelerate==1.15.*"
SETS = {
    "lowest": "the lowest releases that setup.cfg allows and that are built for this Python",
    "pinned": "constraints.txt",
    "newest": "the newest releases that fit together",
    "gpu": "torch 2.11, transformers 5.17 and accelerate 1.15, as rented GPU machines have with Python 3.12",
}
SHOWN = ("lmms-eval", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "pandas", "pillow")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PLAIN = ("-n", "0", "-v", "--no-header", "-o", "pythonpath=")  # an installed copy is tried, not the source
LOG_LINES = 30


class CommandError(Exception):
    """A command that ended with another exit code than 0; the last lines that it printed."""


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """What a command prints. CommandError when it does not end with 0."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CommandError("\n".join(done.stdout.splitlines()[-LOG_LINES:]))
    return done.stdout


def find_python(name: str) -> str | None:
    """The interpreter of a version such as 3.12, or at a path; None where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [name] if "/" in name else [f"python{name}", *pyenv.glob(f"{name}.*/bin/python")]
    for candidate in candidates:
        command = [candidate, "-c", "import sys; print(sys.executable)"]
        if shutil.which(candidate):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout.strip()
    return None


def required() -> list[str]:
    """The names of the packages in setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split()
    return [match[0] for line in lines if (match := re.match(r"[a-z][\w-]*(?=[<>=])", line))]


def resolve(python: str, chosen: str, lock: Path) -> None:
    """Write the releases of a set that fit together on a Python."""
    options = ["--resolution", "lowest-direct" if chosen == "lowest" else "highest"]
    if chosen == "lowest":  # a release without a wheel for this Python would be compiled
        built = [*required(), "pydantic-core"]
        options += [word for name in built for word in ("--only-binary", name)]
    if chosen == "pinned":
        options += ["--constraints", str(ROOT / "constraints.txt")]
    if chosen == "gpu":
        wanted = lock.with_suffix(".in")
        wanted.write_text("\n".join(BARE_GPU), encoding="utf-8")
        options += ["--constraints", str(wanted)]
    command = ["uv", "pip", "compile", "--quiet", "--python", python, "--extra", "test", *options]
    run([*command, str(ROOT / "setup.cfg"), "--output-file", str(lock)], ROOT)


def install(python: str, lock: Path, environment: Path) -> Path:
    """A new virtual environment with the releases of a lock file and this package; its interpreter."""
    shutil.rmtree(environment, ignore_errors=True)
    run(["uv", "venv", "--quiet", "--no-python-downloads", "--python", python, environment], ROOT)
    interpreter = environment / "bin" / "python"
    pip = ["uv", "pip", "install", "--quiet", "--python", interpreter]
    run([*pip, "--requirement", lock], ROOT)
    run([*pip, "--no-deps", "--reinstall", ROOT], ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return interpreter


def versions(lock: Path) -> dict[str, str]:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    return {name: pinned[name] for name in SHOWN}


def evaluate(interpreter: Path, folder: Path) -> str:
    """The small model's accuracy on 60 questions, through lmms-eval."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [interpreter.parent / "dualfocus", "eval", "--model_args", "pretrained=dualfocus-nano"]
    options = ["--tasks", "df_nano", "--limit", "20", "--batch_size", "4", "--output_path", str(out)]
    run([*command, *options], folder, **OFFLINE)
    (file,) = out.rglob("*_results.json")
    score = json.loads(file.read_text(encoding="utf-8"))["results"]["df_nano"]["accuracy,none"]
    return f"{score:.1f}"


def test(interpreter: Path, *chosen: str) -> str:
    """How many tests passed; they run in the source, on what is installed."""
    command = [interpreter.parent / "pytest", *PLAIN, *chosen]
    printed = run(command, ROOT, **OFFLINE)
    return re.findall(r"(\d+ passed)", printed)[-1]


def try_set(python: str, chosen: str, folder: Path) -> dict[str, object]:
    """One row: what was installed, and what each step gave; "failed" and why where one did not end well."""
    number = run([python, "-c", "import platform; print(platform.python_version())"], ROOT).strip()
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, object] = {"python": number, "set": chosen, "date": date.today().isoformat()}
    row["machine"] = f"{platform.system()} {platform.machine()}, CPU"
    lock, started, step = folder / "lock.txt", time.monotonic(), "install"
    try:
        resolve(python, chosen, lock)
        row["versions"] = versions(lock)
        interpreter = install(python, lock, folder / "venv")
        steps = {
            "eval": lambda: evaluate(interpreter, folder),
            "contract": lambda: test(interpreter, "tests/contract"),
            "engines": lambda: test(
                interpreter,
                "tests/models/engines/test_families.py",
                "-k",
                "equals_the_naive_one_on_ragged_rows and not annotated",
            ),
        }
        for step, work in steps.items():
            row[step] = work()
    except CommandError as failure:
        row[step] = "failed"
        row["reason"] = str(failure)
    row["seconds"] = round(time.monotonic() - started)
    return row


def record(row: dict[str, object]) -> None:
    """Put a row into the file, in place of an older one of the same Python and set; write the page."""
    rows = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    minor = _minor(row)
    rows = [old for old in rows if (_minor(old), old["set"]) != (minor, row["set"])] + [row]
    rows.sort(key=lambda each: (_minor(each), list(SETS).index(str(each["set"]))))
    ROWS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


def _minor(row: dict[str, object]) -> tuple[int, ...]:
    return tuple(int(part) for part in str(row["python"]).split(".")[:2])


def page(rows: Sequence[dict[str, object]]) -> str:
    """docs/compatibility.md: a row for each Python and set."""
    table = []
    for row in rows:
        found: dict[str, str] = row.get("versions", {})  # type: ignore[assignment]
        results = [str(row.get(step, "-")) for step in ("eval", "contract", "engines")]
        table.append(
            [row["python"], row["set"], *(found.get(name, "") for name in SHOWN), *results, row["date"]]
        )
    headers = ["Python", "set", *SHOWN, "df_nano", "contract tests", "engine tests", "date"]
    sets = "\n".join(f"- `{name}`: {meaning}." for name, meaning in SETS.items())
    return f"""# Compatibility

Written by `make matrix`, which installs the package from nothing into a new environment for each row and uses
it from a folder outside the source. `df_nano` is the small model's accuracy in percent on 60 questions, the
same in every row with one edition of the model (76.7: the first), through `dualfocus eval`. Contract tests
check each name and behaviour of other packages that this one leans on; engine tests compare every fast engine
with the plain one on every model family. All on {rows[0]["machine"]}.

{tabulate(table, headers, tablefmt="github", disable_numparse=True)}

{sets}

Upper bounds stand in `setup.cfg` with their reasons. One row anew:
`make matrix ARGS="--python 3.12 --set newest"`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--python", action="append", help="a version or a path; all that are found by default"
    )
    parser.add_argument("--set", action="append", choices=list(SETS), help="which releases; all by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="for the environments")
    given = parser.parse_args()
    if not shutil.which("uv"):
        parser.error("uv is not on PATH: make matrix installs it into .venv")
    failed = 0
    for name in given.python or PYTHONS:
        python = find_python(name)
        if python is None:
            print(f"Python {name} is not installed: left out", file=sys.stderr)
            continue
        for chosen in given.set or SETS:
            if chosen == "gpu" and given.set is None and name != "3.12":
                continue
            folder = given.folder.resolve() / f"{Path(name).name}-{chosen}"
            row = try_set(python, chosen, folder)
            shutil.rmtree(folder / "venv", ignore_errors=True)
            record(row)
            results = " ".join(
                f"{step}={row.get(step, '-')}" for step in ("install", "eval", "contract", "engines")
            )
            print(f"{row['python']} {chosen}: {results} ({row['seconds']} s)", flush=True)
            if "reason" in row:
                failed += 1
                print(row["reason"], file=sys.stderr, flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
