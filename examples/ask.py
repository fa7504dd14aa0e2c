"""One question about one image, from Python.

python examples/ask.py CHECKPOINT image.jpg "What is on the sign?"
"""

import sys

from dualfocus_lmms import DualFocusModel

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    pretrained, image, question = sys.argv[1:]
    model = DualFocusModel(pretrained)
    trace = model.ask(image, question)
    print(trace.selection.text, trace.ppl)
