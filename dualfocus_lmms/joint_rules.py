"""Rules that compare both answers under one context, the micro one, which has to be scored first.

`micro_context` scores the macro answer after the conversation of the micro answer. `release` is what the
authors' evaluation code does: both texts after a question of its own, and options in the place of letters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.prompts import SHORT
from dualfocus_lmms.types import Answer, Backend, JointScores, Question, Scores, Stage


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """Two answers to one question. context: the micro conversation: image and Q1, the box, crop and Q2."""

    question: Question
    context: Conversation
    macro: Answer
    micro: Answer


Judge = Callable[[str, Backend, Sequence[Pair]], list[JointScores]]


@dataclass(frozen=True, slots=True)
class JointRule:
    """A selection rule that compares scores under one context.

    judge: from the rule's name, the model and pairs of answers to what is compared. tie: the pathway that
    wins where the scores are equal.
    """

    judge: Judge
    tie: Stage


def judge_micro_context(name: str, backend: Backend, pairs: Sequence[Pair]) -> list[JointScores]:
    """The macro answer's tokens scored under the micro context.

    The micro answer keeps its log-probabilities, which were computed there; so does a macro answer
    of the same tokens.
    """
    conversations = [
        pair.context.assistant(pair.macro.text, pair.macro.tokens) for pair in pairs if not _same(pair)
    ]
    scored = iter(backend.score(conversations) if conversations else [])
    return [
        JointScores(
            name,
            macro=pair.micro.scores if _same(pair) else _of_macro(pair, next(scored)[-1]),
            micro=pair.micro.scores,
        )
        for pair in pairs
    ]


def _same(pair: Pair) -> bool:
    return (pair.macro.tokens, pair.macro.ended) == (pair.micro.tokens, pair.micro.ended)


def _of_macro(pair: Pair, turn: Sequence[float]) -> Scores:
    """The macro answer's scores; its closing token counts only where the model generated it."""
    return Scores(pair.macro.text, tuple(turn[:-1]), tuple(turn[-1:]) if pair.macro.ended else ())


def judge_release(name: str, backend: Backend, pairs: Sequence[Pair]) -> list[JointScores]:
    """The texts of `release_texts` scored after image, Q1 and the box, and the crop with the short question.

    All texts are tokenised again. The tokens of the box count as those of the answer do, and so do the
    end-of-turn tokens of both turns. Texts that are equal tie, and are not scored.
    """
    texts = [release_texts(pair) for pair in pairs]
    winners = [_winner(macro, micro) for macro, micro in texts]
    conversations = [
        short_conversation(pair, str(text))
        for pair, both, winner in zip(pairs, texts, winners, strict=True)
        for text in (both if winner is None else ())
    ]
    scored = iter(backend.score(conversations) if conversations else [])
    judged = []
    for both, winner in zip(texts, winners, strict=True):
        if winner is None:
            macro, micro = (_of_turns(str(text), next(scored)) for text in both)
            judged.append(JointScores(name, macro, micro))
        else:
            judged.append(JointScores(name, winner=winner))
    return judged


def release_texts(pair: Pair) -> tuple[str | None, str | None]:
    """What is scored for macro and for micro: the reply, or the option that it names, None without one.

    Only the micro reply loses the full stops around it, as in the release.
    """
    replies = (pair.macro.text, pair.micro.text.strip("\n").strip("."))
    if not pair.question.options:
        return replies
    macro, micro = (option_of(reply, pair.question.options) for reply in replies)
    return macro, micro


def option_of(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply names: by the letter that it starts with, else the first that is contained in
    the reply or contains it. Case does not matter. A reply of one character is a letter or names nothing.

    option_of("B) a dog", ["a cat", "a dog"]) == option_of("It is a dog", ["a cat", "a dog"]) == "a dog"
    """
    letters = ascii_uppercase[: len(options)]
    if reply and reply[0].upper() in letters:
        return options[letters.index(reply[0].upper())]
    lowered = reply.lower()
    found = (option for option in options if lowered in option.lower() or option.lower() in lowered)
    return next(found, None) if len(reply) > 1 else None


def short_prompt(question: Question) -> str:
    """The question that the release scores answers after: the task's wording, or SHORT."""
    return question.short or SHORT.format(question=question.text)


def short_conversation(pair: Pair, text: str) -> Conversation:
    """Image and Q1, the box, crop and short question, `text`: no turn has the tokens that were generated."""
    locate, box, micro = pair.context.turns
    return (
        Conversation()
        .user(locate.text, *locate.images)
        .assistant(box.text)
        .user(short_prompt(pair.question), *micro.images)
        .assistant(text)
    )


def _winner(macro: str | None, micro: str | None) -> Stage | None:
    """The pathway that wins before anything is scored: the only one with a text, else macro in a tie."""
    if micro is None or macro == micro:
        return "macro"
    return "micro" if macro is None else None


def _of_turns(text: str, turns: Sequence[Sequence[float]]) -> Scores:
    """The scores of all assistant turns of a conversation as one."""
    words = tuple(value for turn in turns for value in turn[:-1])
    return Scores(text, words, tuple(turn[-1] for turn in turns))


MICRO_CONTEXT = JointRule(judge_micro_context, tie="micro")
RELEASE = JointRule(judge_release, tie="macro")
