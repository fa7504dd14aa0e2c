"""What a reply probably is, before it is said: tokens that an engine may read ahead of the model's choice.

A draft never decides a token. It is read together with the token before it, and counts only as far as the
model chooses the same. Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dualfocus_lmms.boxes import Box, BoxFormat

# Boxes that have another digit in every place, so that what they share is the notation.
_BOXES = (
    Box(0.123, 0.234, 0.567, 0.678),
    Box(0.246, 0.359, 0.781, 0.893),
    Box(0.371, 0.412, 0.895, 0.946),
)
_SIZE = (1000, 1000)  # pixels: coordinates of three digits where pixels are written


@dataclass(frozen=True, slots=True)
class Draft:
    """Runs of tokens with unknown ones between them; the empty draft expects nothing.

    gaps: how many unknown tokens there usually are between each run and the next. filler: a token that any of
    them may be.
    """

    runs: tuple[tuple[int, ...], ...] = ()
    gaps: tuple[int, ...] = ()
    filler: int | None = None

    def after(self, said: Sequence[int]) -> tuple[int, ...]:
        """The known tokens that come next; none inside a gap, at the end, or where `said` is another reply.

        >>> Draft(((7,), (8, 9)), (2,)).after([7, 1, 2])
        (8, 9)
        """
        rest = tuple(said)
        for number, run in enumerate(self.runs):
            if rest[: len(run)] != run[: len(rest)]:
                return ()
            if len(rest) < len(run):
                return run[len(rest) :]
            rest = rest[len(run) :]
            if number == len(self.gaps):
                return ()
            following = self.runs[number + 1]
            if following[0] not in rest:
                return following if len(rest) == self.gaps[number] else ()
            rest = rest[rest.index(following[0]) :]
        return ()

    def beyond(self, said: Sequence[int]) -> tuple[int, ...]:
        """Where one unknown token comes next and then a run, a filler for it and the run; not the last run.

        What follows these is probably what will follow the right ones: a number seldom depends on the last
        digit of the one before.

        >>> Draft(((7,), (8, 9), (5,)), (2, 1), filler=3).beyond([7, 1])
        (3, 8, 9)
        """
        if self.filler is None or self.after(said):
            return ()
        run = self.after((*said, self.filler))
        return (self.filler, *run) if run in self.runs[1:-1] else ()


def box_draft(box_format: BoxFormat, tokens: Callable[[str], Sequence[int]]) -> Draft:
    """The draft of any box in a notation. tokens: the ids of a text as the model says it.

    Empty where the boxes of one notation differ in length, as the tokenizer cuts them.
    """
    written = [tokens(box_format.write(box, _SIZE, _SIZE)) for box in _BOXES]
    if len({len(ids) for ids in written}) > 1:
        return Draft()
    places = [(column[0], len(set(column)) == 1) for column in zip(*written, strict=True)]
    runs: list[tuple[int, ...]] = [()]
    gaps, unknown = [], 0
    for known, group in groupby(places, key=lambda place: place[1]):
        ids = tuple(token for token, _ in group)
        if not known:
            unknown = len(ids)
        elif unknown:
            runs.append(ids)
            gaps.append(unknown)
        else:
            runs[0] = ids
    unknown_places = [place for place, (_, known) in enumerate(places) if not known]
    return Draft(tuple(runs), tuple(gaps), written[0][unknown_places[-1]] if unknown_places else None)
