"""Folders that are no whole checkpoint: each says what to do, and an adapter is loaded on its base."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from dualfocus_lmms import UserError
from dualfocus_lmms.models.checkpoint import folder
from dualfocus_lmms.models.checkpoint.folder import load_error
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.convert.weight_files import open_weights


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_an_adapter_is_merged_into_its_base(tmp_path: Path, tiny_checkpoint: Path):
    base = load_checkpoint(str(tiny_checkpoint), device="cpu")
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    torch.manual_seed(0)
    trained: Any = get_peft_model(
        base.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    trained.peft_config["default"].base_model_name_or_path = str(tiny_checkpoint)
    trained.save_pretrained(tmp_path / "adapter")
    merged = trained.merge_and_unload().state_dict()
    loaded = load_checkpoint(str(tmp_path / "adapter"), device="cpu").model.state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], merged[name]) for name in loaded)
    changed = {name for name in loaded if not torch.equal(loaded[name], before[name])}
    assert changed
    assert all("q_proj" in name for name in changed)


def test_an_adapter_that_does_not_name_its_base_is_refused(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="base_model_name_or_path"):
        load_checkpoint(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "part", ["tokenizer.json", "model.safetensors", "config.json", "preprocessor_config.json"]
)
def test_a_pointer_of_git_lfs_is_named(copy: Path, part: str):
    (copy / part).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=f"{part}.*git lfs pull"):
        load_checkpoint(str(copy), device="cpu")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("paligemma", "family=generic"),
        ("internvl_chat", "-hf"),
        ("", "model_type"),
        ("gpt9", "family=generic"),
    ],
)
def test_a_type_that_is_not_handled_says_what_is(copy: Path, kind: str, remedy: str):
    settings = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": kind}))
    with pytest.raises(UserError, match=remedy):
        load_checkpoint(str(copy), device="cpu")


def test_an_older_transformers_that_lacks_the_architecture_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folder, "CONFIG_MAPPING", {})
    with pytest.raises(
        UserError, match=rf"transformers {transformers.__version__}.*'llava'.*compatibility.md"
    ):
        load_checkpoint(str(copy), device="cpu")


def test_a_tokenizer_without_a_vocabulary_is_refused(copy: Path):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(UserError):
        load_checkpoint(str(copy), device="cpu")


@pytest.mark.parametrize("name", ["llava-next-video-7b-hf", "internvl2-8b-remote-code"])
def test_published_checkpoints_that_no_family_handles_say_what_to_do(name: str, shared_data: Path):
    with pytest.raises(UserError, match=r"family=generic|-hf"):
        load_checkpoint(str(shared_data / "checkpoints" / name), device="cpu")


class Planted:
    """What a pickle makes a reader call."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_pickled_code_never_runs_and_nothing_advises_it(copy: Path, tmp_path: Path):
    (copy / "model.safetensors").unlink()
    torch.save({"weight": Planted(tmp_path / "ran")}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors") as caught:
        load_checkpoint(str(copy), device="cpu")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="safetensors") as caught:
        open_weights(copy / "pytorch_model.bin")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "key", "kind"),
    [
        ("config.json", "AutoModelForImageTextToText", "own"),
        ("processor_config.json", "AutoProcessor", "llava"),
    ],
)
def test_code_of_a_checkpoint_never_runs_and_nothing_asks(
    copy: Path, tmp_path: Path, file: str, key: str, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    path = copy / file
    settings = json.loads(path.read_text("utf-8")) if path.exists() else {}
    code = {"auto_map": {"AutoConfig": "own.Own", key: "own.Own"}, "processor_class": "Own"}
    path.write_text(json.dumps(settings | code | ({"model_type": kind} if file == "config.json" else {})))
    if file == "config.json":
        with pytest.raises(UserError, match="-hf") as caught:
            load_checkpoint(str(copy), device="cpu", family="generic")
        assert "trust_remote_code" not in str(caught.value)
    else:
        with suppress(UserError):
            load_checkpoint(str(copy), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "error",
    [ValueError("set the option `trust_remote_code=True` to remove this error"), UnpicklingError("x")],
)
def test_advice_to_run_what_is_in_a_file_is_not_repeated(error: Exception):
    assert "True" not in load_error(error)
    assert "never runs" in load_error(error)
    assert load_error(ValueError("no such file")) == "no such file"
