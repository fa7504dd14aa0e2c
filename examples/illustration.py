"""The picture in the README: a drawn scene, and answers that were written by hand, not by a model.

python examples/illustration.py docs/images/ask.png
"""

from __future__ import annotations

import sys

from scenes import SCENES, draw, questions

from dualfocus_lmms import DualFocusModel
from dualfocus_lmms.picture import draw as draw_answer
from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {
    "macro": Reply("EAST", (-0.71, -0.38)),
    "locate": "[0.69, 0.62, 0.79, 0.74]",
    "micro": Reply("EXIT 7", (-0.05, -0.02, -0.06)),
}


def main(path: str) -> None:
    scene = draw(SCENES[0])
    question = questions(SCENES[0], SCENES[1])[0]["question"]
    trace = DualFocusModel.on(FakeBackend(SCRIPT)).ask(scene, question)
    draw_answer(scene, trace).quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
