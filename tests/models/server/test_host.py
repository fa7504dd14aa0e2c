"""`--model dualfocus_server` inside the host, and its model arguments."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Trace, UserError, read_traces
from dualfocus_lmms.models.host.options import parse_model_args
from dualfocus_lmms.models.server.host import Server, served
from dualfocus_lmms.models.server.options import ServerOptions
from dualfocus_lmms.options import FlowChoices, SettingOptions
from dualfocus_lmms.options_text import table
from dualfocus_lmms.trace import read_settings, trace_key

ROOT = Path(__file__).resolve().parents[3]
GIVEN = {"base_url": "http://localhost:8000/v1", "model": "m", "family": "llava"}


@pytest.fixture
def run(run_command: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run the host here on 12 questions about 4 images; all that is given are model and model arguments."""
    lines = []
    for number, color in enumerate([(250, 20, 20), (20, 250, 20), (20, 20, 250), (220, 180, 90)]):
        Image.new("RGB", (60 + 30 * number, 50), color).save(tmp_path / f"{number}.png")
        for thing in ("cat", "dog", "tv"):
            lines.append({"image": f"{number}.png", "question": f"Is there a {thing}?", "answer": "yes"})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {
        "DUALFOCUS_LOCAL": str(tmp_path / "questions.jsonl"),
        "LMMS_EVAL_DATASETS_CACHE": str(tmp_path / "cache"),
        "OPENAI_API_KEY": "from-the-environment",
    }

    def start(model: str, model_args: str) -> subprocess.CompletedProcess[str]:
        asked = ["--tasks", "df_local", "--model", model, "--model_args", model_args]
        return run_command("dualfocus", "eval", *asked, env=environment)

    return start


def traces_of(folder: Path) -> dict[str, Trace]:
    traces, damaged = read_traces(folder)
    assert damaged == []
    return {trace_key(trace.key): trace for trace in traces}


def test_a_run_whose_server_dies_resumes_and_ends_with_the_local_answers(
    stub, run, tiny_checkpoint, tmp_path
):
    folder = tmp_path / "served"
    args = f"base_url={stub.url},model=tiny,family=llava,trace={folder},concurrency=5,retries=1"
    stub.dies_after = 17  # 10 of them at most to the 5 questions that were under way
    done = run("dualfocus_server", args)
    assert done.returncode == 1, done.stderr[-3000:]
    assert stub.url in done.stderr.splitlines()[-1]
    before = (folder / "rank0.jsonl").read_bytes()
    finished = before.count(b"\n")
    assert 3 <= finished <= 12

    stub.revive()
    asked = len(stub.bodies)
    done = run("dualfocus_server", f"{args},resume=True")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "rank0.jsonl").read_bytes().startswith(before)
    assert len(stub.bodies) - asked <= 3 * (12 - finished)
    assert stub.peak == 5
    assert stub.keys == {"Bearer from-the-environment"}
    settings = read_settings(folder)
    assert (settings["model"], settings["family"], settings["checkpoint"]) == (
        "tiny",
        "llava",
        "/weights/tiny",
    )
    assert "api_key" not in settings

    done = run("dualfocus", f"pretrained={tiny_checkpoint},device=cpu,trace={tmp_path / 'local'}")
    assert done.returncode == 0, done.stderr[-3000:]
    served, local = traces_of(folder), traces_of(tmp_path / "local")
    assert len(served) == 12
    assert served.keys() == local.keys()
    assert any(trace.micro is not None for trace in local.values())
    for key, trace in served.items():
        other = local[key]
        assert (trace.box, trace.crop, trace.selection.pathway) == (
            other.box,
            other.crop,
            other.selection.pathway,
        )
        assert (trace.prompts, trace.image_hash) == (other.prompts, other.image_hash)
        for answer, same in zip(trace.answers, other.answers, strict=True):
            assert (answer.text, answer.tokens, answer.ended) == (same.text, same.tokens, same.ended)
            assert answer.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def test_a_server_that_does_not_run_is_said_before_any_question(run):
    done = run("dualfocus_server", "base_url=http://127.0.0.1:9/v1,model=tiny,family=llava,retries=0")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_the_model_must_be_the_servers(client):
    assert served(client(), "tiny") == "/weights/tiny"
    with pytest.raises(UserError):
        served(client(), "huge")


# --- model arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["base_url", "model", "family"])
def test_server_model_and_family_are_needed(missing):
    with pytest.raises(UserError):
        ServerOptions.of({name: value for name, value in GIVEN.items() if name != missing})


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "http://[::1"},
        {"concurrency": 0},
        {"concurrency": "many"},
        {"concurrency": True},
        {"retries": -1},
        {"timeout": 0},
        {"timeout": "long"},
        {"guided_box": "yes"},
        {"resume": True},
        {"resume": "yes", "trace": "somewhere"},
        {"protocol": "papre"},
        {"select": "loudest"},
        {"select": "micro_context"},
        {"protocol": "release"},
        {"device": "cpu"},
        {"batch_size": 4},
        {"pretrained": "somewhere"},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(UserError):
        ServerOptions.of(GIVEN | wrong).settings()


def test_an_unknown_family_is_refused_before_the_server_is_asked():
    with pytest.raises(UserError, match="llava"):
        Server(**GIVEN | {"family": "lava", "base_url": "http://127.0.0.1:9/v1", "retries": 0})


def test_a_batch_size_of_the_host_and_several_processes_are_refused(monkeypatch):
    text = "base_url=http://127.0.0.1:9/v1,model=m,family=llava"
    with pytest.raises(UserError, match="concurrency=8"):
        Server.create_from_arg_string(text, {"batch_size": "8", "device": None})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError):
        Server.create_from_arg_string(text, {"batch_size": 1})


def test_names_made_of_digits_stay_as_they_were_written():
    options = ServerOptions.of(
        parse_model_args("base_url=http://h:1/v1,model=1e3,family=llava,api_key=007", ServerOptions)
    )
    assert (options.model, options.api_key) == ("1e3", "007")
    assert "007" not in repr(options)


def test_where_the_server_stands_and_how_fast_it_is_asked_do_not_decide_a_run():
    first = ServerOptions.of(GIVEN | {"api_key": "a", "concurrency": 3, "trace": "x", "timeout": 5})
    second = ServerOptions.of(GIVEN | {"base_url": "https://elsewhere/v1", "retries": 0})
    assert first.identity() == second.identity()
    for change in ({"model": "n"}, {"guided_box": True}, {"box_margin": 3}, {"select": "micro"}):
        assert ServerOptions.of(GIVEN | change).identity() != first.identity()


def test_every_setting_of_the_flow_can_be_given():
    """But for the one that needs the image's tiles, which are made at the server."""
    assert set(SettingOptions.model_fields) - set(ServerOptions.model_fields) == {"subimage", "keep_maps"}


def test_the_table_of_arguments_is_the_declaration():
    text = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- arguments -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table(ServerOptions, without=FlowChoices.model_fields)
