"""lmms-eval and our model classes: how it finds them, what their base does, what it takes back from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

LookUp = Callable[[str], Any]
MANIFEST = "lmms_eval.models.registry_v2:ModelManifest"
BASE = "lmms_eval.api.model:lmms"


@pytest.fixture
def plain(foreign: LookUp) -> Any:
    """A model class with what its base asks for and nothing else."""

    class Plain(foreign(BASE)):
        def generate_until(self, requests: Any) -> list[str]:
            return []

        def generate_until_multi_round(self, requests: Any) -> list[str]:
            return []

        def loglikelihood(self, requests: Any) -> list[Any]:
            return []

    return Plain


def test_a_manifest_has_the_fields_that_ours_fill(foreign: LookUp) -> None:
    """The manifest: another name of a field, and the host drops every plugin with only a warning."""
    manifest = foreign(MANIFEST)(model_id="m", simple_class_path="a.Simple", chat_class_path="a.Chat")
    assert (manifest.model_id, manifest.simple_class_path, manifest.chat_class_path) == (
        "m", "a.Simple", "a.Chat",
    ), "ModelManifest"  # fmt: skip


def test_the_registry_takes_chat_unless_simple_is_forced(foreign: LookUp) -> None:
    """The two adapters: the chat form is the one that is documented, `--force_simple` gives the other."""
    registry = foreign("lmms_eval.models.registry_v2:ModelRegistryV2")()
    registry.register_manifest(foreign(MANIFEST)("m", simple_class_path="a.Simple", chat_class_path="a.Chat"))
    assert registry.resolve("m").class_path == "a.Chat"
    assert registry.resolve("m", force_simple=True).class_path == "a.Simple"


def test_the_host_reads_the_entry_point_group_of_plugins(foreign: LookUp) -> None:
    """The entry point `lmms_eval.models`: under another group no model of ours would be known."""
    for name in ("dualfocus", "dualfocus_server", "dualfocus_replay"):
        assert foreign("lmms_eval.models:get_model_manifest")(name).model_id == name


def test_an_unknown_model_is_a_value_error_of_require_model_id(foreign: LookUp) -> None:
    """`dualfocus eval`: it knows by the function's name that the user misspelt the model."""
    with pytest.raises(ValueError, match="dualfocuss") as caught:
        foreign("lmms_eval.models:get_model_manifest")("dualfocuss")
    assert caught.traceback[-1].frame.code.name == "_require_model_id"


def test_the_base_class_asks_for_nothing_that_ours_lack(foreign: LookUp) -> None:
    """The model classes: one more abstract method, and none of ours can be made."""
    asked = foreign(BASE).__abstractmethods__
    assert asked <= {"generate_until", "generate_until_multi_round", "loglikelihood"}, (
        f"lmms asks for {asked}"
    )


def test_the_base_class_gives_rank_and_documents(plain: Any) -> None:
    """The model classes: one process says what the data were, and documents come from `task_dict`."""
    model = plain()
    assert (model._rank, model._world_size, model.task_dict) == (0, 1, {}), "lmms.__init__"
    assert (model.rank, model.world_size) == (0, 1), "lmms.rank"
    assert plain.is_simple is True, "lmms.is_simple: our simple adapter leaves it as it is"


def test_clean_deletes_modules_alone(plain: Any) -> None:
    """The model classes: `clean` of the base is called last and must leave what says where the traces are."""
    model = plain()
    model._trace_folder, model.layer = "traces", torch.nn.Linear(1, 1)
    model.clean()
    assert model._trace_folder == "traces", "lmms.clean"
    assert not hasattr(model, "layer"), "lmms.clean"


def test_a_class_is_made_by_create_from_arg_string(foreign: LookUp, plain: Any) -> None:
    """The model classes override it: under another name, model arguments would be read as the host does."""
    source = inspect.getsource(foreign("lmms_eval.evaluator:simple_evaluate"))
    for used in (".create_from_arg_string(", '"batch_size"', '"device"'):
        assert used in source, f"simple_evaluate no longer calls {used}"
    parameters = list(inspect.signature(plain.create_from_arg_string).parameters)
    assert parameters == ["arg_string", "additional_config"], "lmms.create_from_arg_string"


def test_visual_chains_are_asked_by_generate_visual_cot(foreign: LookUp) -> None:
    """The model classes refuse such tasks by overriding it; else the host's own words would be shown."""
    assert foreign(f"{BASE}.generate_visual_cot")


def test_a_result_carries_text_and_counts(foreign: LookUp) -> None:
    """The model classes: answers go back as GenerationResult(text, counts) and are taken apart again."""
    counts = foreign("lmms_eval.api.instance:TokenCounts")(input_tokens=3, output_tokens=2)
    result = foreign("lmms_eval.api.instance:GenerationResult")("yes", counts)
    assert foreign("lmms_eval.api.instance:unwrap_generation_output")(result) == ("yes", counts)


def test_counts_may_be_a_subclass_with_more_to_say(foreign: LookUp) -> None:
    """The extras of the samples file: `to_dict` of a subclass is called and holds the plain counts too."""
    base = foreign("lmms_eval.api.instance:TokenCounts")

    @dataclass
    class Extras(base):
        more: str = ""

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), "dualfocus": self.more}

    said = Extras(input_tokens=3, output_tokens=2, more="box").to_dict()
    assert said == {"input_tokens": 3, "output_tokens": 2, "dualfocus": "box"}, "TokenCounts.to_dict"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("trace=1e3,batch_size=4", {"trace": 1000.0, "batch_size": 4}),
        ("resume=True,count_eos=false", {"resume": True, "count_eos": False}),
        ("until=['a,b'],select=ppl", {"until": "['a,b']", "select": "ppl"}),
    ],
)
def test_arguments_are_parsed_as_ours_expect(foreign: LookUp, text: str, values: dict[str, Any]) -> None:
    """The model options: numbers and truth values come typed; names of folders are put right by us."""
    assert foreign("lmms_eval.utils:simple_parse_args_string")(text) == values


def test_arguments_without_a_value_are_a_value_error(foreign: LookUp) -> None:
    """The model options and `--gen_kwargs`: any other error would be shown with its traceback."""
    with pytest.raises(ValueError, match="unpack"):
        foreign("lmms_eval.utils:simple_parse_args_string")("resume")
