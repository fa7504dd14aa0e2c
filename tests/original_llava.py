"""A tiny model in LLaVA's original format: its graph, its files, its difference to a converted checkpoint."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint

VOCABULARY, WIDTH, SIDE, PATCH = 400, 64, 56, 14
PLACEHOLDER = -200  # where the original puts an image's features
SETTINGS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 32,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
    "torch_dtype": "float32",
}


class Original(torch.nn.Module):
    """The original's graph, from its parts alone: encoder, projector, language model."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=SIDE,
                patch_size=PATCH,
            )
        )
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(32, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        self.language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=172,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4096,
                rms_norm_eps=1e-5,
            )
        )
        for name, parameter in self.named_parameters():  # biases and norms too, so that a lost one shows
            scales = parameter.ndim == 1 and name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(scales), std=0.2)
        self.eval()

    @torch.no_grad()
    def forward(self, ids: list[int], pixels: torch.Tensor) -> torch.Tensor:
        """Logits (L, V) of ids with a placeholder for each of the images (N, 3, S, S)."""
        seen = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = iter(self.projector(seen))
        embed = self.language.model.embed_tokens
        rows = [next(features) if token == PLACEHOLDER else embed(torch.tensor([token])) for token in ids]
        return self.language(inputs_embeds=torch.cat(rows)[None]).logits[0]

    def weights(self, tower: bool) -> dict[str, torch.Tensor]:
        """The weights under the original's names, with the buffers that old files carry."""
        state = self.language.state_dict()
        state |= {f"model.mm_projector.{name}": value for name, value in self.projector.state_dict().items()}
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        if tower:
            prefix = "model.vision_tower.vision_tower.vision_model."
            state |= {prefix + name: value for name, value in self.tower.state_dict().items()}
            state[prefix + "embeddings.position_ids"] = torch.arange(17)
        return {name: value.clone() for name, value in state.items()}

    def save_tower(self, folder: Path) -> Path:
        """The encoder as OpenAI publishes it: half of a CLIP checkpoint."""
        folder.mkdir()
        state = {f"vision_model.{name}": value for name, value in self.tower.state_dict().items()}
        state["vision_model.embeddings.position_ids"] = torch.arange(17)
        state |= {"text_model.final_layer_norm.bias": torch.ones(3), "logit_scale": torch.ones(())}
        torch.save(state, folder / "pytorch_model.bin")
        config = {"model_type": "clip", "vision_config": self.tower.config.to_dict(), "text_config": {}}
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def save_words(path: Path) -> Path:
    """A tokenizer.model of Llama's kind with a vocabulary of its own."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def save_original(folder: Path, original: Original) -> Path:
    """A whole checkpoint in the original format, its vision tower inside; no other file is needed."""
    folder.mkdir()
    settings = folder / "tower-settings"
    original.tower.config.save_pretrained(settings)
    llama = original.language.config.to_dict() | {"rope_theta": 10000.0}
    config = llama | SETTINGS | {"mm_vision_tower": str(settings)}
    (folder / "config.json").write_text(json.dumps(config))
    save_words(folder / "tokenizer.model")
    save_shards(folder, "bin", 1, original.weights(tower=True))
    return folder


def save_shards(folder: Path, form: str, count: int, state: dict[str, torch.Tensor]) -> None:
    stem, ending = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    names = sorted(state)
    parts = [names[number::count] for number in range(count)]
    where = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}.{ending}" if count == 1 else f"{stem}-{number:05}-of-{count:05}.{ending}"
        tensors = {name: state[name].contiguous() for name in part}
        torch.save(tensors, folder / file) if form == "bin" else save_file(tensors, folder / file)
        where |= dict.fromkeys(part, file)
    if count > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": where}))


def compare(folder: Path, original: Original) -> float:
    """The largest difference between the logits of the original and of the converted checkpoint."""
    checkpoint = load_checkpoint(str(folder), device="cpu")
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    ids = [1, 300, 301, PLACEHOLDER, 302, 399, 2, 305, PLACEHOLDER, 306]
    config = checkpoint.model.config
    expanded = [
        token
        for old in ids
        for token in ([config.image_token_id] * config.image_seq_length if old == PLACEHOLDER else [old])
    ]
    with torch.no_grad():
        logits = checkpoint.model(input_ids=torch.tensor([expanded]), pixel_values=pixels).logits[0]
    expected = original(ids, pixels)
    assert logits.shape == (len(expected), 448)
    assert expected.abs().max() > 1
    return (logits[:, :VOCABULARY] - expected).abs().max().item()
