"""A conversion while it runs: a full disk, a kill, its peak memory, and what the command prints."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from original_llava import VOCABULARY, WIDTH, compare
from transformers import LlamaConfig, LlamaForCausalLM

from dualfocus_lmms import UserError, cli
from dualfocus_lmms.models.convert import llava as module
from dualfocus_lmms.models.convert.llava import convert

pytestmark = pytest.mark.seconds(40)


def test_a_full_disk_leaves_nothing_behind(make, own_tower, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_index", full)
    with pytest.raises(UserError, match="No space left"):
        convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out*"))


KILLED = """
import os, signal, sys
from dualfocus_lmms.models.convert import llava as convert
convert.write_index = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
convert.convert(sys.argv[1], sys.argv[2], progress=False)
"""


def test_a_killed_conversion_looks_unfinished_and_can_be_begun_again(make, own_tower, original, tmp_path):
    source, target = str(make(mm_vision_tower=own_tower)), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, source, target], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert not (tmp_path / "out.partial" / "config.json").exists()
    assert list((tmp_path / "out.partial").glob("*.safetensors"))
    convert(source, target, progress=False)
    assert compare(target, original) < 1e-5
    assert not (tmp_path / "out.partial").exists()


MEASURED = """
import sys
from pathlib import Path
from dualfocus_lmms.models.convert.llava import convert, plan

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])

source, target, dtype = sys.argv[1:]
plan(source, dtype=dtype)  # loads all that is loaded on first use
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
convert(source, target, dtype=dtype, progress=False)
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize(("form", "dtype"), [("bin", "auto"), ("safetensors", "bfloat16")])
def test_the_peak_memory_is_below_one_and_a_fifth_shards(make, own_tower, original, tmp_path, form, dtype):
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 6, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, **sizes)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    state = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    state |= {name: value for name, value in original.weights(tower=True).items() if "vision" in name}
    for name, shape in (("0", (1024, 32)), ("2", (1024, 1024))):
        state |= {f"model.mm_projector.{name}.weight": torch.ones(shape)}
        state |= {f"model.mm_projector.{name}.bias": torch.ones(shape[:1])}
    source = make(form, 4, state=state, mm_vision_tower=own_tower, **sizes)
    shard = max(file.stat().st_size for file in source.iterdir())

    def peak(number):
        command = [sys.executable, "-c", MEASURED, source, tmp_path / f"out{number}", dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    # The system counts some megabytes more now and then, never fewer.
    assert any(peak(number) < 1.2 * shard for number in range(4))
    assert sum(file.stat().st_size for file in source.iterdir()) > 3.5 * shard


def test_the_command_prints_what_it_converted(make, own_tower, tmp_path, monkeypatch, capsys):
    source = make(mm_vision_tower=own_tower)
    for target, code in ((tmp_path / "out", 0), (tmp_path / "out", 2)):
        monkeypatch.setattr(sys, "argv", ["dualfocus", "convert", str(source), str(target)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
    printed = capsys.readouterr()
    table = {line.split("  ")[0].strip(): line.split() for line in printed.out.splitlines() if "  " in line}
    assert table["projector"][1:3] == ["4", f"{32 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH:,}"]
    assert table["dropped: computed from config.json"][4] == "2"
    assert printed.err.endswith("give a new folder.\n")
