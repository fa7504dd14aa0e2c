"""Model arguments: defaults, types, and every impossible value refused before anything is loaded."""

from typing import get_args

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.family import EngineName
from dualfocus_lmms.models.checkpoint.loading import DTYPES
from dualfocus_lmms.models.engines.registry import ENGINES
from dualfocus_lmms.models.host.options import ModelOptions, parse_model_args
from dualfocus_lmms.options import DtypeName


def test_defaults_are_the_paper_with_both_pathways():
    options = ModelOptions.of({"pretrained": "somewhere"})
    assert options.settings().to_dict() == {
        "protocol": "paper",
        "pathway": "both",
        "select": "ppl",
        "skip_confidence": 1.0,
        "box_margin": 0,
        "count_eos": False,
        "grounding": "model",
        "grounding_checkpoint": None,
        "box_shift": 0,
        "prompts": "paper",
        "subimage": "turn",
        "crop_pixels": "auto",
        "regions": "union",
        "looks": 1,
    }
    assert (options.batch_size, options.engine, options.dtype) == (1, None, "auto")


def test_the_release_brings_its_own_defaults_and_each_can_be_overridden():
    given = {"pretrained": "somewhere", "protocol": "release"}
    settings = ModelOptions.of(given).settings()
    assert (settings.box_margin, settings.count_eos, settings.rule_name) == (25, True, "release")
    settings = ModelOptions.of(given | {"box_margin": 3, "count_eos": False, "select": "micro"}).settings()
    assert (settings.box_margin, settings.count_eos, settings.rule_name) == (3, False, "micro")


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "papre"},
        {"pathway": "micro"},
        {"select": "loudest"},
        {"prompts": "papre"},
        {"skip_confidence": 1.5},
        {"skip_confidence": "often"},
        {"box_margin": -1},
        {"box_margin": 2.5},
        {"count_eos": "maybe"},
        {"grounding": "everything"},
        {"grounding": 1},
        {"box_shift": -10},
        {"box_shift": 2.5},
        {"box_shift": "far"},
        {"crop_pixels": "large"},
        {"crop_pixels": 0},
        {"crop_pixels": 1e6},
        {"crop_pixels": True},
        {"min_pixels": 0},
        {"max_pixels": "256*28*28"},
        {"max_pixels": 2.5},
        {"batch_size": 0},
        {"batch_size": "auto:4"},
        {"batch_size": 2.5},
        {"batch_size": "auto", "max_batch_size": 0},
        {"device_map": "balanced"},
        {"device_map": "auto", "device": "cuda:0"},
        {"resume": True},
        {"trace": ""},
        {"resume": "yes", "trace": "somewhere"},
        {"skip_confidences": 0.8},
        {"cuda_graphs": "yes"},
        {"engine": "bush"},
        {"dtype": "int4"},
        {"family": "lava"},
        {"chat_template": "vicuna_v1"},
        {"pretrained": ""},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(UserError):
        ModelOptions.of({"pretrained": "somewhere"} | wrong).settings()


def test_a_checkpoint_is_needed():
    with pytest.raises(UserError):
        ModelOptions.of({})


def test_one_checkpoint_folder_is_the_same_run_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = ("checkpoint", "./checkpoint/", str(tmp_path / "checkpoint"), "~/checkpoint")
    written = [ModelOptions.of({"pretrained": way}).identity()["pretrained"] for way in ways]
    assert written == [str((tmp_path / "checkpoint").resolve())] * 4
    assert ModelOptions.of({"pretrained": "x", "trace": "~/traces"}).trace == str(tmp_path / "traces")


def test_names_made_of_digits_stay_as_they_were_written():
    text = "pretrained=1e3,trace=007, revision=12345e678,batch_size=2,skip_confidence=0.5,resume=True"
    assert parse_model_args(text) == {
        "pretrained": "1e3",
        "trace": "007",
        "revision": "12345e678",
        "batch_size": 2,
        "skip_confidence": 0.5,
        "resume": True,
    }
    assert parse_model_args("pretrained=a=b/c,trace=true") == {"pretrained": "a=b/c", "trace": "true"}
    assert parse_model_args("") == {}
    with pytest.raises(UserError):
        parse_model_args("pretrained=a,b")


def test_only_what_decides_answers_is_part_of_a_runs_identity():
    first = ModelOptions.of({"pretrained": "somewhere", "batch_size": "8", "engine": "naive", "trace": "a"})
    second = ModelOptions.of({"pretrained": "somewhere", "box_margin": 0, "trace": "b", "device": "cpu"})
    other = ModelOptions.of({"pretrained": "somewhere", "batch_size": "auto", "device_map": "auto"})
    third = ModelOptions.of({"pretrained": "somewhere", "box_margin": 1})
    assert first.identity() == second.identity() == other.identity() != third.identity()


def test_where_the_region_comes_from_is_part_of_a_runs_identity():
    ways = [{}, {"grounding": "annotated"}, {"grounding": "random"}, {"box_shift": 10}, {"box_shift": 25}]
    runs = [ModelOptions.of({"pretrained": "somewhere"} | way) for way in ways]
    assert len({repr(run.identity()) for run in runs}) == len(ways)
    assert [run.settings().to_dict()["grounding"] for run in runs[:3]] == ["model", "annotated", "random"]
    assert [run.settings().box_shift for run in runs] == [0, 0, 0, 10, 25]
    given = parse_model_args("pretrained=x,grounding=whole,box_shift=150")
    settings = ModelOptions.of(given).settings()
    assert (settings.grounding, settings.box_shift) == ("whole", 150)


def test_the_wordings_are_part_of_a_runs_identity():
    runs = [
        ModelOptions.of({"pretrained": "x"} | way)
        for way in ({}, {"prompts": "native"}, {"prompts": "figure8"})
    ]
    assert [run.identity()["prompts"] for run in runs] == ["paper", "native", "figure8"]
    same = ModelOptions.of({"pretrained": "x", "prompts": "paper"})
    assert same.identity() == runs[0].identity()


def test_the_batch_size_is_a_number_or_found_by_trying():
    given = parse_model_args("pretrained=x,batch_size=auto,max_batch_size=32")
    options = ModelOptions.of(given)
    assert (options.batch_size, options.max_batch_size) == ("auto", 32)
    assert ModelOptions.of({"pretrained": "x", "batch_size": "8"}).batch_size == 8


def test_a_run_is_known_by_the_same_values_as_ever():
    """An older trace folder is resumed where its run.json holds these."""
    assert ModelOptions.of({"pretrained": "x", "trace": "a", "device": "cpu"}).identity() == {
        "protocol": "paper",
        "pathway": "both",
        "select": "ppl",
        "skip_confidence": 1.0,
        "box_margin": 0,
        "count_eos": False,
        "grounding": "model",
        "grounding_checkpoint": None,
        "box_shift": 0,
        "prompts": "paper",
        "subimage": "turn",
        "pretrained": "x",
        "dtype": "auto",
        "revision": None,
        "family": None,
        "chat_template": "auto",  # of a folder that is older than this argument too
        "crop_pixels": "auto",
        "regions": "union",
        "looks": 1,
        "min_pixels": None,
        "max_pixels": None,
    }


def test_keeping_maps_decides_no_answer():
    given = {"pretrained": "x", "grounding": "attention"}
    kept = ModelOptions.of(given | {"keep_maps": 1})
    assert kept.identity() == ModelOptions.of(given).identity()
    assert kept.settings().keep_maps


def test_a_switch_is_true_false_or_their_numbers():
    for given, expected in ((True, True), (1, True), (False, False), (0, False)):
        assert ModelOptions.of({"pretrained": "x", "cuda_graphs": given}).cuda_graphs is expected
    for given in ("yes", "true", 2, None):
        with pytest.raises(UserError, match="cuda_graphs is True or False"):
            ModelOptions.of({"pretrained": "x", "cuda_graphs": given})


def test_an_empty_family_is_none():
    """As a variable of the shell leaves it that is not set."""
    assert not ModelOptions.of(parse_model_args("pretrained=x,family=")).family


def test_the_names_that_are_declared_are_those_that_are_there():
    assert get_args(EngineName) == tuple(ENGINES)
    assert get_args(DtypeName) == ("auto", *DTYPES)
