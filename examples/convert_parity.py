"""The converter against LLaVA's own code: one tiny random model, its logits before and after the conversion.

git clone https://github.com/haotian-liu/LLaVA
python examples/convert_parity.py LLaVA
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.convert.llava import convert

VOCABULARY, SIDE, PATCH = 400, 56, 14
PLACEHOLDER = -200  # LLaVA's IMAGE_TOKEN_INDEX
PROMPTS = (
    [1, PLACEHOLDER],
    [1, 300, PLACEHOLDER, 301, 302],
    [1, 9, PLACEHOLDER, 2, 350, 351, PLACEHOLDER, 399],
)


def save_tower(folder: Path) -> None:
    """A random CLIP encoder."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    randomised(CLIPVisionModel(vision)).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)


def original_model(tower: Path) -> Any:
    """LLaVA's own model class around the encoder in `tower`."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    config = LlavaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    config.pretraining_tp = 1
    config.mm_vision_tower = str(tower)
    config.mm_vision_select_layer = -2
    config.mm_vision_select_feature = "patch"
    config.mm_projector_type = "mlp2x_gelu"
    config.mm_hidden_size = 32
    config.image_aspect_ratio = "pad"
    model = randomised(LlavaLlamaForCausalLM(config))
    model.get_vision_tower().load_model()
    return model.eval()


def randomised(model: Any) -> Any:
    """`model` with random weights, biases and norms too, so that a weight that is lost changes the logits."""
    for name, parameter in model.named_parameters():
        scales = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(scales), std=0.2)
    return model


def save_original(model: Any, folder: Path, inside: bool) -> None:
    """The model as LLaVA's checkpoints are: config.json, tokenizer.model, pytorch_model.bin."""
    folder.mkdir()
    state = {
        name: value for name, value in model.state_dict().items() if inside or "vision_tower" not in name
    }
    torch.save(state, folder / "pytorch_model.bin")
    config = model.config.to_dict() | {"rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(Path(__file__).read_text(encoding="utf-8").splitlines()),
            model_writer=file,
            vocab_size=VOCABULARY,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )


@torch.no_grad()
def difference(model: Any, converted: Any) -> tuple[float, float]:
    """The largest difference between the logits of both, over all prompts, and the original's largest logit.

    Rows that the conversion adds to the vocabulary are left out.
    """
    largest = size = 0.0
    length, token = converted.config.image_seq_length, converted.config.image_token_id
    for ids in PROMPTS:
        pixels = torch.randn(ids.count(PLACEHOLDER), 3, SIDE, SIDE)
        expected = model(input_ids=torch.tensor([ids]), images=pixels).logits
        expanded = [new for old in ids for new in ([token] * length if old == PLACEHOLDER else [old])]
        logits = converted(input_ids=torch.tensor([expanded]), pixel_values=pixels).logits
        largest = max(largest, (logits[..., :VOCABULARY] - expected).abs().max().item())
        size = max(size, expected.abs().max().item())
    return largest, size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llava", help="folder of LLaVA's source")
    sys.path.insert(0, parser.parse_args().llava)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tower(folder / "tower")
        model = original_model(folder / "tower")
        for inside in (True, False):
            location = "inside" if inside else "outside"
            save_original(model, folder / location, inside)
            convert(str(folder / location), folder / f"{location}-converted", progress=False)
            converted = load_checkpoint(str(folder / f"{location}-converted"), device="cpu").model
            largest, size = difference(model, converted)
            print(f"tower {location} the checkpoint: logits up to {size:.2f} differ by at most {largest:.1e}")


if __name__ == "__main__":
    main()
