"""The wordings of DualFocus, exact to the character, and the bare question inside a task's full prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompts:
    """The two questions of the micro pathway: Q1 requests the box, Q2 the answer.

    locate takes {question}, the bare question; micro takes {prompt}, the task's full macro prompt.
    """

    locate: str
    micro: str

    def micro_for(self, crops: int) -> str:
        """Q2 where `crops` crops are shown after the image: "these two images" are "these three images" then.

        >>> PROMPTS["paper"].micro_for(2)
        'Combine these three images and answer the question: {prompt}'
        """
        return self.micro.replace("two images", f"{IMAGES[crops - 1]} images")


MOST_REGIONS = 4  # crops after the image: five images of 576 tokens fit into LLaVA-1.5's 4,096 positions
IMAGES = ("two", "three", "four", "five")  # with 1 to MOST_REGIONS crops

# The answer instruction of LLaVA's evaluations.
SHORT_ANSWER = "Answer the question using a single word or phrase."

PROMPTS = {
    # Section 3.2, format 1.
    "paper": Prompts(
        locate="Provide the coordinates of the region this question is asking about: {question}",
        micro="Combine these two images and answer the question: {prompt}",
    ),
    # Figure 8 (appendix D).
    "figure8": Prompts(
        locate="Please provide the bounding box coordinate of the region this question asks: {question}",
        micro="Combine these two images and answer the question: {prompt}",
    ),
    # The authors' evaluation release.
    "release": Prompts(
        locate="Please provide the bounding box coordinate of the region this question asks: {question}",
        micro="Please combine the information from these two images and answer this question: {prompt}",
    ),
}

# The question that precedes both scored answers (`joint_rules.judge_release`), where the task has no wording.
SHORT = (
    "Please combine the information from these two images and answer this question: {question}\n"
    + SHORT_ANSWER
)

# Where the bare question ends in the prompts of stock tasks: an option list, a note or an answer instruction.
# Notes and instructions open a line or follow the question's own closing mark.
_END_OF_QUESTION = re.compile(
    r"""
      \n\s*(?:\(A\)|A[.):])\s                                       # options: "A. red", "(A) red", "A) red"
    | (?<=[?.:!])\s*(?:\(A\)|A[.)])\s(?=.*\s(?:\(B\)|B[.)])\s)      # options on the question's own line
    | (?:there\ are\ several\ options|the\ choices\ are\ listed\ below|有如下几个选项)\s*[:\uff1a]
    | \s(?-i:Answer|ASSISTANT)\s*:\s*$
    | \[UNUSED_TOKEN_145\]
    | \n\s*(?:请直接|请用|주어진\ 선택지|Ответь|Выбери)
    | (?:\n|(?<=[?.!])|\s(?=(?-i:Please)\b))\s*(?:please\s+)?(?:
        (?:options?|choices|context|hint|reference\ ocr\ tokens?)\s*:
      | (?:answer|respond|reply)\s+(?:the\ question|this\ question|the\ option|with|using|in|directly|yes|only|by|briefly)\b
      | (?:select|choose|pick)\b[^.?!\n]*\b(?:answer|option|letter|choice)s?\b
      | (?:provide|give|write|output|return)\s+(?:me\s+)?(?:only|just|your|the\ (?:correct|final|best|answer)|an?\ (?:short|single|brief|direct))\b
      | only\s+(?:give|answer|output|respond|return)\b
      | keep\s+(?:the|your)\s+(?:answer|response)\b
      | your\s+(?:answer|response)\s+(?:must|should)\b
      | when\s+the\s+provided\s+information\s+is\s+insufficient
      | (?:let's\s+)?think\s+step\s+by\s+step
      )
    """,  # noqa: E501
    re.IGNORECASE | re.VERBOSE,
)
_OPENING = re.compile(r"(?:^|\n)\s*(?:question|q)\s*:\s*", re.IGNORECASE)
_TAGS = re.compile(r"^\s*(?:\[UNUSED_TOKEN_146\]user\s*)?(?:<image(?:\s*\d+)?>\s*)*|<image>\s*")


def bare_question(prompt: str) -> str:
    """The question inside a stock task's prompt, without options, answer format and "Question:".

    For tasks that do not provide it themselves (see docs/tasks.md). The question follows
    "Question:", if that opens a line, and ends before the first option list or answer instruction; when it
    would be empty, the whole prompt is the question.
    """
    body = _TAGS.sub("", prompt)
    opening = _OPENING.search(body)
    body = body[opening.end() :] if opening else body
    end = _END_OF_QUESTION.search(body)
    question = (body[: end.start()] if end else body).strip()
    return question or prompt.strip()
