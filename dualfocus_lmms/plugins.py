"""Families and selection rules by name, of this package and others, found through entry points."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, Any

from dualfocus_lmms import calibrated
from dualfocus_lmms.errors import UserError, choose

if TYPE_CHECKING:
    from dualfocus_lmms.family import Family
    from dualfocus_lmms.selection import Rule

FAMILIES = "dualfocus_lmms.families"
RULES = "dualfocus_lmms.rules"


def names(group: str) -> list[str]:
    """The names that installed packages registered in an entry-point group, sorted."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load_rule(name: str) -> Rule:
    """The selection rule called `name`, or in the file that it names; UserError lists the known ones."""
    if calibrated.is_calibrated(name):
        return calibrated.load(name)
    return _load(entry_points(group=RULES), "selection rule", name, calibrated.NAMES)


def load_family(name: str) -> Family:
    """The model family called `name`; UserError lists the known ones."""
    return _load(entry_points(group=FAMILIES), "model family", name)


def family_for(model_type: str) -> Family:
    """The family that handles a checkpoint's `model_type` (config.json); UserError lists all types."""
    registered = entry_points(group=FAMILIES)  # reads the metadata of all installed packages
    families = [_load(registered, "model family", name) for name in sorted(registered.names)]
    for family in families:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(kind for family in families for kind in family.model_types))
    raise UserError(
        f"No family handles model type {model_type!r}: this installation handles {known}. Give "
        "family=generic, which runs any image-text model of transformers, or a "
        f"package that adds the family through the entry-point group {FAMILIES!r}."
    )


def _load(registered: EntryPoints, what: str, name: str, others: Sequence[str] = ()) -> Any:
    """What is registered as `name`. others: names of other things of that kind, for the message."""
    found = registered.select(name=name)
    if not found:
        raise choose(what, name, [*sorted(registered.names), *others])
    if len({entry.value for entry in found}) > 1:
        packages = ", ".join(sorted(entry.dist.name for entry in found if entry.dist))
        raise UserError(f"More than one package brings a {what} {name!r}: {packages}. Remove all but one.")
    (entry, *_) = found
    try:
        return entry.load()
    except Exception as error:  # another package's code may raise anything: name the package
        package = entry.dist.name if entry.dist else "?"
        raise UserError(
            f"The {what} {name!r} of package {package} cannot be loaded ({entry.value}): {error!r}."
        ) from error
