"""Checkpoints in LLaVA's original format, made here, converted, and compared with the original's graph."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from dualfocus_lmms import Conversation, UserError, cli
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.convert import llava as module
from dualfocus_lmms.models.convert.llava import convert, on_disk, plan
from dualfocus_lmms.models.convert.llava_original import read_tokenizer
from dualfocus_lmms.models.convert.weight_files import headers

pytestmark = pytest.mark.seconds(40)

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


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model of Llama's kind with a vocabulary of its own."""
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
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
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def original() -> Original:
    return Original()


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, words: Path, original: Original) -> Make:
    """Write a checkpoint in the original format and return its folder."""

    def make(form: str = "bin", shards: int = 2, tower: bool = True, **changed: Any) -> Path:
        folder = tmp_path / f"original-{form}-{shards}-{tower}"
        folder.mkdir()
        state = changed.pop("state", None) or original.weights(tower)
        llama = original.language.config.to_dict() | {"rope_theta": 10000.0}
        (folder / "config.json").write_text(json.dumps(llama | SETTINGS | changed))
        shutil.copy(words, folder)
        save_shards(folder, form, shards, state)
        return folder

    return make


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


@pytest.fixture
def own_tower(tmp_path: Path, original: Original) -> str:
    """A folder with nothing but the settings of the tower inside the tiny checkpoints."""
    folder = tmp_path / "tower-settings"
    original.tower.config.save_pretrained(folder)
    return str(folder)


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


@pytest.mark.parametrize(("form", "shards"), [("bin", 3), ("bin", 1), ("safetensors", 2), ("safetensors", 1)])
@pytest.mark.parametrize("kind", ["llava", "share4v"])
def test_the_logits_are_the_originals_with_the_tower_inside(
    make, own_tower, original, tmp_path, form, shards, kind
):
    source = make(form, shards, model_type=kind, mm_vision_tower=own_tower)
    done = convert(str(source), tmp_path / "converted", progress=False)
    assert compare(tmp_path / "converted", original) < 1e-5
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) == shards
    assert done.new_rows == 48


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_the_logits_are_the_originals_with_a_tower_from_elsewhere(make, original, tmp_path, form):
    tower = original.save_tower(tmp_path / "clip")
    convert(str(make(form, tower=False)), tmp_path / "given", str(tower), progress=False)
    assert compare(tmp_path / "given", original) < 1e-5
    named = make(form, shards=1, tower=False, mm_vision_tower=str(tower))
    convert(str(named), tmp_path / "named", progress=False)
    assert compare(tmp_path / "named", original) < 1e-5


def test_a_given_tower_takes_the_place_of_the_one_inside(make, tmp_path, original):
    other = Original(seed=7)
    done = convert(str(make()), tmp_path / "out", str(other.save_tower(tmp_path / "clip")), progress=False)
    other.language, other.projector = original.language, original.projector
    assert compare(tmp_path / "out", other) < 1e-5
    replaced = [w.source for w in done.weights if w.reason and "vision_tower" in w.source]
    assert len(replaced) == len(original.tower.state_dict()) + 1  # and its position_ids


def test_the_names_on_disk_are_those_that_transformers_writes(make, own_tower, tmp_path):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    config = load_checkpoint(str(tmp_path / "out"), device="cpu").model.config
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "written")
    written = {name: spec.shape for name, spec in headers(tmp_path / "written/model.safetensors").items()}
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    ours = {name: spec.shape for file in files for name, spec in headers(file).items()}
    assert ours == written == on_disk(config)


def test_the_report_has_every_weight_of_the_source(make, own_tower, tmp_path, original):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    report = json.loads((tmp_path / "out/conversion.json").read_text())
    entries = {entry["source"]: entry for entry in report["weights"]}
    assert set(entries) == set(original.weights(tower=True))
    out = {name for name, entry in entries.items() if "dropped" in entry}
    assert {name.rpartition(".")[2] for name in out} == {"inv_freq", "position_ids"}
    written = {
        name: spec
        for file in (tmp_path / "out").glob("*.safetensors")
        for name, spec in headers(file).items()
    }
    assert {entry["target"]: entry["shape"] for entry in entries.values() if "target" in entry} == {
        name: list(spec.shape) for name, spec in written.items()
    }
    assert report["new_embedding_rows"] == 48


def test_every_weight_keeps_its_type_or_gets_the_one_asked_for(make, original, tmp_path):
    state = {name: value.to(torch.bfloat16) for name, value in original.weights(tower=False).items()}
    source, tower = str(make(tower=False, state=state)), str(original.save_tower(tmp_path / "clip"))
    for dtype, of_the_tower, of_the_rest in (
        ("auto", "float32", "bfloat16"),
        ("float16", "float16", "float16"),
    ):
        done = convert(source, tmp_path / dtype, tower, dtype, progress=False)
        kinds = {
            prefix: {weight.spec.kind for weight in done.kept if weight.target.startswith(prefix)}
            for prefix in ("vision_tower", "multi_modal_projector", "language_model")
        }
        assert kinds == {
            "vision_tower": {of_the_tower},
            "multi_modal_projector": {of_the_rest},
            "language_model": {of_the_rest},
        }
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path / dtype, dtype="auto")
        assert str(model.dtype) == f"torch.{of_the_rest}"
        head = model.lm_head.weight[:VOCABULARY]
        assert torch.equal(head, state["lm_head.weight"].to(head.dtype))


def test_a_value_that_float16_cannot_hold_stops_the_conversion(make, own_tower, original, tmp_path):
    state = original.weights(tower=True)
    state["model.mm_projector.0.bias"][3] = 1e6
    source = make(mm_vision_tower=own_tower, state=state)
    with pytest.raises(UserError, match=r"mm_projector\.0\.bias"):
        convert(str(source), tmp_path / "out", dtype="float16", progress=False)
    assert not list(tmp_path.glob("out*"))


def test_new_rows_are_the_mean_of_the_old_ones(make, own_tower, original, tmp_path):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    model = load_checkpoint(str(tmp_path / "out"), device="cpu").model
    for embedding, old in (
        (model.get_input_embeddings(), original.language.model.embed_tokens),
        (model.lm_head, original.language.lm_head),
    ):
        mean = old.weight.mean(0).expand(48, -1)
        torch.testing.assert_close(embedding.weight[VOCABULARY:], mean)


def as_the_original(text: str, model: Path, legacy: bool) -> list[int]:
    """Ids of a prompt as the original makes them: each part around an image on its own, by SentencePiece."""
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model))
    prefix = len(spm.encode("<unk>"))
    ids = [1]
    for number, part in enumerate(text.split("<image>")):
        ids += [PLACEHOLDER] * bool(number)
        for place, said in enumerate(part.split("</s>")):
            ids += [2] * bool(place)
            inside = place > 0 and not legacy
            ids += spm.encode("<unk>" + said)[prefix:] if inside else spm.encode(said) if said else []
    return ids


@pytest.mark.parametrize("legacy", [True, False, None])
def test_a_prompt_has_the_originals_tokens(make, own_tower, words, tmp_path, legacy):
    source = make(mm_vision_tower=own_tower)
    if legacy is not None:
        options = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "pad_token": "<unk>"}
        (source / "tokenizer_config.json").write_text(json.dumps(options))
    convert(str(source), tmp_path / "out", progress=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    blank = Image.new("RGB", (1, 1))
    asked = Conversation().user("Provide the region: what is it?", blank)
    talk = asked.assistant("[0.25, 0.50]").user("Combine both images  and answer.\nOne word.", blank)
    text = tokenizer.apply_chat_template(talk.messages(), add_generation_prompt=True, tokenize=False)
    expected = as_the_original(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "Provide the region: what is it? ASSISTANT: [0.25, 0.50]</s>USER: <image>\n"
        "Combine both images  and answer.\nOne word. ASSISTANT:",
        words,
        legacy is not False,
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [PLACEHOLDER if token == VOCABULARY else token for token in ids] == expected
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (VOCABULARY + 1, 2)


def test_llamas_own_tokenizer_gets_the_ids_of_the_published_checkpoints(shared_data):
    tokenizer = read_tokenizer(shared_data / "tokenizers" / "llama", 32000)
    ids = tokenizer("USER: <image>\nWhat</s>USER:").input_ids
    assert ids == [1, 3148, 1001, 29901, 29871, 32000, 29871, 13, 5618, 2, 3148, 1001, 29901]
    assert tokenizer.pad_token_id == 32001
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(shared_data / "tokenizers/llama/tokenizer.model")
    )
    for text in ("a  b", "two  blanks, three   and\n\n  a line\t.", "naïve 東京 1.00"):
        assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)


def test_plain_transformers_reads_the_result(make, own_tower, tmp_path):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    picture = Image.new("RGB", (SIDE, SIDE), "red")
    inputs = processor(images=picture, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == (SIDE // PATCH) ** 2
    assert model(**inputs).logits.isfinite().all()
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "llama"},
        {"model_type": "llava_mistral"},
        {"mm_projector_type": "linear"},
        {"mm_patch_merge_type": "spatial_unpad"},
        {"image_aspect_ratio": "anyres"},
        {"mm_use_im_start_end": True},
        {"text_config": {}},
        {"num_hidden_layers": 3},
        {"intermediate_size": 100},
        {"mm_vision_tower": "no-such-organisation/no-such-tower"},
    ],
)
def test_what_is_not_built_like_llava_is_refused(make, own_tower, tmp_path, changed):
    source = make(**{"mm_vision_tower": own_tower, **changed})
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out*"))


def test_a_tower_of_another_size_than_its_name_says_is_refused(make):
    with pytest.raises(UserError, match="vision_model"):
        plan(str(make()))


def test_unknown_and_missing_weights_are_named(make, own_tower, original):
    state = original.weights(tower=True)
    odd = make("bin", 1, mm_vision_tower=own_tower, state={**state, "model.image_newline": torch.ones(WIDTH)})
    with pytest.raises(UserError, match=r"model\.image_newline"):
        plan(str(odd))
    for name, said in (
        ("model.layers.1.mlp.up_proj.weight", r"layers\.1\.mlp\.up_proj"),
        ("model.mm_projector.2.bias", r"linear_2\.bias"),
        ("model.embed_tokens.weight", "embed_tokens"),
    ):
        save_shards(odd, "bin", 1, {key: value for key, value in state.items() if key != name})
        with pytest.raises(UserError, match=said):
            plan(str(odd))
    save_shards(odd, "bin", 1, state | {"lm_head.weight": torch.ones(VOCABULARY, WIDTH, dtype=torch.int8)})
    with pytest.raises(UserError, match=r"lm_head\.weight int8"):
        plan(str(odd), dtype="float16")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        lambda folder: torch.save({}, folder / "non_lora_trainables.bin"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.model").unlink(),
        lambda folder: (folder / "pytorch_model-00002-of-00002.bin").unlink(),
        lambda folder: (folder / "pytorch_model-00002-of-00002.bin").write_text("version https://git-lfs"),
        lambda folder: (folder / "pytorch_model.bin.index.json").write_text("[]"),
        lambda folder: [file.unlink() for file in folder.glob("pytorch_model*")],
        lambda folder: [
            file.rename(folder / "mm_projector.bin") for file in sorted(folder.glob("pytorch_model*"))
        ],
    ],
)
def test_adapters_and_incomplete_folders_are_refused(make, own_tower, tmp_path, spoil):
    source = make(mm_vision_tower=own_tower)
    spoil(source)
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_exists_is_never_touched(make, own_tower, tmp_path):
    source = make(mm_vision_tower=own_tower)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "new", dtype="float64", progress=False)


def test_a_full_disk_leaves_nothing_behind(make, own_tower, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_index", full)
    with pytest.raises(UserError, match="No space left"):
        convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out*"))


KILLED = """
import os, signal, sys
from dualfocus_lmms.models.convert import llava as convert
convert.write_index = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
convert.convert(sys.argv[1], sys.argv[2], progress=False)
"""


def test_a_killed_conversion_looks_unfinished_and_can_be_begun_again(make, own_tower, original, tmp_path):
    source, target = str(make(mm_vision_tower=own_tower)), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, source, target], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert not (tmp_path / "out.partial" / "config.json").exists()
    assert list((tmp_path / "out.partial").glob("*.safetensors"))
    convert(source, target, progress=False)
    assert compare(target, original) < 1e-5
    assert not (tmp_path / "out.partial").exists()


MEASURED = """
import sys
from pathlib import Path
from dualfocus_lmms.models.convert.llava import convert, plan

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])

source, target, dtype = sys.argv[1:]
plan(source, dtype=dtype)  # loads all that is loaded on first use
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
convert(source, target, dtype=dtype, progress=False)
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize(("form", "dtype"), [("bin", "auto"), ("safetensors", "bfloat16")])
def test_the_peak_memory_is_below_one_and_a_fifth_shards(make, own_tower, original, tmp_path, form, dtype):
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 6, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, **sizes)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    state = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    state |= {name: value for name, value in original.weights(tower=True).items() if "vision" in name}
    for name, shape in (("0", (1024, 32)), ("2", (1024, 1024))):
        state |= {f"model.mm_projector.{name}.weight": torch.ones(shape)}
        state |= {f"model.mm_projector.{name}.bias": torch.ones(shape[:1])}
    source = make(form, 4, state=state, mm_vision_tower=own_tower, **sizes)
    shard = max(file.stat().st_size for file in source.iterdir())

    def peak(number):
        command = [sys.executable, "-c", MEASURED, source, tmp_path / f"out{number}", dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    # The system counts some megabytes more now and then, never fewer.
    assert any(peak(number) < 1.2 * shard for number in range(4))
    assert sum(file.stat().st_size for file in source.iterdir()) > 3.5 * shard


def test_the_command_prints_what_it_converted(make, own_tower, tmp_path, monkeypatch, capsys):
    source = make(mm_vision_tower=own_tower)
    for target, code in ((tmp_path / "out", 0), (tmp_path / "out", 2)):
        monkeypatch.setattr(sys, "argv", ["dualfocus", "convert", str(source), str(target)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
    printed = capsys.readouterr()
    table = {line.split("  ")[0].strip(): line.split() for line in printed.out.splitlines() if "  " in line}
    assert table["projector"][1:3] == ["4", f"{32 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH:,}"]
    assert table["dropped: computed from config.json"][4] == "2"
    assert printed.err.endswith("give a new folder.\n")


def test_an_original_checkpoint_is_not_loaded_as_it_is(make):
    with pytest.raises(UserError):
        load_checkpoint(str(make()), device="cpu")
