"""Drafts: the tokens that a reply probably has, which an engine computes before the model has chosen them.

A draft never decides a token: it is accepted only as far as the model's own argmax agrees. No weights.

The box "[0.12, 0.34, 0.56, 0.78]" as a tokenizer with one token per character writes it. All boxes share the
runs, "[0." and so on, and between two runs is a gap of two unknown digits:

>>> draft = box_draft(BoxFormat("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]"), lambda text: [ord(one) for one in text])
>>> def text(tokens):
...     return "".join(map(chr, tokens))
>>> [text(run) for run in draft.runs], draft.gaps
(['[0.', ', 0.', ', 0.', ', 0.', ']'], (2, 2, 2, 2))
>>> def expected(generated):
...     return text(draft.after([ord(one) for one in generated]))
>>> expected(""), expected("[0."), expected("[0.12"), expected("[0.12, 0.34, 0.56, 0.78")
('[0.', '', ', 0.', ']')

With one digit of a gap missing, any digit stands in for it (`gap_token`), and the run after it is drafted
too. If the model chooses another digit, that one is generated, and the draft is rejected from there on:

>>> text(draft.past_gap([ord(one) for one in "[0.1"]))
'8, 0.'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dualfocus_lmms.boxes import Box, BoxFormat

# Boxes that differ in every digit, so that what their texts share is the notation.
_BOXES = (
    Box(0.123, 0.234, 0.567, 0.678),
    Box(0.246, 0.359, 0.781, 0.893),
    Box(0.371, 0.412, 0.895, 0.946),
)
_SIZE = (1000, 1000)  # pixels: coordinates of three digits where pixels are written


@dataclass(frozen=True, slots=True)
class Draft:
    """Runs of known tokens with gaps of unknown ones between them; the empty draft expects nothing.

    gaps: the usual number of unknown tokens between each run and the next. gap_token: a token that any of
    them may be.
    """

    runs: tuple[tuple[int, ...], ...] = ()
    gaps: tuple[int, ...] = ()
    gap_token: int | None = None

    def after(self, generated: Sequence[int]) -> tuple[int, ...]:
        """The known tokens that come next; none inside a gap, at the end, or where the reply differs.

        >>> Draft(((7,), (8, 9)), (2,)).after([7, 1, 2])
        (8, 9)
        """
        rest = tuple(generated)
        for number, run in enumerate(self.runs):
            if rest[: len(run)] != run[: len(rest)]:
                return ()
            if len(rest) < len(run):
                return run[len(rest) :]
            rest = rest[len(run) :]
            if number == len(self.gaps):
                return ()
            next_run = self.runs[number + 1]
            if next_run[0] not in rest:
                return next_run if len(rest) == self.gaps[number] else ()
            rest = rest[rest.index(next_run[0]) :]
        return ()

    def past_gap(self, generated: Sequence[int]) -> tuple[int, ...]:
        """Where one unknown token comes next and then a run: `gap_token` and the run; not for the last run.

        The model's choice after these is probably its choice after the correct ones: a number seldom depends
        on the last digit of the number before it.

        >>> Draft(((7,), (8, 9), (5,)), (2, 1), gap_token=3).past_gap([7, 1])
        (3, 8, 9)
        """
        if self.gap_token is None or self.after(generated):
            return ()
        run = self.after((*generated, self.gap_token))
        return (self.gap_token, *run) if run in self.runs[1:-1] else ()


def box_draft(box_format: BoxFormat, tokens: Callable[[str], Sequence[int]]) -> Draft:
    """The draft of any box in a notation. tokens: returns the ids of a text as the model generates it.

    Empty where the tokenizer gives boxes of one notation different numbers of tokens.
    """
    written = [tokens(box_format.write(box, _SIZE, _SIZE)) for box in _BOXES]
    if len({len(ids) for ids in written}) > 1:
        return Draft()
    columns = [(column[0], len(set(column)) == 1) for column in zip(*written, strict=True)]
    runs: list[tuple[int, ...]] = [()]
    gaps, unknown = [], 0
    for known, group in groupby(columns, key=lambda column: column[1]):
        ids = tuple(token for token, _ in group)
        if not known:
            unknown = len(ids)
        elif unknown:
            runs.append(ids)
            gaps.append(unknown)
        else:
            runs[0] = ids
    unknowns = [token for token, known in columns if not known]
    return Draft(tuple(runs), tuple(gaps), unknowns[-1] if unknowns else None)
