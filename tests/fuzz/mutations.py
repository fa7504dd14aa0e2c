"""Damaged files: bytes that a disk spoils, and structures that another program writes. All are seeded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

DEEP = 3000  # lists in each other

# In the place of any value: every JSON type, numbers as texts, what no file of ours holds.
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 999, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "1", "1.5", "null",
    "\ud83d", "a\x00b", "n" * 5000, "../../x", [], [1], [None], {}, {"x": 1}, [[[]]], "DEEP",
)  # fmt: skip


def dump(value: Any) -> str:
    """JSON, with "DEEP" as lists nested deeper than any parser goes."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace('"DEEP"', "[" * DEEP + "]" * DEEP)


def encode(text: str) -> bytes:
    """UTF-8, half characters as JSON escapes."""
    return text.encode("utf-8", "backslashreplace")


def spoil(content: bytes, random: Random) -> bytes:
    """Some bytes changed, lost, repeated or moved, at one place or a few."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        if not data:
            return bytes(data)
        at, size = random.randrange(len(data)), random.choice((1, 1, 2, 8, 64))
        kind = random.randrange(7)
        if kind == 0:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == 5:
            data[at:at] = random.choice(
                (b"\xff", b"\x00", b"\n", b'"', b"[", b"}", b"\\ud83d", b"\t", b"\xc3")
            )
        else:
            data[at : at + 1] = str(random.randrange(-5, 10**6)).encode()
    return bytes(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


def bend(value: Any, random: Random) -> Any:
    """A copy with one to three values replaced, removed, repeated or under another name."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 3))):
        path = random.choice(_places(value))
        if not path:
            return copy.deepcopy(random.choice(ODD)) if random.random() < 0.2 else value
        place = value
        for key in path[:-1]:
            place = place[key]
        key, kind = path[-1], random.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[random.choice(("x", "", key.upper() if isinstance(key, str) else "y", "__class__"))] = (
                place.pop(key)
            )
        elif kind == 2 and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        else:
            place[key] = copy.deepcopy(random.choice(ODD))
    return value


def bent_json(content: bytes, random: Random) -> bytes:
    """A JSON file with another structure."""
    return encode(dump(bend(json.loads(content), random)))


def bent_lines(content: bytes, random: Random) -> bytes:
    """JSON lines, one of them with another structure, repeated, moved or very long."""
    rows = content.decode().splitlines()
    at, kind = random.randrange(len(rows)), random.randrange(8)
    if kind == 0:
        rows.append(rows[at])
    elif kind == 1:
        rows.insert(0, rows.pop(at))
    elif kind == 2:
        rows[at] = rows[at] + " " * 200_000
    elif kind == 3:
        rows[at] = rows[at] + rows[-1]
    else:
        rows[at] = dump(bend(json.loads(rows[at]), random)).replace("\n", " ")
    return encode("\n".join(rows) + "\n")


def bent_yaml(content: bytes, random: Random) -> bytes:
    """A YAML file with another structure, or with what only YAML has."""
    import yaml

    if random.random() < 0.3:
        odd = (
            "2001-99-99",
            "*x",
            "&x [*x]",
            "!!python/object:os.system x",
            "? [1]\n: 2",
            "!!int ''",
            ".nan",
            "0x",
            "%",
        )
        rows = content.decode().splitlines()
        rows.insert(
            random.randrange(len(rows) + 1), random.choice(("x: ", "", "  ", "model: ")) + random.choice(odd)
        )
        return "\n".join(rows).encode()
    return encode(dump(bend(yaml.safe_load(content), random)))  # JSON is YAML


def bent_text(content: bytes, random: Random) -> bytes:
    """name=value,name=value with other names, values or commas."""
    parts = content.decode().split(",")
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(parts))
        name = parts[at].split("=")[0]
        odd = [str(value)[:60] for value in ODD if not isinstance(value, str) or len(value) < 60]
        parts[at] = random.choice(
            (f"{name}={random.choice(odd)}", name, f"={name}", "", f"{name}==1", f"{name}=a=b")
        )
    return encode(",".join(parts))


Mutation = Callable[[bytes, Random], bytes]
