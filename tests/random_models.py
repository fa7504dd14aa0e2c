"""Random tiny models of every family, and random questions for them, all decided by a seed."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tiny_qwen_vl
import torch
from PIL import Image

from dualfocus_lmms import Box, BoxFormat, Conversation, Question, Settings, StopCriteria
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import MAKERS, save_tiny_family
from dualfocus_lmms.models.tiny.llava import save_tiny
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.scenes import make_scene
from dualfocus_lmms.types import Prompt

NANO, QWEN_VL = "dualfocus-nano", "qwen_vl"
FAMILIES = ["llava", *MAKERS, QWEN_VL, NANO]
SHARING = sorted(
    {*MAKERS} - {"gemma4", "qwen3_5", "qwen3_5_moe"}
)  # which the engines run that share prefixes
TEACHING_STEPS = 100
WORDS = [
    "what",
    "colour",
    "Is there",
    "größer",
    "犬",
    "🙂",
    "e\u0301",
    "left of",
    "3.5%",
    "\t",
    "[0.1,",
    "</s>",
]
STOPS: list[tuple[str, ...]] = [(), (), (), ("\n\n",), ("e",), (", ",), ("o", "0.")]
LONGEST = 640  # pixels along a side
THINNEST = 150  # as many times as long as wide: Qwen's processors refuse 200


def random_model(family: str, random: Random, taught: bool = False) -> Checkpoint:
    """A checkpoint in float32 on the CPU: random layers, heads and size of the weights.

    taught: writes boxes in its family's notation. Of others, half have one more end of turn, one that they
    choose as the first token of a reply. NANO is the model that is shipped, as it is.
    """
    seed, attention = random.randrange(2**31), random.choice(["sdpa", "sdpa", "eager"])
    given: dict[str, Any] = {"device": "cpu", "dtype": "float32", "attn_implementation": attention}
    if family == NANO:
        return load_checkpoint(NANO, **given)
    with tempfile.TemporaryDirectory() as folder:
        if family == QWEN_VL:
            layers = random.randint(1, 3)
            saved = tiny_qwen_vl.save(Path(folder), seed, num_hidden_layers=layers, seq_length=2048)
            checkpoint = tiny_qwen_vl.load(saved, attn_implementation=attention)
        else:
            save_tiny(folder, seed=seed) if family == "llava" else save_tiny_family(folder, family, seed)
            checkpoint = _other_size(load_checkpoint(folder, **given), random)
    with torch.no_grad():
        for weight in checkpoint.model.parameters():
            weight *= random.choice([1, 4, 8]) if weight.ndim > 1 and family != QWEN_VL else 1
    if taught:
        teach_boxes(checkpoint, random)
    elif random.random() < 0.5:
        close_at_once(checkpoint, random)
    return checkpoint


def close_at_once(checkpoint: Checkpoint, random: Random) -> None:
    """Make the first token of one of its replies an end of turn."""
    conversations = [Conversation().user(random_text(random), random_image(random)) for _ in range(4)]
    prompts = Prompt.batch("macro", conversations, [StopCriteria(1)] * 4)
    answers = make_engine("naive", checkpoint).generate(prompts)
    ends = [checkpoint.tokenizer.eos_token_id, *random.choice(answers).tokens]
    checkpoint.model.generation_config.eos_token_id = ends


def _other_size(checkpoint: Checkpoint, random: Random) -> Checkpoint:
    """The checkpoint with other layers and heads in its language model."""
    old, config = checkpoint.model, copy.deepcopy(checkpoint.model.config)
    text = config.get_text_config()
    if not getattr(text, "num_kv_shared_layers", 0):  # else each layer has settings of its own
        text.num_hidden_layers = random.randint(1, 3)
        if kinds := getattr(text, "layer_types", None):
            others = random.choices(sorted({*kinds}), k=text.num_hidden_layers - 1)
            text.layer_types = [*others, "full_attention"]
    text.num_key_value_heads = random.choice([1, 2, 4])
    torch.manual_seed(random.randrange(2**31))
    model = type(old)(config).eval()
    model.generation_config = old.generation_config
    return dataclasses.replace(checkpoint, model=model)


def teach_boxes(checkpoint: Checkpoint, random: Random, steps: int = TEACHING_STEPS) -> None:
    """Train a model to reply to Q1 with some box; four rows a step, one after the other."""
    backend = ModelBackend(checkpoint)
    optimizer = torch.optim.AdamW(checkpoint.model.parameters(), lr=3e-3)
    for _ in range(steps):
        for _ in range(4):
            image, text = random_image(random, 60), random_text(random)
            size, box = image.size, random_box(random)
            resized = backend.input_size(image)
            wording = random.choice(list(PROMPTS.values())).locate
            reply = backend.box_format.write(box, size, resized)
            talk = Conversation().user(wording.format(question=text), image).assistant(reply)
            _learn(backend, talk)
        torch.nn.utils.clip_grad_norm_(checkpoint.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _learn(backend: ModelBackend, talk: Conversation) -> None:
    """Add the gradients of one reply and of the token that closes it."""
    rendered = backend.renderer.render(talk, backend.image_reader.ids)
    ((start, length),) = rendered.replies
    closing = backend.tokenizer.eos_token_id
    ids = torch.tensor([[*rendered.ids[: start + length], closing]])
    inputs = backend.prompt_input(ids) | backend.encoder_input(backend.image_reader(rendered.images))
    logits = backend.model(**inputs, use_cache=False).logits[0, start - 1 : -1]  # (length + 1, V)
    torch.nn.functional.cross_entropy(logits, ids[0, start:]).backward()


class AnyReply(BoxFormat):
    """A family's notation in which any reply is read as a box, another one for each reply."""

    def __init__(self, form: BoxFormat) -> None:
        super().__init__(form.template, form.scale, form.frame, form.order)

    def read(self, text: str, *sizes: Any) -> Box | None:
        return super().read(self.write(random_box(Random(text)), *sizes), *sizes)


def random_box(random: Random) -> Box:
    """At least a fiftieth of the image along each side."""
    x, y = random.uniform(0, 0.98), random.uniform(0, 0.98)
    return Box(x, y, random.uniform(x + 0.02, 1), random.uniform(y + 0.02, 1))


def random_image(random: Random, longest: int = LONGEST) -> Image.Image:
    """Blocks of colour, 1 pixel to `longest` along a side; small ones are as frequent as large ones."""
    width = round(longest ** random.random())
    height = min(max(round(longest ** random.random()), -(-width // THINNEST)), width * THINNEST)
    blocks = np.random.default_rng(random.randrange(2**31)).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def random_text(random: Random) -> str:
    """A question of 1 to 40 words, in any script."""
    return " ".join(["Why", *random.choices(WORDS, k=round(40 ** random.random()) - 1)]) + "?"


def random_questions(
    random: Random, count: int, drawn: bool = False
) -> tuple[list[Question], list[StopCriteria]]:
    """Questions with boxes, some with options, and when their answers stop. Some share an image.

    drawn: about drawn scenes, which NANO knows.
    """
    questions: list[Question] = []
    limits = []
    for number in range(count):
        shared = questions and random.random() < 0.2
        image, text = _scene(random) if drawn else (random_image(random), random_text(random))
        image = random.choice(questions).image if shared else image
        options = random.choice([(), (), ("a cat", "eine Katze", "3")])
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABC", options, strict=False))
        ending = random.choice(["", "\nAnswer the question using a single word or phrase."])
        questions.append(
            Question(
                id=str(number),
                image=image,
                text=text,
                prompt=text + listed + ending,
                key={"task": "random", "split": "test", "doc_id": number, "context": ""},
                box=random_box(random),
                short=random.choice([None, f"{text} Be short."]),
                options=options,
            )
        )
        limits.append(StopCriteria(random.choice([1, 2, 3, 6, 12]), random.choice(STOPS)))
    return questions, limits


def _scene(random: Random) -> tuple[Image.Image, str]:
    scene = make_scene("validation", random.randrange(2**31), 0)
    return scene.image(), random.choice(scene.questions).question


def random_settings(random: Random, checkpoint: Checkpoint, own_boxes: bool, skip: float = 1.0) -> Settings:
    """A protocol, and often something else than its own choices. own_boxes: the model locates the region.
    skip: its `skip_confidence`."""
    family, patch = checkpoint.family, False
    choices: dict[str, Any] = {
        "protocol": random.choice(["paper", "release"]),
        "select": random.choice([None, None, "ppl", "micro_context", "release"]),
        "count_eos": random.choice([None, True, False]),
        "box_shift": random.choice([0, 0, 7]),
        "prompts": random.choice([None, "native"]) if family.native_locate else None,
        "grounding": "model" if own_boxes else random.choice(["annotated", "whole", "center", "random"]),
    }
    settings = Settings.of(skip_confidence=skip, **choices)
    if family.local_patches and not isinstance(settings.rule, JointRule):
        patch = random.random() < 0.3
    bound = random.choice([1, 9, *[settings.protocol.locate_tokens] * 3])
    protocol = dataclasses.replace(settings.protocol, locate_tokens=bound)
    return dataclasses.replace(settings, protocol=protocol, subimage="patch" if patch else "turn")
