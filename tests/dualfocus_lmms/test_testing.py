"""The scripted model: it keeps to what the protocol of backends says."""

from __future__ import annotations

import pytest
from PIL import Image

from dualfocus_lmms import Answer, Conversation, StopCriteria
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.types import Prompt


@pytest.mark.parametrize(
    "call",
    [
        ("macro", [Conversation()], [StopCriteria(1)]),
        ("macro", [Conversation().user("x").assistant("y")], [StopCriteria(1)]),
        ("macro", [Conversation().assistant("x").user("y")], [StopCriteria(1)]),
        ("macro", [Conversation().user("x").user("y")], [StopCriteria(1)]),
        ("zoom", [Conversation().user("x")], [StopCriteria(1)]),
        ("macro", [Conversation().user("x")], [StopCriteria(1)], "everything"),
        ("locate", [Conversation().user("x")], [StopCriteria(1)]),
    ],
)
def test_the_double_refuses_what_the_protocol_forbids(call) -> None:
    with pytest.raises(ValueError, match=r"stage|keep|limits|turn"):
        FakeBackend({"macro": "yes"}).generate(Prompt.batch(*call))


@pytest.mark.parametrize(
    "conversation", [Conversation(), Conversation().user("x"), Conversation().assistant("x")]
)
def test_the_double_scores_what_an_assistant_said_last(conversation) -> None:
    with pytest.raises(ValueError, match="assistant"):
        FakeBackend({}).score([conversation])


def test_the_double_scores_by_script() -> None:
    backend = FakeBackend({}, scores={"yes": (-1.0, -2.0, -3.0)})
    said = Conversation().user("q").assistant("box", (4, 5)).user("q").assistant("yes")
    assert backend.score([said]) == [[(-0.1, -0.1, -0.01), (-1.0, -2.0, -3.0)]]
    assert backend.scored == [said]


def test_the_double_says_what_the_script_says() -> None:
    backend = FakeBackend({"macro": Reply("two words", (-0.1, -0.2), None), "locate": "here"})
    image = Image.new("RGB", (2, 2))
    (macro,) = backend.generate(Prompt.batch("macro", [Conversation().user("q", image)], [StopCriteria(9)]))
    (locate,) = backend.generate(
        Prompt.batch("locate", [Conversation().user("q", image)], [StopCriteria(9)], "conversation")
    )
    assert (macro.text, macro.logprobs, macro.ended, macro.usage.encodes) == (
        "two words",
        (-0.1, -0.2),
        False,
        1,
    )
    assert len(set(macro.tokens)) == 2
    assert isinstance(locate, Answer)
    assert (locate.pathway, locate.text, locate.ended) == ("locate", "here", True)
    assert [call.texts for call in backend.calls] == [["user: <image>q"]] * 2
