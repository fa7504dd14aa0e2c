"""One question about one picture, from Python.

python examples/ask.py CHECKPOINT photo.jpg "What is on the sign?"
"""

import sys

from dualfocus_lmms import DualFocusModel

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    pretrained, photo, question = sys.argv[1:]
    model = DualFocusModel(pretrained)
    trace = model.ask(photo, question)
    print(trace.selection.text, trace.ppl)
