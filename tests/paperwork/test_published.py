"""Published checkpoints, real but for their weights: prompts, engines, training, conversion, adapters."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paperwork.build import GENERIC, SIZES, Built, assert_same, copy
from peft import PeftConfig, get_peft_model
from transformers import AutoProcessor

from dualfocus_lmms import Box, Conversation, DualFocusModel, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.convert.llava import convert
from dualfocus_lmms.models.engines.backend import own_settings_ignored
from dualfocus_lmms.models.engines.registry import ENGINES, make_engine
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.trace import read_settings
from dualfocus_lmms.train.data.conversations import Encoder, from_sample
from dualfocus_lmms.train.data.export import export
from dualfocus_lmms.train.data.samples import (
    SampleImage,
    TrainingSample,
    read_samples,
    shard_path,
    write_shard,
)
from dualfocus_lmms.train.trainer.collate import llava_source
from dualfocus_lmms.train.trainer.trainer import train
from dualfocus_lmms.types import Prompt

pytestmark = pytest.mark.seconds(60)

Builds = Callable[[str], Built]
LLAVA_15 = "llava-1.5-7b-hf"
FAMILIES = [name for name in SIZES if name not in GENERIC]
# Where only the numbers of layers differ from a sibling, its prompts are enough; SmolVLM's 860 tokens an
# image would take a minute, and test_evaluation.py runs them.
PROMPTS_ON = ("qwen3-vl-8b-instruct", "qwen3-vl-embedding", "smolvlm-256m")
ENGINES_ON = [name for name in FAMILIES if name not in PROMPTS_ON]
# By name: whose template is used, the tokens that end a reply, tokens of an image of 300 x 200 pixels.
FACTS = {
    LLAVA_15: ("family", {"</s>"}, 576),
    "qwen2.5-vl-7b-instruct": ("checkpoint", {"<|im_end|>", "<|endoftext|>"}, 77),
    "qwen2-vl-processor-new-format": ("checkpoint", {"<|im_end|>", "<|endoftext|>"}, 77),
    "qwen3-vl-4b-instruct": ("checkpoint", {"<|im_end|>", "<|endoftext|>"}, 70),
    "qwen3-vl-8b-instruct": ("checkpoint", {"<|im_end|>", "<|endoftext|>"}, 70),
    "qwen3-vl-embedding": ("checkpoint", {"<|im_end|>"}, 54),
    "smolvlm-256m": ("checkpoint", {"<end_of_utterance>"}, 862),
    "granite-docling-258m": ("checkpoint", {"<|end_of_text|>"}, 862),
}


def two_rounds(noise: Any) -> Conversation:
    """As DualFocus asks: image, box, crop."""
    located = Conversation().user("Where is it?", noise(300, 200)).assistant("[0.25, 0.25, 0.50, 0.75]")
    return located.user("What is it?\nAnswer with one word.", noise(64, 90))


@pytest.mark.parametrize("name", SIZES)
def test_prompts_are_golden_and_what_the_checkpoints_own_processor_makes(
    name: str, built: Builds, noise: Any, golden: Callable[[str, str], None]
):
    checkpoint, engine = built(name).checkpoint, built(name).engine()
    used, ends, tokens = FACTS[name]
    assert engine.template.used == used
    assert {checkpoint.tokenizer.convert_ids_to_tokens(token) for token in engine.eos_ids} == ends
    conversation = two_rounds(noise)
    ours = engine.renderer.render(conversation, engine.image_reader.ids)
    text, end = "", 0
    for start, length in ours.spans:
        text += checkpoint.tokenizer.decode(ours.ids[end:start]) + f"[image, {length} tokens]"
        end = start + length
    golden(f"paperwork/{name}.txt", text + checkpoint.tokenizer.decode(ours.ids[end:]) + "\n")
    processor = checkpoint.processor or AutoProcessor.from_pretrained(built(name).folder)
    written = processor.apply_chat_template(
        conversation.messages(), chat_template=engine.renderer.template.text, add_generation_prompt=True
    )
    theirs = processor(
        text=[written], images=[list(conversation.images)], add_special_tokens=False, return_tensors="pt"
    )
    assert list(ours.ids) == theirs["input_ids"][0].tolist()
    assert ours.spans[0][1] == tokens


@pytest.mark.parametrize("name", ENGINES_ON)
def test_every_engine_gives_the_answers_of_the_plain_model(name: str, built: Builds, asked: Any):
    found = {each: answer_batch(built(name).engine(each), *asked, Settings.of()) for each in sorted(ENGINES)}
    for traces in found.values():
        assert_same(traces, found["naive"])
        assert all(trace.micro is not None for trace in traces)
    assert {trace.chat_template_used for trace in found["tree"]} == {FACTS[name][0]}


def test_a_model_that_no_family_knows_answers(built: Builds, asked: Any):
    questions, _ = (column[:1] for column in asked)
    engine = built("granite-docling-258m").engine()
    (trace,) = answer_batch(engine, questions, [StopCriteria(2)], Settings.of(grounding="center"))
    assert trace.micro is not None
    assert (trace.chat_template, trace.chat_template_used) == ("auto", "checkpoint")


def test_the_checkpoints_own_penalty_changes_no_token(built: Builds, asked: Any):
    """Qwen2.5-VL is published with repetition_penalty 1.05 and sampling: every engine decodes raw logits."""
    model = built("qwen2.5-vl-7b-instruct")
    assert model.checkpoint.model.generation_config.repetition_penalty == 1.05
    engine = model.engine("naive")
    question = Conversation().user(asked[0][1].prompt, asked[0][1].image)
    (answer,) = engine.generate(Prompt.batch("macro", [question], [StopCriteria(6)]))
    rendered = engine.renderer.render(question, engine.image_reader.ids)
    ids = torch.tensor([[*rendered.ids, *answer.tokens]])
    logits = engine.logits(ids, rendered.images)[0, len(rendered.ids) - 1 : -1].clone()
    logits[:, engine.image_token_id] = -torch.inf
    assert logits.argmax(-1).tolist() == list(answer.tokens)
    with own_settings_ignored(engine.model):
        assert engine.model.generation_config.repetition_penalty in (None, 1.0)


# --- LLaVA-1.5: one prompt, whatever the files -------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["both", "chat_template.jinja", "chat_template.json", "tokenizer_config.json", "none"]
)
def test_llava_15_has_one_prompt_in_every_layout_of_its_files(
    layout: str, built: Builds, tmp_path: Path, noise: Any
):
    model = built(LLAVA_15)
    folder = copy(model.folder, tmp_path / "copy")
    text = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
    for name in ("chat_template.jinja", "chat_template.json"):
        if layout not in (name, "both"):
            (folder / name).unlink()
    if layout == "tokenizer_config.json":
        settings = json.loads((folder / layout).read_text("utf-8"))
        (folder / layout).write_text(json.dumps(settings | {"chat_template": text}))
    conversation = two_rounds(noise)
    checkpoint, ids = load_checkpoint(str(folder), device="cpu"), {}
    for asked in ("auto", "family", "checkpoint"):
        if (asked, layout) == ("checkpoint", "none"):
            continue
        engine = make_engine(None, replace(checkpoint, chat_template=asked))
        ids[asked] = engine.renderer.render(conversation, engine.image_reader.ids).ids
        assert engine.template.used == {"auto": "family"}.get(asked, asked)
        assert engine.template.replaced == (asked == "auto" and layout != "none")
    assert ids["auto"] == ids["family"]
    assert ids.get("checkpoint") != ids["auto"]


def test_ask_says_whose_template_it_used(built: Builds, run_command: Any, tmp_path: Path, noise: Any):
    noise(64, 64).save(tmp_path / "image.png")
    arguments = [str(tmp_path / "image.png"), "What is it?", "--pretrained", str(built(LLAVA_15).folder)]
    done = run_command(
        "dualfocus", "ask", *arguments, "--device", "cpu", "--max-new-tokens", "2", "--json",
        "--chat-template", "checkpoint",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["chat_template"], told["chat_template_used"]) == ("checkpoint", "checkpoint")
    model = DualFocusModel(built(LLAVA_15).folder, device="cpu", grounding="center")
    trace = model.ask(noise(64, 64), "What is it?", max_new_tokens=2)
    assert (trace.chat_template, trace.chat_template_used) == ("auto", "family")


def test_a_run_records_whose_template_it_used(built: Builds, tmp_path: Path):
    from dualfocus_lmms.models.host.model import DualFocus

    given = {"pretrained": str(built(LLAVA_15).folder), "trace": str(tmp_path / "run"), "device": "cpu"}
    DualFocus(**given)
    settings = read_settings(tmp_path / "run")
    assert (settings["chat_template"], settings["chat_template_used"]) == ("auto", "family")


# --- training ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, noise: Any) -> Path:
    """Two samples with a box and one without."""

    def png(width: int, height: int) -> SampleImage:
        file = io.BytesIO()
        noise(width, height).save(file, "PNG")
        return SampleImage(file.getvalue(), f"{width}.png")

    box, crop = Box(0.25, 0.5, 0.75, 1.0), png(60, 40)
    boxed = [
        TrainingSample(f"s{number}", png(120 + number, 80), "What is it?", answer, box, crop)
        for number, answer in enumerate(["a dog", "a dark blue bus"])
    ]
    plain = TrainingSample("s2", png(64, 64), "Is it red?", "No")
    folder = tmp_path_factory.mktemp("samples") / "data"
    folder.mkdir()
    write_shard([*boxed, plain], shard_path(folder, 0))
    return folder


@pytest.mark.parametrize("name", [LLAVA_15, "qwen2.5-vl-7b-instruct", "qwen3-vl-4b-instruct"])
def test_what_is_trained_is_asked_in_the_same_words(
    name: str, built: Builds, samples: Path, tmp_path: Path, noise: Any
):
    """One step; the written checkpoint loads by itself and renders as the one it was made of."""
    given = [
        f"model={built(name).folder}",
        f"output={tmp_path}",
        f"data.0.path={samples}",
        f"data.1.path={samples}",
        "evaluation=null",
        "steps=1",
        "training.warmup_steps=0",
        "batch_size=2",
        "micro_batch_size=2",
        "max_length=2048",
        "train=[language_model]",
        "training.disable_tqdm=true",
    ]
    made = load_checkpoint(str(train("tiny_cpu", given)), device="cpu")
    engines, conversation = (make_engine(None, made), built(name).engine()), two_rounds(noise)
    trained, before = (engine.renderer.render(conversation, engine.image_reader.ids) for engine in engines)
    assert (trained.ids, trained.spans) == (before.ids, before.spans)
    assert engines[0].eos_ids == engines[1].eos_ids
    assert engines[0].template.used == "checkpoint"
    new, old = (engine.model.state_dict() for engine in engines)
    changed = [key for key in new if not torch.equal(new[key], old[key])]
    assert any("q_proj" in key for key in changed)
    if name == LLAVA_15:  # the hub's wording closes no turn: what learns from it never stops
        with pytest.raises(UserError, match="would not stop"):
            train("tiny_cpu", [*given, "chat_template=checkpoint", f"output={tmp_path / 'hubs'}"])


@pytest.mark.parametrize("name", [LLAVA_15, "qwen3-vl-4b-instruct"])
def test_exported_conversations_have_the_tokens_that_training_learns(
    name: str, built: Builds, samples: Path, tmp_path: Path
):
    checkpoint, engine = built(name).checkpoint, make_engine("naive", built(name).checkpoint)
    form, protocol = checkpoint.family.box_format, load_protocol("release")
    rows = read_samples(samples)
    file = export(rows, tmp_path, "llava", "release", form)
    read = llava_source(str(file), str(tmp_path))
    closing = checkpoint.tokenizer.eos_token_id
    encoder = Encoder(engine.renderer, engine.image_reader.ids, closing, 4096)
    for number, row in enumerate(rows):
        ours = encoder.encode(from_sample(row, protocol, form))
        theirs = encoder.encode(read.example(number))
        assert (ours.ids, ours.labels) == (theirs.ids, theirs.labels)
        assert sum(label == closing for label in ours.labels) == (1 if row.box is None else 2)


# --- adapters and the original format ----------------------------------------------------------------------


def test_an_adapter_that_peft_saved_is_merged_into_its_base(
    built: Builds, published: Path, tmp_path: Path, asked: Any
):
    """Real adapter_config.json, tokenizer and template beside it; random weights of the modules it names."""
    source, base = published / "llava-1.5-7b-hf-lora-new-format", built(LLAVA_15)
    with pytest.raises(UserError, match=LLAVA_15):  # its base is no folder here
        load_checkpoint(str(source), device="cpu")
    adapter = copy(source, tmp_path / "adapter")
    settings = PeftConfig.from_pretrained(str(adapter))
    settings.base_model_name_or_path, settings.inference_mode = str(base.folder), False
    torch.manual_seed(0)
    model = get_peft_model(load_checkpoint(str(base.folder), device="cpu").model, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(adapter)
    loaded = load_checkpoint(str(adapter), device="cpu")
    assert make_engine(None, loaded).template.used == "family"
    merged = loaded.model.model.language_model.layers[0].self_attn.o_proj.weight
    own = base.checkpoint.model.model.language_model.layers[0].self_attn.o_proj.weight
    trained = model.merge_and_unload().model.language_model.layers[0].self_attn.o_proj.weight
    assert torch.equal(merged, trained)
    assert not torch.equal(merged, own)


def original_of(model: Any) -> dict[str, torch.Tensor]:
    """A LLaVA model's weights by the names of the original format, without the rows of new tokens."""
    renamed = {
        "model.language_model.": "model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "lm_head.": "lm_head.",
    }
    state = {}
    for name, weight in model.state_dict().items():
        old = next(old for old in renamed if name.startswith(old))
        words = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        state[renamed[old] + name.removeprefix(old)] = (weight[:32000] if words else weight).clone()
    return state


def test_the_original_format_is_converted_to_what_the_hub_has(
    built: Builds, published: Path, tmp_path: Path, noise: Any
):
    """Real config.json and tokenizer.model of both: equal prompts, equal logits of the words there were."""
    hubs, folder = built(LLAVA_15), copy(published / "llava-v1.5-7b-original", tmp_path / "original")
    shutil.copy(published / LLAVA_15 / "tokenizer.model", folder)
    vision, text = hubs.checkpoint.model.config.vision_config, hubs.checkpoint.model.config.text_config
    vision.save_pretrained(tmp_path / "tower")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    narrow = {key: getattr(text, key) for key in settings.keys() & SIZES[LLAVA_15]["text_config"].keys()}
    narrow |= {"mm_vision_tower": str(tmp_path / "tower"), "mm_hidden_size": vision.hidden_size}
    (folder / "config.json").write_text(json.dumps(settings | narrow))
    torch.save(original_of(hubs.checkpoint.model), folder / "pytorch_model.bin")
    convert(str(folder), tmp_path / "converted", dtype="float32", progress=False)
    engines = [
        make_engine("naive", load_checkpoint(str(tmp_path / "converted"), device="cpu")),
        hubs.engine(),
    ]
    conversation = two_rounds(noise)
    rendered = [engine.renderer.render(conversation, engine.image_reader.ids) for engine in engines]
    assert rendered[0].ids == rendered[1].ids
    ids = torch.tensor([rendered[0].ids])
    ours, theirs = (engine.logits(ids, conversation.images)[..., :32000] for engine in engines)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_adapters_in_the_original_format_say_what_to_do(published: Path, tmp_path: Path):
    source = published / "llava-v1.5-7b-original-lora"
    with pytest.raises(UserError, match="vicuna-7b-v1-5"):
        load_checkpoint(str(source), device="cpu")
    with pytest.raises(UserError, match="merge_lora_weights"):
        convert(str(source), tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="dualfocus convert"):
        load_checkpoint(str(published / "llava-v1.5-7b-original"), device="cpu")
