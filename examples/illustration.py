"""The image in the README: the small model's answer to a question about a drawn scene.

python examples/illustration.py docs/images/ask.png
"""

from __future__ import annotations

import sys

from dualfocus_lmms import DualFocusModel
from dualfocus_lmms.scenes import make_scene
from dualfocus_lmms.visualize import draw

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    scene = make_scene("test", 0, 0).image()
    trace = DualFocusModel("dualfocus-nano").ask(scene, "What digit is on the green circle?")
    drawn = draw(scene, trace)
    small = drawn.resize((drawn.width * 3 // 4, drawn.height * 3 // 4))
    small.quantize(160).save(sys.argv[1], optimize=True)
