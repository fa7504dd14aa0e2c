"""Random checkpoints of the true architecture classes, at any size, for tests, demonstrations and timing.

    dualfocus tiny OUT [--tokenizer FOLDER]

Their answers mean nothing. Their code paths, shapes and file formats are those of real checkpoints.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import new_folder
from dualfocus_lmms.models.checkpoint.image_inputs import image_tokens
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.convert.llava_original import read_tokenizer
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.families.llava import LLAVA, VICUNA_V1
from dualfocus_lmms.prompts import PROMPTS, SHORT_ANSWER

# name: (vision width, vision layers, image side, patch side, text width, text layers, heads)
SIZES = {
    "tiny": (32, 2, 56, 14, 64, 2, 4),
    "100m": (512, 6, 336, 14, 768, 10, 12),
    "7b": (1024, 24, 336, 14, 4096, 32, 32),
}
IMAGE_TOKEN = "<image>"
_PHRASES = [
    *VICUNA_V1.partition("}}")[2].partition("{%")[0].strip().split("The assistant"),
    "USER:",
    "ASSISTANT:",
    *(
        text.partition("{")[0].strip()
        for wording in PROMPTS.values()
        for text in (wording.locate, wording.micro)
    ),
    SHORT_ANSWER,
]


def save_tiny(
    folder: str | Path, size: str = "tiny", tokenizer: str | None = None, seed: int = 0, steps: int = 0
) -> Path:
    """Write a LLaVA checkpoint with random weights and return its folder.

    tokenizer is a folder with a Llama `tokenizer.model` (or any saved tokenizer); None builds one of single
    characters. steps > 0 teaches it the FORM of the replies, boxes and yes or no, on plain colours and
    made-up words: every stage of DualFocus then runs, and its answers still mean nothing.
    """
    if size not in SIZES:
        raise choose("size", size, SIZES)
    folder = Path(folder)
    loaded = load_tokenizer(tokenizer) if tokenizer else character_tokenizer()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(llava_config(size, loaded))
    model.generation_config.eos_token_id = loaded.eos_token_id
    side = SIZES[size][2]
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    if steps:
        teach_form(Checkpoint(model, loaded, processor, LLAVA), steps, seed)
    with new_folder(folder) as partial:
        for part in (model, loaded, processor):
            part.save_pretrained(partial)
    return folder


def teach_form(checkpoint: Checkpoint, steps: int, seed: int) -> float:
    """Train a random checkpoint to answer the locate prompts with a box and others with yes or no.

    The last loss in nats per token. Images are plain colours, which decide the replies; questions are
    made-up words, which do not.
    """
    backend = ModelBackend(checkpoint)
    rng = random.Random(seed)
    model = checkpoint.model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size more threads only wait for each other
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        batch = _form_batch(backend, rng)
        labels = batch.pop("labels")[:, 1:]  # (B, L - 1), -100 where nothing is learned
        hidden = model.model(**batch).last_hidden_state[:, :-1]  # (B, L - 1, D)
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[labels >= 0]), labels[labels >= 0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    torch.set_num_threads(threads)
    return loss.item()


def _form_batch(backend: ModelBackend, rng: random.Random, size: int = 12) -> dict[str, torch.Tensor]:
    """Input of one training step: loss on the replies and their closing token alone."""
    rows: list[tuple[list[int], list[int]]] = []
    images: list[Image.Image] = []
    length = image_tokens(backend.model.config)
    for _ in range(size):
        conversation, reply = _form_sample(backend, rng)
        prompt = backend.renderer.render(conversation, lambda _: length).ids
        reply_ids = [*backend.renderer.continuation(" " + reply), backend.tokenizer.eos_token_id]
        rows.append(([*prompt, *reply_ids], [-100] * len(prompt) + reply_ids))
        images += conversation.images
    width = max(len(ids) for ids, _ in rows)
    pad = backend.tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        "pixel_values": backend.pixels(images),
    }


def _form_sample(backend: ModelBackend, rng: random.Random) -> tuple[Conversation, str]:
    """One stage of one made-up question: the conversation so far, and the reply to learn."""
    words = ["".join(rng.choices(ascii_lowercase, k=rng.randint(1, 6))) for _ in range(rng.randint(2, 6))]
    question = " ".join(words) + "?"
    prompt = question + rng.choice(["", f"\n{SHORT_ANSWER}"])
    wording = rng.choice(list(PROMPTS.values()))
    color, crop_color = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
    image, crop = (Image.new("RGB", (28, 28), tint) for tint in (color, crop_color))
    left, top, side = (0.1 + 0.4 * (value > 127) for value in color)
    written = backend.box_format.write(Box(left, top, left + side, top + side).clip(), (28, 28))
    locate = Conversation().user(wording.locate.format(question=question), image)
    box_ids = tuple(backend.renderer.continuation(" " + written))
    micro = locate.assistant(written, box_ids).user(wording.micro.format(prompt=prompt), crop)
    macro = Conversation().user(prompt, image)
    return rng.choice([(locate, written), (macro, _verdict(color)), (micro, _verdict(crop_color))])


def _verdict(color: tuple[int, ...]) -> str:
    return "Yes" if color[0] > color[2] else "No"


def llava_config(size: str, tokenizer: Any) -> LlavaConfig:
    """LLaVA-1.5's configuration at another size, for a tokenizer that knows the image token."""
    vision_width, vision_layers, side, patch, width, layers, heads = SIZES[size]
    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=4 * vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=max(vision_width // 64, 2),
        image_size=side,
        patch_size=patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=int(width * 2.6875),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def load_tokenizer(source: str) -> Any:
    """A saved tokenizer, or a bare Llama `tokenizer.model`, with LLaVA-1.5's image and padding tokens."""
    from transformers import AutoTokenizer

    folder = Path(source)
    if (folder / "tokenizer.model").exists() and not (folder / "tokenizer_config.json").exists():
        return read_tokenizer(folder, vocabulary=0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot load a tokenizer from {source!r}: {error}") from error
    tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token or "<pad>"})
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return tokenizer


def character_tokenizer(
    phrases: Sequence[str] = _PHRASES, specials: Sequence[str] = (), byte_level: bool = False, **named: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer of single printable ASCII characters and whole phrases, those of prompts by default, with
    Llama's special tokens and `specials`. Every other character is one unknown token. byte_level: with the
    signs of byte-level BPE for blanks, for families whose tokenizer transformers makes anew from the
    vocabulary. named: what else transformers' tokenizers take."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    basic = ["<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN]
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    each: Any = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    decoder: Any = decoders.Fuse()
    if byte_level:
        characters = [{"\n": "Ċ", " ": "Ġ"}.get(character, character) for character in characters]
        signs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        each, decoder = pre_tokenizers.Sequence([signs, each]), decoders.ByteLevel()
    vocabulary = {token: number for number, token in enumerate([*basic, *characters])}
    characters_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters_only.pre_tokenizer = each
    characters_only.decoder = decoder
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters_only, **(roles | named))
    tokenizer.add_tokens([IMAGE_TOKEN, *specials], special_tokens=True)
    tokenizer.add_tokens(list(phrases))
    return tokenizer
