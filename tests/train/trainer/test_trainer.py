"""Runs on a tiny model: against a loop written by hand, killed, on two processes, and sharded."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from killed import kill
from training_runs import SAME, STEPS, assert_same_run, evaluations, history, losses, weights
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration, get_scheduler

from dualfocus_lmms import Settings, UserError
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.train.data.samples import read_samples
from dualfocus_lmms.train.trainer.evaluation import evaluate, summary
from dualfocus_lmms.train.trainer.recipe import load_recipe, training_arguments
from dualfocus_lmms.train.trainer.trainer import build, last_checkpoint, train, weighted_loss

pytestmark = pytest.mark.seconds(70)

CHILD = "import sys; from dualfocus_lmms.train.trainer.trainer import train; train(sys.argv[1], sys.argv[2:])"


@pytest.fixture(scope="module")
def whole_run(common, tmp_path_factory) -> Path:
    """The output folder of a run that nothing interrupted, on one process."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert train("tiny_cpu", [*common, f"output={output}"]) == output / "model"
    return output


def by_hand(common: list[str], output: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same run as a loop over torch and transformers alone: its losses and weights."""
    recipe = load_recipe("tiny_cpu", [*common, f"output={output}"])
    ready = build(recipe, training_arguments(recipe, 1))
    model = LlavaForConditionalGeneration.from_pretrained(recipe.model, dtype=torch.float32).train()
    model.model.vision_tower.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, math.ceil(0.03 * STEPS), STEPS)
    curve = []
    for step in range(STEPS):
        rows = [ready.mixture[8 * step + place] for place in range(8)]
        batch = ready.trainer.data_collator(rows)
        labels = batch.pop("labels")
        logits = model(**batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve, model.state_dict()


def test_a_run_equals_a_loop_written_by_hand(common, whole_run, tmp_path):
    curve, by_loop = by_hand(common, tmp_path / "none")
    assert losses(whole_run) == pytest.approx(curve, abs=SAME)
    assert curve[-1] < curve[0]
    ours = weights(whole_run / "model")
    assert max((ours[name] - by_loop[name]).abs().max().item() for name in by_loop) < 1e-4


def test_only_the_parts_that_learn_have_changed(tiny_checkpoint, whole_run):
    before, after = weights(tiny_checkpoint), weights(whole_run / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "vision_tower" not in name}


def test_evaluation_during_the_run_is_that_of_the_checkpoint(common, whole_run, sample_folders):
    """With another batch size; the figures are no coincidence: some answers are right and some are not."""
    recipe = load_recipe("tiny_cpu", [*common, f"output={whole_run}"])
    backend = make_engine("shared", load_checkpoint(str(whole_run / "model"), device="cpu"))
    samples = read_samples(sample_folders[1])
    figures = summary(evaluate(backend, samples, Settings.of("paper"), recipe.instruction, 5, 8))
    during = evaluations(whole_run)
    assert {f"8 {name}": value for name, value in figures.items()} == pytest.approx(
        {name: value for name, value in during.items() if name.startswith("8 ")}, abs=1e-6
    )
    assert {name.split()[0] for name in during} == {"4", "8"}
    assert 0 < figures["box_iou"] < 1
    assert 0 < figures["macro"] < 1
    assert 0 < figures["micro"] < 1


def test_the_checkpoint_works_in_plain_transformers(whole_run, sample_folders):
    folder = whole_run / "model"
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("USER: <image>\nwhat? ASSISTANT:")
    image = read_samples(sample_folders[1])[0].image.decode()
    inputs = processor(images=image, text=text, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert said.shape[1] > inputs["input_ids"].shape[1]
    assert model.config.get_text_config().use_cache
    assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(folder).eos_token_id
    assert not (folder / "training_args.bin").exists()


def test_a_finished_run_is_left_alone_and_another_one_is_refused(common, whole_run):
    written = (whole_run / "model" / "model.safetensors").stat().st_mtime_ns
    note = whole_run / "recipe.json"
    older = json.loads(note.read_text())  # as before these keys were there
    del older["chat_template"]
    for source in older["data"]:
        del source["box_jitter"]
    note.write_text(json.dumps(older))
    assert train("tiny_cpu", [*common, f"output={whole_run}"]) == whole_run / "model"
    assert (whole_run / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="seed"):
        train("tiny_cpu", [*common, f"output={whole_run}", "seed=1"])


def test_a_killed_run_continues_as_if_nothing_had_happened(common, whole_run, tmp_path):
    """SIGKILL after the first checkpoint; half of a later checkpoint is passed over."""
    output = tmp_path / "run"
    kill(["-c", CHILD, "tiny_cpu", *common, f"output={output}"], lambda: last_checkpoint(output))
    stopped = last_checkpoint(output)
    assert stopped is not None
    assert not (output / "model").exists()
    half = output / f"checkpoint-{STEPS + 2}"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"log_history": [')
    assert last_checkpoint(output) == stopped
    train("tiny_cpu", [*common, f"output={output}"])
    assert_same_run(output, whole_run)
    steps = [entry["step"] for entry in history(output) if "loss" in entry]
    assert steps == list(range(1, STEPS + 1))


# Three runs on the same two processes: their start takes longest. accelerate passes over FSDP in silence on a
# CPU, so they tell it that they are GPUs.
TWO_PROCESSES = """
import json, shutil, sys
import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from dualfocus_lmms.train.trainer import trainer

common, fsdp, qwen, folder = json.loads(sys.argv[1])
trainer.train("tiny_cpu", [*common, f"output={folder}/plain"])
trainer.train("tiny_cpu", [*common, *qwen, f"output={folder}/qwen"])

real = trainer.training_arguments
def pretend(*given):
    arguments = real(*given)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments

trainer.training_arguments = pretend
divided = [*common, *fsdp, f"output={folder}/divided"]
AcceleratorState._reset_state()
trainer.train("tiny_cpu", divided)
torch.distributed.barrier()
if torch.distributed.get_rank() == 0:
    shutil.copytree(f"{folder}/divided", f"{folder}/divided, whole")
    for name in ("model", "checkpoint-8"):
        shutil.rmtree(f"{folder}/divided/{name}")
torch.distributed.barrier()
AcceleratorState._reset_state()
trainer.train("tiny_cpu", divided)
"""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> list[str]:
    """Overrides for another family, two steps of it, whose model tells a Trainer to average micro batches."""
    folder = save_tiny_family(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")
    return [f"model={folder}", "steps=2", "evaluation=null", "max_length=2048"]


@pytest.fixture(scope="module")
def two_processes(common, qwen, tmp_path_factory) -> Path:
    """Runs on two processes: plain/; qwen/, another family; by FSDP "divided, whole"/; divided/, that one
    continued near its end."""
    import yaml

    from dualfocus_lmms.train.trainer.recipe import RECIPES

    given = yaml.safe_load((RECIPES / "llava15_7b_full_8gpu_fsdp.yaml").read_text())["training"]
    fsdp = ["training.fsdp=true", f"training.fsdp_config={json.dumps(given['fsdp_config'])}"]
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), json.dumps([common, fsdp, qwen, str(folder)])],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


def test_two_processes_make_the_run_of_one(whole_run, two_processes):
    output = two_processes / "plain"
    assert_same_run(output, whole_run)
    assert evaluations(output) == pytest.approx(evaluations(whole_run))


def test_two_processes_make_the_run_of_one_with_another_family(common, qwen, two_processes, tmp_path):
    train("tiny_cpu", [*common, *qwen, "micro_batch_size=8", f"output={tmp_path}"])
    assert_same_run(two_processes / "qwen", tmp_path)


def test_weights_divided_by_fsdp_make_the_same_run(whole_run, two_processes):
    """The FSDP settings of the 7B recipe: training, evaluation, continuing and the whole checkpoint."""
    output = two_processes / "divided, whole"
    assert (output / "checkpoint-8" / "pytorch_model_fsdp_0").is_dir()  # it was divided indeed
    assert_same_run(output, whole_run)
    assert evaluations(output) == pytest.approx(evaluations(whole_run))
    assert_same_run(two_processes / "divided", whole_run)


def test_samples_can_be_used_as_macro_questions_too(common, tmp_path):
    recipe = load_recipe("tiny_cpu", [*common, f"output={tmp_path / 'run'}"])
    assert [source.kind for source in recipe.data] == ["samples", "macro"]
    mixture = build(recipe, training_arguments(recipe, 1)).mixture
    assert mixture.counts == [80, 80]
    rounds = Counter(len(mixture.example(index).conversation.turns) // 2 for index in range(64))
    assert set(rounds) == {1, 2}


def test_weights_scale_the_loss_of_their_tokens():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, :3] = -100
    ones = torch.ones(2, 5)
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.isclose(weighted_loss(logits, labels, ones, None), plain)
    assert torch.isclose(weighted_loss(logits, labels, 3 * ones, None), 3 * plain)
    assert torch.isclose(weighted_loss(logits, labels, ones, 12), plain * 6 / 12)
    only = ones * torch.tensor([[0.0], [1.0]])
    second = torch.nn.functional.cross_entropy(logits[1, :-1], labels[1, 1:])
    assert torch.isclose(weighted_loss(logits, labels, only, None), second * 4 / 6)


def test_a_box_weight_of_nearly_one_is_nearly_the_plain_run(common, whole_run, tmp_path):
    """The weighted loss goes the same way through accumulation as the plain one."""
    output = tmp_path / "run"
    train("tiny_cpu", [*common, f"output={output}", "box_weight=1.000001", "steps=2"])
    assert losses(output)[0] == pytest.approx(losses(whole_run)[0], abs=SAME)
