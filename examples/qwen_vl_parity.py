"""Our Qwen-VL against its authors' own code: the same random weights, the same prompts, what differs.

    python examples/qwen_vl_parity.py REFERENCE_FOLDER [--prompts 20]

REFERENCE_FOLDER holds the published checkpoint's files without its weights: modeling_qwen.py, visual.py,
configuration_qwen.py, qwen_generation_utils.py, tokenization_qwen.py, qwen.tiktoken, config.json and
tokenizer_config.json. Their code runs here: read it first. Needs einops and tiktoken.
"""

import argparse
import copy
import importlib
import os
import random
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import logging

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.checkpoint.image_inputs import joined
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.families.qwen_vl import QWEN_VL
from dualfocus_lmms.models.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    load_qwen_image_processor,
    load_qwen_tokenizer,
)

MODULES = ("configuration_qwen", "qwen_generation_utils", "modeling_qwen", "tokenization_qwen")
NEW_TOKENS = 12
SIZE = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "kv_channels": 64,
    "intermediate_size": 512,
    "seq_length": 2048,
    "visual": {
        "width": 96,
        "layers": 3,
        "heads": 4,
        "mlp_ratio": 4.9231,
        "output_dim": 256,
        "patch_size": 14,
        "image_size": 448,
        "image_start_id": 151857,
    },
}
TEXTS = (
    "Provide the coordinates of the region this question is asking about: What is on the table?",
    "it's 1234567 apples, I'LL take 3.14 of them -- won't you?\n\n  \t two  blanks \r\n",
    "框出图中击掌的位置。日本語とภาษาไทย, emoji 🦊👩‍👩‍👧, e\u0301 and \u00e9, \ufb01ne, \u212b",
    "<ref>the dog</ref><box>(12,34),(567,1000)</box><quad>(1,2),(3,4),(5,6),(7,8)</quad>",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|><|extra_0|><|extra_204|><|extra_205|>",
    "def f(x):\n\treturn x ** 2  # ok\n",
    *("<img", "</imgpad>", "<box", "", " ", "\n", "\x00\x7f\u200b", "a" * 500, "9" * 40),
)


def import_reference(folder: Path) -> types.SimpleNamespace:
    """The authors' modules, as a package, with what transformers 5 removed defined again."""
    if not hasattr(PreTrainedModel, "get_head_mask"):
        PreTrainedModel.get_head_mask = lambda self, mask, layers: [None] * layers
    package = types.ModuleType("qwen_vl_reference")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        Path("SimSun.ttf").touch()  # the tokenizer downloads this font unless the current folder has it
        modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in MODULES}
        os.chdir(before)
    return types.SimpleNamespace(**modules)


def reference_tokenizer(module: Any, folder: Path) -> Any:
    """The authors' tokenizer. transformers 5 asks for its vocabulary before it has one."""
    tokenizer_class = module.QWenTokenizer
    tokenizer_class.__len__ = lambda self: len(self.get_vocab())
    tokenizer_class.get_vocab = lambda self: self.__dict__.get("mergeable_ranks", {})
    return tokenizer_class(str(folder / "qwen.tiktoken"))


def both_models(reference: Any, size: dict[str, Any]) -> tuple[Any, QwenVLForConditionalGeneration]:
    """The authors' model and ours, with the same random weights under the same names."""
    torch.manual_seed(0)
    ours = QwenVLForConditionalGeneration(QwenVLConfig(**copy.deepcopy(size), attn_implementation="sdpa"))
    for name, weight in ours.named_parameters():  # initialised ones are too small to tell much
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        elif "bias" in name:
            torch.nn.init.normal_(weight, std=0.1)
    theirs = reference.modeling_qwen.QWenLMHeadModel(
        reference.configuration_qwen.QWenConfig(**copy.deepcopy(size), fp32=True)
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.float().eval(), ours.eval()


def greedy(model: Any, ids: torch.Tensor, new: int) -> tuple[torch.Tensor, list[int]]:
    """The authors' forward step by step: logits of the prompt (L, V), and `new` greedy tokens."""
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, return_dict=True)
    logits, generated = output.logits[0], []
    step = logits[-1]
    for length in range(ids.shape[1] + 1, ids.shape[1] + new + 1):
        generated.append(int(step.argmax()))
        output = model(
            input_ids=torch.tensor([generated[-1:]]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            past_key_values=output.past_key_values,
            use_cache=True,
            return_dict=True,
        )
        step = output.logits[0, -1]
    return logits, generated


def our_greedy(model: Any, ids: torch.Tensor, pixels: dict[str, Any], new: int) -> list[int]:
    """`new` greedy tokens of transformers' own `generate`."""
    everything = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
        **pixels,
    )
    return everything[0, ids.shape[1] :].tolist()


def random_image(rng: random.Random, folder: Path) -> Path:
    """An image of coloured blocks, of any shape."""
    blocks = Image.frombytes("RGB", (5, 4), rng.randbytes(60))
    path = folder / f"{rng.randrange(10**12)}.png"
    blocks.resize((rng.randint(40, 700), rng.randint(40, 700)), Image.Resampling.BILINEAR).save(path)
    return path


def dialogue(rng: random.Random, paths: list[Path]) -> tuple[list[tuple[str, str]], Conversation]:
    """Questions with the answers between them, as the authors' code takes them and as ours does.

    Each image comes with a question of its own, and every question but the last was answered by a box.
    """
    theirs, ours = [], Conversation()
    for number, path in enumerate(paths or [None]):
        question = rng.choice(TEXTS[:2]) + f" {rng.randrange(10**6)}?"
        image_line = f"Picture {number + 1}: <img>{path}</img>\n" if path else ""
        corners = [rng.randrange(1000) for _ in range(4)]
        reply = QWEN_VL.box_format.template.format(*corners)
        theirs.append((image_line + question, reply))
        ours = ours.user(question, *([Image.open(path).convert("RGB")] if path else []))
        ours = ours.assistant(reply) if number + 1 < len(paths) else ours
    return theirs, ours


def show_tokenizers(theirs: Any, ours: Any, rng: random.Random) -> None:
    """How many texts and special tokens have the same ids."""
    letters = [chr(rng.choice([rng.randrange(32, 127), rng.randrange(32, 0x3000)])) for _ in range(20000)]
    texts = [*TEXTS, *("".join(letters[start : start + 40]) for start in range(0, len(letters), 40))]
    same = sum(theirs.convert_tokens_to_ids(theirs.tokenize(text)) == ours(text).input_ids for text in texts)
    print(f"tokenizer: {same} of {len(texts)} texts have the same ids")
    special = theirs.special_tokens
    same = sum(ours.convert_tokens_to_ids(token) == number for token, number in special.items())
    print(f"tokenizer: {same} of {len(special)} special tokens have the same id")


@dataclass
class Differences:
    """Two models on several prompts: the largest differences, and the number of prompts without any."""

    pixels: float = 0.0
    logits: float = 0.0
    largest: float = 0.0
    ids: int = 0
    tokens: int = 0


def show_prompts(reference: Any, folder: Path, count: int) -> None:
    """Text alone, one image and two, `count` dialogues each."""
    theirs, ours = both_models(reference, SIZE)
    their_tokenizer = reference_tokenizer(reference.tokenization_qwen, folder)
    our_tokenizer = load_qwen_tokenizer(str(folder))
    show_tokenizers(their_tokenizer, our_tokenizer, random.Random(0))
    checkpoint = Checkpoint(ours, our_tokenizer, load_qwen_image_processor(str(folder)), QWEN_VL)
    for images in range(3):
        rng, found = random.Random(images), Differences()
        with tempfile.TemporaryDirectory() as drawn:
            for _ in range(count):
                paths = [random_image(rng, Path(drawn)) for _ in range(images)]
                compare(reference, theirs, their_tokenizer, checkpoint, dialogue(rng, paths), paths, found)
        print(
            f"{images} images: {found.ids} of {count} prompts have the same ids; pixels differ by at most "
            f"{found.pixels:.1e}, logits (largest {found.largest:.1f}) by {found.logits:.1e}; "
            f"{found.tokens} of {count} answers have the same {NEW_TOKENS} greedy tokens"
        )


def compare(
    reference: Any,
    theirs: Any,
    tokenizer: Any,
    checkpoint: Checkpoint,
    dialogue_turns: Any,
    paths: list[Path],
    differences: Differences,
) -> None:
    """One dialogue through both models; adds to `differences`."""
    ours, (renderer, image_reader) = checkpoint.model, reader(checkpoint)
    rounds, conversation = dialogue_turns
    context = reference.qwen_generation_utils.make_context(
        tokenizer, rounds[-1][0], rounds[:-1], "You are a helpful assistant."
    )[1]
    rendered = renderer.render(conversation, image_reader.ids)
    differences.ids += without_paths(context, ours.config.visual["image_start_id"]) == list(rendered.ids)
    given = joined(image_reader(conversation.images))
    for made, path in zip(given.get("pixel_values", []), paths, strict=True):
        expected = theirs.transformer.visual.image_transform(Image.open(path).convert("RGB"))
        differences.pixels = max(differences.pixels, float((made - expected).abs().max()))
    logits, generated = greedy(theirs, torch.tensor([context]), NEW_TOKENS)
    ids = torch.tensor([rendered.ids])
    difference = ours(input_ids=ids, **given).logits[0] - logits
    differences.logits = max(differences.logits, float(difference.abs().max()))
    differences.largest = max(differences.largest, float(logits.abs().max()))
    differences.tokens += our_greedy(ours, ids, given, NEW_TOKENS) == generated


def without_paths(ids: list[int], start: int) -> list[int]:
    """The authors' ids with <imgpad> for the bytes of each path between <img> and </img>."""
    inside, plain = False, []
    for token in ids:
        inside = inside and token != start + 1
        plain.append(start + 2 if inside else token)
        inside = inside or token == start
    return plain


def show_beyond(reference: Any) -> None:
    """Answers that go on beyond the length the model was trained on."""
    length = 48
    theirs, ours = both_models(reference, {**SIZE, "seq_length": length})
    same = 0
    for seed in range(10):
        ids = torch.randint(0, 1000, (1, length - 4), generator=torch.Generator().manual_seed(seed))
        same += our_greedy(ours, ids, {}, 40) == greedy(theirs, ids, 40)[1]
    print(f"beyond the trained length: {same} of 10 have the same 40 greedy tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--prompts", type=int, default=20)
    given = parser.parse_args()
    logging.set_verbosity_error()  # transformers' warnings about code of that age
    reference = import_reference(given.reference.resolve())
    with torch.inference_mode():
        show_prompts(reference, given.reference, given.prompts)
        show_beyond(reference)


if __name__ == "__main__":
    main()
