"""lmms-eval's tasks: how YAML files become tasks, documents and requests."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

LookUp = Callable[[str], Any]
Load = Callable[..., Any]

# A module of a task as ours are: dotted paths lead to it, and one attribute follows what happens meanwhile.
MODULE = """
from PIL import Image
import datasets

calls = []
prompts = "question {}"

def __getattr__(name):
    if name == "DATASET_PATH":
        calls.append(name)
        return "text"
    raise AttributeError(name)

def documents(dataset):
    calls.append(str(dataset.split))
    rows = [{"question": str(number), "answer": "yes", "note": number} for number in range(3)]
    return datasets.Dataset.from_list(rows)

def prompt(doc):
    return prompts.format(doc["question"])

def images(doc):
    return [Image.new("RGB", (4, 4))]

def results(doc, results):
    calls.append(results)
    return {"accuracy": 100.0}
"""
SHARED = """
dataset_path: !function contract_docs.DATASET_PATH
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
process_docs: !function contract_docs.documents
doc_to_text: !function contract_docs.prompt
doc_to_visual: !function contract_docs.images
doc_to_target: answer
process_results: !function contract_docs.results
test_split: test
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.5, dualfocus: {{question: question}}}}
"""
TASK = "include: shared.yaml\ntask: contract_task\noutput_type: generate_until\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the YAML files; the task's module lies above it."""
    above = tmp_path_factory.mktemp("tasks")
    (above / "contract_docs.py").write_text(MODULE)
    folder = above / "tasks"
    folder.mkdir()
    (folder / "shared.yaml").write_text(SHARED.format(file=__file__, cache=above / "cache"))
    (folder / "task.yaml").write_text(f"{TASK}generation_kwargs: {{max_new_tokens: 8, until: []}}\n")
    (folder / "plain.yaml").write_text(TASK.replace("contract_task", "contract_plain"))
    (folder / "group.yaml").write_text("group: contract_group\ntask: [contract_task, contract_plain]\n")
    return folder


@pytest.fixture(scope="module")
def manager(foreign: LookUp, folder: Path) -> Any:
    """The host's index of the folder; one that is not there beside it."""
    folders = [str(folder / "none"), str(folder)]
    return foreign("lmms_eval.tasks:TaskManager")(include_defaults=False, include_path=folders)


@pytest.fixture
def docs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task's module, loaded anew."""
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "contract_docs", raising=False)
    importlib.invalidate_caches()
    return importlib.import_module("contract_docs")


@pytest.fixture
def load(foreign: LookUp, docs: Any, manager: Any) -> Load:
    """Loads a task by name, in the form "simple" or "chat"."""

    def task(name: str = "contract_task", form: str = "simple") -> Any:
        return foreign("lmms_eval.tasks:get_task_dict")([name], manager, form)[name]

    return task


def test_the_task_manager_calls_initialize_tasks(foreign: LookUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest wraps it: under another name none of our tasks would be found, without a word."""
    asked = []

    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True) -> Any:
        asked.append((include_path, include_defaults))
        return {}

    manager = foreign("lmms_eval.tasks:TaskManager")
    monkeypatch.setattr(manager, "initialize_tasks", initialize_tasks)
    manager(include_path="folder", include_defaults=False)
    assert asked == [("folder", False)], "TaskManager.initialize_tasks(self, include_path, include_defaults)"


def test_the_index_takes_a_list_of_folders_and_no_defaults(manager: Any) -> None:
    """The manifest adds our folder to those given, and leaves the host's own tasks out where it can."""
    others = [name for name in manager.all_subtasks if not name.startswith("df_")]  # ours may be in it too
    assert others == ["contract_plain", "contract_task"], "TaskManager.all_subtasks"
    assert "contract_group" in manager.all_groups, "TaskManager.all_groups"


def test_a_function_of_a_yaml_may_be_any_attribute_at_that_time(load: Load, docs: Any) -> None:
    """The tasks: where their documents come from follows the environment, through a module's __getattr__."""
    load()
    first = docs.calls.count("DATASET_PATH")
    load()
    assert 0 < first < docs.calls.count("DATASET_PATH"), "!function is read once, not at every load"


def test_process_docs_replaces_the_documents_and_knows_their_split(load: Load, docs: Any) -> None:
    """The tasks: they read their files in the place of a placeholder, and POPE's which one by the split."""
    task = load()
    assert "test" in docs.calls, "process_docs is given a data set that knows its split"
    assert [doc["note"] for doc in task.eval_docs] == [0, 1, 2], "Task.eval_docs"
    assert [doc["note"] for doc in task.eval_docs_no_media] == [0, 1, 2], "Task.eval_docs_no_media"


def test_the_first_prompt_is_made_when_the_task_is_loaded(load: Load, docs: Any) -> None:
    """The tasks: what is wrong with their files is raised there, as it was; else it would be a RetryError."""

    class WrongError(Exception):
        pass

    def refuse(doc: Any) -> str:
        raise WrongError

    docs.prompt = refuse
    with pytest.raises(WrongError):
        load()


def test_a_data_set_that_fails_is_a_retry_error(
    foreign: LookUp, load: Load, docs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dualfocus score` and `dualfocus eval` look for the cause in tenacity's `last_attempt`."""
    calls = []

    def fail(dataset: Any) -> Any:
        calls.append(dataset)
        raise OSError("no file")

    docs.documents = fail
    monkeypatch.setattr(
        foreign("lmms_eval.api.task:ConfigurableTask.download.retry"), "sleep", lambda _: None
    )
    with pytest.raises(foreign("tenacity:RetryError")) as caught:
        load()
    assert str(caught.value.last_attempt.exception()) == "no file", "RetryError.last_attempt.exception"
    assert len(calls) == 5, "the host no longer tries to load a data set five times"


def test_a_task_has_the_attributes_that_are_read(load: Load) -> None:
    """`dualfocus score`, the report and the readers of requests: version, metadata, prompts, images."""
    task = load()
    doc = task.eval_docs[0]
    assert str(task.VERSION) == "1.5", "ConfigurableTask.VERSION"
    assert task.config.metadata["dualfocus"] == {"question": "question"}, "TaskConfig.metadata"
    assert task.doc_to_text(doc) == "question 0", "ConfigurableTask.doc_to_text"
    assert task.doc_to_target(doc) == "yes", "ConfigurableTask.doc_to_target"
    assert isinstance(task.doc_to_visual(doc)[0], Image.Image), "ConfigurableTask.doc_to_visual"
    assert list(task.aggregation()) == ["accuracy"], "ConfigurableTask.aggregation"


def test_replies_are_stripped_and_plain_before_they_are_scored(load: Load, docs: Any) -> None:
    """`dualfocus score`: an answer that is missing must reach the task's own function as it is, and does so
    only through `config.process_results`."""

    class Missing(str):
        pass

    task = load()
    task.process_results({}, [" yes "])
    assert docs.calls[-1] == ["yes"], "ConfigurableTask.process_results"
    task.config.process_results({}, [Missing()])
    assert type(docs.calls[-1][0]) is Missing, "TaskConfig.process_results"


@pytest.mark.parametrize("form", ["simple", "chat"])
def test_requests_have_their_arguments_in_this_order(load: Load, form: str) -> None:
    """The reader of requests takes them apart by place: another order would ask other questions."""
    task = load(form=form)
    task.build_all_requests(limit=1)
    (instance,) = task.instances
    kinds = {"context": str, "settings": dict, "doc_id": int, "task": str, "split": str}
    order = ["context", "settings", "content", "doc_id", "task", "split"]
    if form == "chat":
        order = ["context", "content", "settings", "doc_id", "task", "split"]
    given = dict(zip(order, instance.args, strict=True))
    assert all(isinstance(given[name], kind) for name, kind in kinds.items()), f"Instance.args is not {order}"
    assert (given["context"], given["doc_id"], given["split"]) == ("question 0", 0, "test"), "Instance.args"
    assert (given["task"], given["settings"]["max_new_tokens"]) == ("contract_task", 8), "Instance.args"
    content = given["content"](task.dataset["test"][0])
    if form == "chat":
        (message,) = content
        seen, said = message["content"]
        assert (message["role"], seen["type"]) == ("user", "image"), "ConfigurableTask.doc_to_messages"
        assert said == {"type": "text", "text": "question 0"}, "ConfigurableTask.doc_to_messages"
        content = [seen.get("url", seen.get("image"))]
    assert isinstance(content[0], Image.Image), "ConfigurableTask.doc_to_visual"


def test_a_request_has_the_metadata_of_its_task(load: Load) -> None:
    """The reader of requests finds the columns of question, options and box there; else it would guess."""
    task = load()
    task.build_all_requests(limit=1)
    assert task.instances[0].metadata["dualfocus"] == {"question": "question"}, "Instance.metadata"


def test_only_generated_answers_have_messages(load: Load) -> None:
    """`dualfocus eval`: this assertion means that the task is none of those that DualFocus can answer."""
    task = load(form="chat")
    task.OUTPUT_TYPE = "multiple_choice"
    with pytest.raises(AssertionError) as caught:
        task.construct_requests(doc_id=0, ctx="", metadata={"split": "test"})
    assert caught.traceback[-1].frame.code.name == "construct_requests"


def test_a_task_without_stop_strings_stops_at_a_blank_line(foreign: LookUp, load: Load) -> None:
    """Our tasks say `until: []` for it: a reply that opens with a blank line would become nothing."""
    config = foreign("lmms_eval.api.task:TaskConfig")
    for given in (None, {"max_new_tokens": 8}):
        made = config(task="t", output_type="generate_until", generation_kwargs=given)
        assert made.generation_kwargs["until"] == ["\n\n"], "TaskConfig: the default of `until`"
    assert load("contract_task").config.generation_kwargs["until"] == [], "TaskConfig: `until: []`"


def test_the_host_keeps_data_sets_where_this_variable_says(foreign: LookUp) -> None:
    """GQA's task loads the hub's images by itself, into the same folder: else twice."""
    assert "LMMS_EVAL_DATASETS_CACHE" in inspect.getsource(foreign("lmms_eval.api.task"))
