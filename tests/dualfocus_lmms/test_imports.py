"""How large libraries are imported: no collection meanwhile, and which are left out."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from dualfocus_lmms import imports
from dualfocus_lmms.imports import large_imports, own_process, without_pipelines


@pytest.fixture(autouse=True)
def thawed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(imports, "_own_process", False)
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_nothing_is_collected_while_libraries_are_imported():
    with large_imports():
        assert not gc.isenabled()
        with large_imports():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), large_imports():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("ours", "loaded", "skipped"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_later_collections_skip_the_first_libraries_of_our_own_process(
    ours: bool, loaded: bool, skipped: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", sys)
    if ours:
        own_process()
    with large_imports():
        pass
    assert (gc.get_freeze_count() > 0) == skipped


@pytest.mark.parametrize("loaded", [False, True])
def test_pipelines_are_left_out_while_nothing_has_loaded_them(loaded: bool, monkeypatch: pytest.MonkeyPatch):
    name = "transformers.pipelines"
    for known in (name, "evaluate"):
        monkeypatch.delitem(sys.modules, known, raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, name, sys)
    with without_pipelines():
        if loaded:
            assert import_module(name) is sys
        else:
            with pytest.raises(ImportError):
                import_module(name)
    assert (name in sys.modules) == loaded
