"""The wordings to the character (`pytest --update-golden` rewrites them), and bare questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dualfocus_lmms import Question, bare_question
from dualfocus_lmms.flow import locate_prompt, micro_prompt
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.protocol import PROTOCOLS, load_protocol

TEXT = "What is the color of the {dog}'s collar?"  # braces, as a question may hold them
PROMPT = f"{TEXT}\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
QUESTION = Question("1", Image.new("RGB", (4, 4)), TEXT, PROMPT)


def stages(protocol) -> str:
    texts = {
        "macro": QUESTION.prompt,
        "locate": locate_prompt(QUESTION, protocol),
        "micro": micro_prompt(QUESTION, protocol),
    }
    return "\n".join(f"--- {stage}\n{text}\n" for stage, text in texts.items())


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_golden_wording(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"prompts_{name}.txt", stages(replace(load_protocol("paper"), prompts=PROMPTS[name])))


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_golden_protocol(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"prompts_{name}.txt", stages(load_protocol(name)))


LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
OPTIONS = "A. red\nB. dark blue\nC. green\nD. none of these"
QUESTIONS = [
    "What color is the car?",
    "what does the sign say",
    "Is there a dog in the image?",
    "Which of these is correct? Look at the left side, e.g. the door.",
    "There are two cats. Choose the one on the left: what does it do?",
    "The U.S. flag is where? Select the closest object.",
    'What is written after "Answer:" on the page?',
]

# What the host's tasks make of a question {q}: the shapes their doc_to_text produces.
STOCK = {
    "gqa": f"{{q}}\n{SHORT}",
    "gqa qwen": "{q} Answer:",
    "pope": f"{{q}}\n{SHORT}",
    "pope concise": "{q}\nYour response must be concise.",
    "mme": f"{{q}}\n{SHORT}",
    "mme raw": f"{{q}} Please answer yes or no.\n{SHORT}",
    "mme yes or no": "{q}\nAnswer the question with Yes or No.",
    "mme otterhd": "{q} Answer:",
    "textvqa": f"{{q}}\n{SHORT}",
    "textvqa ocr": f"{{q}}\nReference OCR token: DAKOTA, Answer, A., 55.6%, (B)\n{SHORT}",
    "textvqa short": "{q}\nProvide a short and direct response.",
    "vizwiz": "{q}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT,
    "mmbench en": f"{{q}} There are several options:\n{OPTIONS}\n\n{LETTER}",
    "mmbench cn": f"{{q}} 有如下几个选项\uff1a\n{OPTIONS}\n\n请直接使用所提供的选项字母作为答案回答。",
    "mmbench ru": f"{{q}} There are several options:\n{OPTIONS}\n\nВыбери букву.",  # noqa: RUF001
    "gqa ru": "{q}\nОтветь одним словом.",  # noqa: RUF001
    "seedbench": f"{{q}}\n{OPTIONS}\n{LETTER}",
    "seedbench ppl": "{q} Answer :",
    "scienceqa": f"{{q}}\n{OPTIONS}\n{LETTER}",
    "scienceqa qwen": f"Context: N/A\nQuestion: {{q}}\nOptions: {OPTIONS}\nAnswer:",
    "scienceqa qwen context": f"Context: Maps. A map.\nQuestion: {{q}}\nOptions: {OPTIONS}\nAnswer:",
    "ai2d": f"{{q}}\n{OPTIONS}\n{LETTER}",
    "ai2d gpt": f"{{q}}\n{OPTIONS}\nAbove choices are given in {{{{option}}}}. {{{{content}}}} format.\n"
    "Please answer with the option letter from the given choices directly.",
    "ai2d xcomposer": "[UNUSED_TOKEN_146]user\nQuestion: {q}\nContext: N/A\nA. red B. blue"
    "[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\nThe answer is",
    "mmstar": f"{{q}}\nOptions: A: red, B: dark blue, C: green, D: none\n{LETTER[:-1]}",
    "mmstar qwen": f"Question: {{q}}\nOptions:\n{OPTIONS}\nAnswer with the option letter only.",
    "mmstar first": f"<image 1> {{q}}\nOptions: A: red, B: blue\n{LETTER}",
    "mathvista": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
    "at the end.\nQuestion: {q}\nChoices:\n(A) red\n(B) blue",
    "vstar": f"{{q}}\n{OPTIONS}\n{LETTER}",
    "vstar raw": f"{{q}}\n(A) red\n(B) blue\n(C) green\n{LETTER}",
    "hrbench": f"{{q}}\n{OPTIONS}\nAnswer the option letter directly.",
    "realworldqa": f"{{q}}\n{OPTIONS}\n"
    "Please answer directly with only the letter of the correct option and nothing else.",
    "realworldqa open": "{q}\nPlease answer directly with a single word or number.",
    "cv bench": f"{{q}}\n(A) red\n(B) blue\n{LETTER}",
    "mmmu": f"{{q}}\n\n{OPTIONS}\n\n{LETTER}",
    "mme realworld": "{q} The choices are listed below:\n(A) red\n(B) blue\n(C) grey\n"
    "Select the best answer to the above multiple-choice question based on the image. "
    "Respond with only the letter (A, B, C, D, or E) of the correct option.",
    "think": "{q}\n\nThink step by step and give your final answer in \\boxed{{Answer}} format.",
    "final": "{q}\nReturn only your final answer with no explanation.",
    "one": "{q}\nRespond with only one letter: A, B, C, D, or E.",
    "best": f"{{q}}\nOnly give the best option.\n{OPTIONS}",
    "llava placeholder": f"<image>\n{{q}}\n{SHORT}",
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("shape", STOCK.values(), ids=STOCK)
def test_bare_question_of_stock_prompts(shape: str, question: str) -> None:
    assert bare_question(shape.format(q=question)) == question


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # on one line, after the question's closing mark
        (f"What is it? {SHORT}", "What is it?"),
        ("What is it? Please answer directly with a single word or number.", "What is it?"),
        ("What is it?Answer the question with A, B, C, or D.", "What is it?"),
        ("What is it? (A) a cat (B) a dog (C) neither", "What is it?"),
        ("What is it? A. a cat B. a dog", "What is it?"),
        ("What is it? Keep the answer short and concise.", "What is it?"),
        ("Which is heavier? Choose the best answer.", "Which is heavier?"),
        ("Q: What is it?\nASSISTANT:", "What is it?"),
        # a question stays whole
        ("Name the animal. Select the region it sits in.", "Name the animal. Select the region it sits in."),
        ("Who is A. Lincoln in the picture?", "Who is A. Lincoln in the picture?"),
        ("Is it true? Give a reason.", "Is it true? Give a reason."),
        ("Two lines.\nOne question?", "Two lines.\nOne question?"),
        ("Is vitamin B. in it? A. Smith asks.", "Is vitamin B. in it? A. Smith asks."),
        ("Describe the image.", "Describe the image."),
        ("Complete the answer:", "Complete the answer:"),
        # a hint or a context before the question is part of it
        ("The map shows X. Which is north?\nA. a\nB. b", "The map shows X. Which is north?"),
        (f"Context: A map.\nWhich is north?\nA. a\nB. b\n{LETTER}", "Context: A map.\nWhich is north?"),
        # an instruction that opens the prompt is no end of it
        (
            "Answer the question using the image: what is it?",
            "Answer the question using the image: what is it?",
        ),
        # nothing but instructions and options: the whole prompt
        (f"\n{SHORT}", SHORT),
        ("Question:", "Question:"),
    ],
)
def test_bare_question(prompt: str, expected: str) -> None:
    assert bare_question(prompt) == expected


@pytest.mark.parametrize(
    "file",
    [
        "gqa/llava_gqa_testdev_balanced.jsonl",
        "pope/llava_pope_test.jsonl",
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
    ],
)
def test_bare_question_of_real_prompts(shared_data: Path, file: str) -> None:
    """LLaVA's own question files: the first line is the question."""
    rows = (shared_data / "llava_eval" / file).read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(row)["text"] for row in rows]
    assert len(prompts) >= 5000
    assert [prompt for prompt in prompts if bare_question(prompt) != prompt.split("\n")[0].strip()] == []
