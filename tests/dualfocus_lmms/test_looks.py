"""Several looks (`looks=2` and more), on a scripted model: where, how often, and which answer wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from scripted_flow import SCRIPT, photo, question, run

from dualfocus_lmms import BoxFormat, Conversation, Trace, UserError
from dualfocus_lmms import visualize as pic
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.zoom import DynamicResolution

SIZE = (400, 200)
HALF = "[0.50, 0.50, 1.00, 1.00]"  # of whatever is shown: (200, 100, 400, 200), (300, 150, 400, 200), ...
CROPS = [(200, 100, 400, 200), (300, 150, 400, 200), (350, 175, 400, 200), (375, 187, 400, 200)]


def backend_of(nlls: list[float], locates: list[str], **more) -> FakeBackend:
    """A model whose micro answers in turn are "0", "1", ... with these negative log-likelihoods."""
    replies = {
        "micro": iter([Reply(str(number), (-nll,)) for number, nll in enumerate(nlls)]),
        "locate": iter(locates),
    }

    def script(stage: str, conversation: Conversation) -> Reply | str:
        return next(replies[stage]) if stage in replies else SCRIPT["macro"]  # macro: 0.5 nats

    return FakeBackend(script, **more)


def look(nlls: list[float], looks: int = 4, locates: list[str] | None = None, **settings):
    backend = backend_of(nlls, locates or [HALF] * len(nlls))
    (trace,) = run(backend, question(image=photo(*SIZE)), looks=looks, **settings)
    return backend, trace


@pytest.mark.parametrize(
    ("nlls", "looks", "made", "best"),
    [
        ([0.6], 4, 1, 0),  # not below macro's: no further look
        ([0.5], 4, 1, 0),
        ([0.4, 0.45], 4, 2, 0),
        ([0.4, 0.4], 4, 2, 1),  # a tie goes to the later one, as in eq. 8
        ([0.4, 0.3, 0.2, 0.1], 4, 4, 3),
        ([0.4, 0.3, 0.35], 4, 3, 1),
        ([0.4, 0.3], 2, 2, 1),
        ([0.4], 1, 1, 0),
    ],
)
def test_it_looks_while_the_perplexity_falls(nlls: list[float], looks: int, made: int, best: int):
    backend, trace = look(nlls, looks)
    assert [call.stage for call in backend.calls] == ["macro", *["locate", "micro"] * made]
    assert (trace.micro.text, trace.crop) == (str(best), CROPS[best])
    assert trace.selection.pathway == ("micro" if nlls[best] <= 0.5 else "macro")
    if made == 1:
        assert trace.looks is None
        assert trace.answers == [trace.macro, trace.locate, trace.micro]
    else:
        assert [one.crop for one in trace.looks] == CROPS[:made]
        assert [one.micro.text for one in trace.looks] == [str(number) for number in range(made)]
        assert trace.locate == trace.looks[best].locate
        assert trace.ppl["micro"] == pytest.approx(trace.micro.ppl())
        assert len(trace.answers) == 1 + 2 * made
    assert Trace.from_json(trace.to_json()) == trace


def test_every_crop_is_of_the_original_and_the_one_before_is_the_image_of_the_next_look():
    backend, trace = look([0.4, 0.3], 2)
    image, (first, second) = photo(*SIZE), (photo(*SIZE).crop(crop) for crop in CROPS[:2])
    shown = [[one.tobytes() for one in call.conversations[0].images] for call in backend.calls]
    assert shown == [
        [one.tobytes() for one in some]
        for some in ([image], [image], [image, first], [first], [first, second])
    ]
    again = backend.calls[4].conversations[0]
    assert again.turns[0].text == backend.calls[1].conversations[0].turns[0].text == trace.prompts["locate"]
    assert (again.turns[1].text, again.turns[2].text) == (HALF, trace.prompts["micro"])
    assert trace.looks[1].box == trace.box == (0.75, 0.75, 1, 1)


def test_crops_are_enlarged_from_the_original_and_boxes_in_pixels_refer_to_the_crop_as_shown():
    resolution, form = (
        DynamicResolution(28, 56 * 56, 3584 * 3584),
        BoxFormat("{:d} {:d} {:d} {:d}", frame="resized"),
    )
    image = photo(600, 300)  # 588 x 308 in the model, and its quarters enlarged to 588 x 308 too
    backend = backend_of([0.4, 0.3], ["294 154 588 308"] * 2, box_format=form, resolution=resolution)
    (trace,) = run(backend, question(image=image), looks=2)
    assert [one.crop for one in trace.looks] == [(300, 150, 600, 300), (450, 225, 600, 300)]
    assert [one.crop_size for one in trace.looks] == [(588, 308), (588, 308)]
    seen = backend.calls[-1].conversations[0].images[1]
    enlarged = image.crop(trace.crop).resize((588, 308), Image.Resampling.BICUBIC)
    assert seen.tobytes() == enlarged.tobytes()


@pytest.mark.parametrize(
    "reply",
    ["nothing", "[0.5, 0.5, 0.5, 0.9]", "[1.5, 0.2, 1.9, 0.8]", "[0, 0, 1, 1]", "[-0.5, -0.5, 1.5, 1.5]"],
)
def test_a_look_that_finds_nothing_or_all_of_the_crop_is_the_last(reply: str):
    backend, trace = look([0.4, 0.3], 4, [HALF, reply])
    assert [call.stage for call in backend.calls] == ["macro", "locate", "micro", "locate"]
    assert (trace.micro.text, trace.crop, len(trace.looks)) == ("0", CROPS[0], 2)
    assert (trace.looks[1].locate.text, trace.looks[1].micro) == (reply, None)
    assert Trace.from_json(trace.to_json()) == trace


def test_what_is_skipped_or_has_no_region_is_not_looked_at():
    backend, trace = look([0.4], 2, skip_confidence=0.5)
    assert (trace.fallback, len(backend.calls), trace.looks) == ("skip_confidence", 1, None)
    backend, trace = look([0.4], 2, ["nothing"])
    assert (trace.fallback, len(backend.calls), trace.looks) == ("no_box", 2, None)


def test_questions_of_a_batch_stop_one_by_one():
    def script(stage: str, conversation: Conversation) -> Reply | str:
        number = int(conversation.turns[0].text.split("object ")[1].split("?")[0])
        depth = 400 // conversation.turns[0].images[0].width  # 1 for the first look, then 2, 4
        return {
            "macro": SCRIPT["macro"],
            "locate": HALF,
            "micro": Reply("x", (-0.4 / depth if depth <= number else -9,)),
        }[stage]

    backend = FakeBackend(script)
    traces = run(backend, *(question(str(number), photo(*SIZE)) for number in (0, 1, 2, 4)), looks=4)
    assert [len(trace.looks or [0]) for trace in traces] == [1, 2, 3, 4]
    assert [trace.crop for trace in traces] == [CROPS[0], *CROPS[:3]]
    micro = [len(call.conversations) for call in backend.calls if call.stage == "micro"]
    assert micro == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"protocol": "release"}, "protocol=release"),
        ({"select": "micro_context"}, "select=micro_context"),
        ({"subimage": "patch"}, "subimage=patch"),
        ({"regions": "separate"}, "regions=separate"),
        ({"grounding": "center"}, "grounding=center"),
        ({"box_shift": 3}, "box_shift"),
        ({"looks": 0}, "looks"),
    ],
)
def test_what_looks_once_is_refused(settings: dict, named: str):
    with pytest.raises(UserError, match=named):
        look([0.4], **{"looks": 2} | settings)


def test_the_drawing_has_the_chosen_look():
    _, trace = look([0.4, 0.3, 0.35])
    alone = replace(trace, looks=None)
    image = photo(*SIZE)
    assert pic.draw(image, trace).size == pic.draw(image, alone).size
    assert pic.draw(image, trace).tobytes() != pic.draw(image, alone).tobytes()  # "look 2 of 3"
