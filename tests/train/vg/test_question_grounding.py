"""Which region a question is about: one made-up image, then the real annotations of five."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.vg.config import VGConfig
from dualfocus_lmms.train.vg.objects import Scene, Thing, is_group, share
from dualfocus_lmms.train.vg.phrases import read
from dualfocus_lmms.train.vg.question_grounding import (
    WHOLE_IMAGE,
    Dropped,
    Grounded,
    Hints,
    Reason,
    ground,
)
from dualfocus_lmms.train.vg.records import Annotations, outcomes

CONFIG = VGConfig.load()


def thing(number: int, box: tuple[float, float, float, float], *names: str, is_: str = "") -> Thing:
    return Thing(number, Box(*box), names, tuple(is_.split()), is_group(names, CONFIG.words))


# A street: two men (one drawn twice), a red car and a white one, trees in one box, a dog with a tail.
STREET = [
    thing(1, (0.10, 0.30, 0.20, 0.80), "man", is_="tall"),
    thing(2, (0.11, 0.31, 0.20, 0.80), "guy"),
    thing(3, (0.60, 0.30, 0.70, 0.80), "man"),
    thing(4, (0.61, 0.40, 0.69, 0.55), "shirt", is_="blue"),
    thing(5, (0.30, 0.50, 0.45, 0.60), "car", is_="red parked"),
    thing(6, (0.75, 0.50, 0.95, 0.62), "car", is_="white"),
    thing(7, (0.00, 0.00, 1.00, 0.30), "trees", is_="green"),
    thing(8, (0.40, 0.70, 0.55, 0.90), "dog", is_="brown"),
    thing(9, (0.50, 0.72, 0.55, 0.78), "tail"),
    thing(10, (0.00, 0.60, 1.00, 1.00), "street"),
    thing(11, (0.10, 0.70, 0.60, 1.00), "road"),
    thing(12, (0.20, 0.10, 0.30, 0.30), "traffic light"),
    thing(13, (0.85, 0.35, 0.90, 0.50), "bottle of water"),
    thing(14, (0.05, 0.85, 0.15, 0.95), "benches"),
    thing(15, (0.60, 0.78, 0.66, 0.80), "shoe"),
    thing(16, (0.64, 0.78, 0.70, 0.80), "shoe"),
]
SCENE = Scene(STREET, ["two dogs play", "a bench", "cars on the road"], CONFIG)


def box_of(*numbers: int) -> Box:
    return Box.around(thing.box for thing in STREET if thing.id in numbers)


@pytest.mark.parametrize(
    ("question", "answer", "numbers"),
    [
        ("What color is the red car?", "Red.", (5,)),  # chosen by its colour
        ("How many men are there?", "Two.", (1, 2, 3)),  # a thing drawn twice counts once
        ("What are the men doing?", "Standing.", (1, 2, 3)),
        ("How many cars are parked?", "2", (5, 6)),
        ("What color are the trees?", "Green.", (7,)),  # a group
        ("What is the street made of?", "Asphalt.", (10, 11)),  # stuff is one thing
        ("What color is the road?", "Gray.", (10, 11)),
        ("What is the man on the left doing?", "Standing.", (1, 2)),
        ("What color is the traffic light?", "Red.", (12,)),
        (
            "What is next to the bottle?",
            "The white car.",
            (13, 6),
        ),  # the answer is needed; its colour chooses the car
        ("What is blue?", "The shirt.", (4,)),
        ("Where is the white car?", "On the street.", (6, 10, 11)),
        ("What color is the right man's shirt?", "Blue.", (3, 4)),
        ("What color hat does the right man wear?", "Blue.", (3,)),  # inside its owner, though not annotated
        ("What color are the right man's shoes?", "Black.", (3, 15, 16)),
    ],
)
def test_a_question_is_grounded_in_everything_it_names(
    question: str, answer: str, numbers: tuple[int, ...]
) -> None:
    result = ground(question, answer, SCENE)
    assert isinstance(result, Grounded), result
    assert set(result.ids) == set(numbers)
    assert result.box == box_of(*numbers)
    assert result.how == "matched"


@pytest.mark.parametrize(
    ("question", "answer", "reason", "detail"),
    [
        ("What color is the man's hat?", "Red.", Reason.AMBIGUOUS, "man"),
        ("What is the person doing?", "Standing.", Reason.AMBIGUOUS, "person"),  # a kind
        ("What color is the car?", "Red.", Reason.AMBIGUOUS, "car"),
        ("What color is the tree?", "Green.", Reason.AMBIGUOUS, "tree"),  # one of a group
        ("What is the dog doing?", "Lying.", Reason.AMBIGUOUS, "dog: the image has several"),
        ("What color is the closest car?", "Red.", Reason.AMBIGUOUS, "closest"),
        ("Who is near the bottle?", "A man.", Reason.AMBIGUOUS_ANSWER, "man"),
        ("What color is the bus?", "Red.", Reason.NOT_ANNOTATED, "bus"),
        ("What color is the fire engine?", "Red.", Reason.NOT_ANNOTATED, "fire engine"),
        ("What color is the house behind the bottle?", "Red.", Reason.NOT_ANNOTATED, "house"),
        ("Where is the bottle?", "On the shelf.", Reason.ANSWER_NOT_ANNOTATED, "shelf"),
        ("How many men sit in the red car?", "Five.", Reason.COUNT, "men"),
        ("What color are the bottles?", "Blue.", Reason.COUNT, "bottles"),
        ("What color is the shirt?", "Green.", Reason.CONTRADICTED, "blue"),
        ("What is the green shirt made of?", "Cotton.", Reason.CONTRADICTED, "green shirt"),
        ("How is it?", "Fine.", Reason.NO_OBJECT, ""),
        ("Who took this photo?", "A tourist.", Reason.NOT_VISUAL, ""),
        ("When was this photo taken?", "Cannot determine.", Reason.NOT_VISUAL, ""),
        ("  ?", "Red.", Reason.EMPTY, ""),
        ("What is red?", " ", Reason.EMPTY, ""),
        ("What time is it?", "10:30.", Reason.NOT_ANNOTATED, "clock"),  # there is no clock
    ],
)
def test_a_dropped_question_has_its_reason(question: str, answer: str, reason: Reason, detail: str) -> None:
    assert ground(question, answer, SCENE) == Dropped(reason, detail)


@pytest.mark.parametrize(
    "question",
    [
        "What is this photo of?",
        "What is photo of?",  # figure 8
        "Where was this taken?",
        "Where was this picture taken?",
        "How is the weather?",
        "What time of day is it?",
        "How many people are in the picture?",
        "What kind of room is this?",
    ],
)
def test_global_questions_have_the_whole_image(question: str) -> None:
    assert ground(question, "Something.", SCENE) == WHOLE_IMAGE
    without = Scene(STREET, (), VGConfig.load(whole_image=False))
    assert ground(question, "Something.", without) == Dropped(Reason.GLOBAL)


def test_a_count_above_the_annotated_objects_needs_the_whole_image() -> None:
    assert ground("How many cars are there?", "8 cars.", SCENE) == WHOLE_IMAGE
    assert ground("Where is the bottle?", "On the right.", SCENE) == WHOLE_IMAGE


def test_an_absent_thing_needs_the_whole_image() -> None:
    assert ground("Is there a bus in the picture?", "No.", SCENE) == WHOLE_IMAGE
    assert ground("Is there a bus in the picture?", "Yes.", SCENE) == Dropped(Reason.NOT_ANNOTATED, "bus")


def test_given_objects_and_the_region_of_a_question_are_used() -> None:
    bird = thing(99, (0.9, 0.0, 0.95, 0.05), "bird")
    result = ground("What color is the bird?", "Red.", SCENE.grown([bird]), Hints(question=[bird]))
    assert result == Grounded((bird.box,), "given", ("bird",), (99,))
    given = ground("What digit is on the bottle?", "5", SCENE, Hints(question=[STREET[12]]))
    assert given == Grounded((box_of(13),), "given", ("bottle of water",), (13,))
    assert ground("What digit is on the car?", "5", SCENE, Hints(question=[STREET[4]])) == Dropped(
        Reason.AMBIGUOUS, "car"
    )
    region = Box(0.4, 0.0, 0.6, 0.2)
    hints = Hints(region=region, phrase="a yellow kite in the sky")
    assert ground("What color is the kite?", "Yellow.", SCENE, hints) == Grounded((region,), "region")
    assert ground("What color is the plane?", "Red.", SCENE, hints) == Dropped(Reason.NOT_ANNOTATED, "plane")
    assert ground("What color is the car?", "Red.", SCENE, hints) == Dropped(Reason.AMBIGUOUS, "car")


def test_a_thin_box_is_dropped() -> None:
    scene = Scene([thing(1, (0.5, 0.1, 0.505, 0.9), "pole")], (), CONFIG)
    assert ground("What color is the pole?", "Gray.", scene) == Dropped(Reason.TOO_SMALL)


def test_phrases_have_owners_counts_and_numbers() -> None:
    reading = read("What color are the two red cars of the man's dog?", SCENE.known, CONFIG.words)
    cars, man, dog = reading.mentions
    assert (cars.text, cars.number, cars.count, cars.modifiers) == ("red cars", "plural", 2, ["red"])
    assert (man.text, dog.owner is man) == ("man", True)
    assert reading.labels == "FTVDCANFDNSN"


@pytest.mark.parametrize(
    ("word", "single"),
    [
        ("men", "man"),
        ("buses", "bus"),
        ("glass", "glass"),
        ("shelves", "shelf"),
        ("dishes", "dish"),
        ("ladies", "lady"),
        ("pants", "pants"),
        ("boxes", "box"),
        ("tomatoes", "tomato"),
    ],
)
def test_singulars(word: str, single: str) -> None:
    assert CONFIG.words.singular(word) == single


def test_share_of_a_box_inside_another() -> None:
    assert share(Box(0, 0, 0.5, 1), Box(0.25, 0, 1, 1)) == 0.5
    assert share(Box(0, 0, 0, 1), WHOLE) == 0


def test_settings_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("same_object_iou: 0.9\n")
    assert VGConfig.load(file).same_object_iou == 0.9
    assert VGConfig.load(file).part_inside == CONFIG.part_inside
    for text, message in [
        ("same_object: 1", r"my\.yaml.*Unknown setting 'same_object'.* Did you mean same_object_iou"),
        ("part_inside: 7", "part_inside .*7"),
        ("crop_format: gif", "crop_format is jpeg or png, got 'gif'"),
        ("colors: 7", "cannot be used: colors is"),
        ("synonyms: 7", "synonyms is"),
        ("synonyms: [[{a: b}, c]]", "synonyms is"),
        ("compounds: [[[a], b]]", "compounds is"),
        ("not_visual: ['(']", "not_visual.*regular expression"),
        ("numbers: {one: many}", "numbers.*many"),
        ("photo_words: 7", "photo_words.*7"),
        ("- a", "no mapping"),
        ("a: [", "cannot be read"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            VGConfig.load(file)


def test_every_question_of_five_real_images_is_kept_or_dropped(shared_data: Path) -> None:
    folder = shared_data / "visual_genome"
    annotations = Annotations.open(folder, CONFIG)
    kept = dropped = 0
    for image in annotations.files["question_answers"].ids:
        data = annotations.get("image_data", image)
        edges = {
            entry["object_id"]: (
                max(entry["x"], 0) / data["width"],
                max(entry["y"], 0) / data["height"],
                min(entry["x"] + entry["w"], data["width"]) / data["width"],
                min(entry["y"] + entry["h"], data["height"]) / data["height"],
            )
            for entry in annotations.get("objects", image)["objects"]
        }
        found = list(outcomes(image, annotations, CONFIG))
        assert len(found) == len(annotations.get("question_answers", image)["qas"])
        for outcome in found:
            if outcome.box is None:
                assert isinstance(outcome.result, Dropped)
                dropped += 1
                continue
            assert isinstance(outcome.result, Grounded)
            assert outcome.result.ids or outcome.box == WHOLE
            kept += 1
            box = outcome.box
            for number in outcome.result.ids:
                x0, y0, x1, y1 = edges[number]
                assert box.x0 <= x0 < x1 <= box.x1, outcome
                assert box.y0 <= y0 < y1 <= box.y1, outcome
    assert kept + dropped == 721
    assert kept >= 270
