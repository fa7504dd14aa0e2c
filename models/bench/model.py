"""What the benchmark times: random weights, engines whose replies have a set length, and questions.

Random weights would never write a box. Those of LLaVA's architecture are changed so that they write one and
cannot stop ("[0.25, 0.25, 0.25, 0.25, 0.25, ..."), so that engines which foresee the form of a box can be
measured. Knows no clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import torch
from PIL import Image
from pydantic import model_validator
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil

from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint, torch_device, torch_dtype
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.batched import BatchedBackend
from dualfocus_lmms.models.engines.naive import NaiveBackend
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.llava import SIZES, character_tokenizer, llava_config
from dualfocus_lmms.options import DtypeName, Folder, Options, Text, one_of
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.types import Answer, Prompt, Question, Stage, StopCriteria

Engine = SharedBackend | NaiveBackend
LLAMA_WORDS = 32064  # LLaVA-1.5's vocabulary

_BOX = Box(0.25, 0.25, 0.75, 0.75)
_SAID = Box(0.25, 0.25, 0.25, 0.25)
_TEXTS = {"macro": "Yes", "micro": "No"}  # scored by the release's way: texts that are equal are not
_OBJECTS = ("dog", "snowboard", "dining table", "person", "car", "traffic light", "cup", "baseball glove")


class Source(Options):
    """Where the model comes from: a checkpoint, or random weights of a family.

    size: of LLaVA's random weights, None is "100m"; the other families are tiny.
    """

    size: Annotated[Text, one_of(SIZES)] | None = None
    pretrained: Folder | None = None
    family: Text | None = None
    device: Text | None = None
    dtype: Annotated[Text, one_of(get_args(DtypeName))] = "auto"

    @model_validator(mode="after")
    def _is_one(self) -> Source:
        if self.pretrained is not None and self.size is not None:
            raise ValueError(f"Give a size or a checkpoint, got {self.size!r} and {self.pretrained!r}.")
        if self.pretrained is None and self.family not in (None, "llava") and self.size not in (None, "tiny"):
            raise ValueError(f"Random weights of family {self.family!r} are tiny, not {self.size!r}.")
        return self

    @property
    def name(self) -> str:
        """What the report calls it."""
        if self.pretrained is not None:
            return self.pretrained
        if self.family not in (None, "llava"):
            return f"random, {self.family}, size tiny"
        return f"random, size {self.size or '100m'}"

    def load(self) -> Checkpoint:
        """The model in memory. dtype "auto": float32 on a CPU; on a GPU bfloat16, or the checkpoint's own."""
        if self.pretrained is not None:
            return load_checkpoint(self.pretrained, None, self.dtype, self.device, family=self.family)
        if self.family not in (None, "llava"):
            from dualfocus_lmms.models.tiny.families import save_tiny_family

            with TemporaryDirectory() as folder:
                save_tiny_family(folder, str(self.family))
                return load_checkpoint(folder, None, self.dtype, self.device)
        return random_checkpoint(self.size or "100m", self.device, self.dtype)


def random_checkpoint(size: str, device: str | None = None, dtype: str = "auto") -> Checkpoint:
    """A LLaVA checkpoint with random weights that write boxes, in memory."""
    words = character_tokenizer()
    words.add_tokens([" ["])  # a box is 24 tokens then, as with Llama's words
    config: Any = llava_config(size, words)
    if size == "7b":
        config.text_config.vocab_size = LLAMA_WORDS
    place = torch_device(device)
    kind = torch_dtype(dtype, place)
    torch.manual_seed(0)
    with place:
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16 if isinstance(kind, str) else kind
        )
    side = SIZES[size][2]
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    checkpoint = Checkpoint(model.to(place).eval(), words, processor, LLAVA)
    write_boxes(checkpoint)
    return checkpoint


@torch.no_grad()
def write_boxes(checkpoint: Checkpoint) -> None:
    """Change random weights so that every reply is a box without an end, whatever was asked.

    Each token of it leads to the next: its embedding outweighs what the layers add, and the head of the next
    token answers to that direction. What layers add still moves the probabilities a little.
    """
    renderer, _ = reader(checkpoint)
    opening = renderer.render(Conversation().user("?"), lambda _: 0).ids[-1]
    reply = renderer.reply(checkpoint.family.box_format.write(_SAID, (1, 1)))[:-1]
    embeddings = checkpoint.model.get_input_embeddings().weight  # (V, D)
    head = checkpoint.model.get_output_embeddings().weight  # (V, D)
    text = checkpoint.model.config.get_text_config()
    size = math.sqrt(text.hidden_size)
    # The length of an embedding whose elements are five times what random layers add to them, roughly.
    loud = 5 * (text.initializer_range * size) ** 2 * math.sqrt(text.num_hidden_layers) * size
    push = math.log(len(head)) + 2  # of a logit: more than all others together
    for before, after in dict(zip((opening, *reply), reply, strict=False)).items():
        direction = embeddings[before].float() / embeddings[before].float().norm()
        embeddings[before] = (loud * direction).to(embeddings.dtype)
        head[after] += (push / size * direction).to(head.dtype)


class BatchedGenerate(BatchedBackend):
    """The plain model as most harnesses run it: transformers' `generate` on a batch padded on the left.

    It takes no log-probability (0 stands for each) and never stops early.
    """

    def _decode(
        self, inputs: dict[str, torch.Tensor], limits: Sequence[StopCriteria]
    ) -> tuple[list[list[int]], list[list[float]]]:
        sequences = self._continued(inputs, max(limit.max_new_tokens for limit in limits))  # (B, L + new)
        chosen = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return chosen, [[0.0] * len(tokens) for tokens in chosen]


class ReleaseWay(NaiveBackend):
    """The authors' evaluation code: transformers' `generate` for each reply, one question at a time.

    It keeps nothing and takes no log-probability while the model speaks (0 stands for each). Both answers are
    scored afterwards, as `Yes` and `No`.
    """

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return [self._reply(prompt.stage, prompt.conversation, prompt.limits) for prompt in prompts]

    def score(self, conversations: Sequence[Conversation]) -> list[list[tuple[float, ...]]]:
        self.counts.encodes += sum(len(conversation.images) for conversation in conversations)
        return super().score(conversations)

    def _reply(self, stage: Stage, conversation: Conversation, limits: StopCriteria) -> Answer:
        prepared = {id(image): self.image_reader([image])[0] for image in conversation.images}
        rendered = self.renderer.render(conversation, lambda image: prepared[id(image)].ids)
        prompt = torch.tensor([rendered.ids], device=self.model.device)  # (1, L)
        images = [prepared[id(image)] for image in rendered.images]
        sequence = self._continued(self._read(prompt, images), limits.max_new_tokens)  # (1, L + new)
        self.counts.encodes += len(rendered.images)
        tokens = sequence[0, prompt.shape[1] :].tolist()
        text = _TEXTS.get(stage) or self.decode(tokens)
        return Answer(stage, text, tuple(tokens), (0.0,) * len(tokens), ended=False)


def force_replies(engine: Engine) -> Engine:
    """The same engine, whose replies end at their limit and whose every reply is read as one box."""

    class FixedBox(BoxFormat):
        def read(self, *args: Any, **kwargs: Any) -> Box | None:
            return _BOX

    known = engine.box_format
    engine.box_format = FixedBox(known.template, known.scale, known.frame, known.order)
    engine.eos_ids = frozenset()
    return engine


def noise_questions(count: int, seed: int = 0) -> list[Question]:
    """Questions as POPE asks them, each about an image of its own: smooth noise, 640 by 480 pixels."""
    rng = random.Random(seed)
    questions = []
    for number in range(count):
        noise = Image.frombytes("RGB", (40, 30), rng.randbytes(40 * 30 * 3))
        text = f"Is there a {_OBJECTS[number % len(_OBJECTS)]} in the image?"
        prompt = f"{text}\n{SHORT_ANSWER}"
        image = noise.resize((640, 480), Image.Resampling.BICUBIC)
        key = {"task": "bench", "split": "test", "doc_id": number}
        questions.append(Question(str(number), image, text, prompt, key))
    return questions


def image_tokens(engine: ModelBackend) -> int:
    """Language-model tokens of one image of the questions."""
    [image] = engine.image_reader([noise_questions(1)[0].image])
    return image.ids.count(engine.image_token_id)


def slot_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of one token in the cache: keys and values of all layers."""
    text = checkpoint.model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head * checkpoint.model.dtype.itemsize
