"""Traces in a notebook: the drawing of `visualize`, or the answers alone where the image is not kept."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections import OrderedDict
from html import escape
from io import BytesIO

from PIL import Image

from dualfocus_lmms import visualize
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.trace import Trace

MOST_IMAGES = 8  # that are kept for the traces of the last cells

_images: OrderedDict[str, Image.Image] = OrderedDict()


def remember(image: Image.Image) -> None:
    """Keep an image for the traces of its questions, in a notebook; elsewhere nothing is kept."""
    if "IPython" not in sys.modules:
        return
    key = image_hash(image)
    _images[key] = image
    _images.move_to_end(key)
    while len(_images) > MOST_IMAGES:
        _images.popitem(last=False)


def html(trace: Trace) -> str:
    """The trace as HTML: its drawing with image, crop and both answers, or a table of the answers where the
    image is not among the last ones that were asked about."""
    image = _images.get(trace.image_hash)
    if image is None:
        rows = "".join(
            f"<tr><td>{name}{' (chosen)' if trace.selection.pathway == name else ''}</td>"
            f"<td>{escape(answer.text)}</td><td>{visualize.perplexity(trace, name)}</td></tr>"
            for name, answer in (("macro", trace.macro), ("micro", trace.micro))
            if answer is not None
        )
        head = "<tr><th>pathway</th><th>answer</th><th>perplexity</th></tr>"
        return f"<table>{head}{rows}</table><p>{escape(visualize.verdict(trace))}</p>"
    file = BytesIO()
    visualize.draw(image, trace).save(file, "PNG")
    text = f"{visualize.question_of(trace)} {trace.selection.text}. {visualize.verdict(trace)}"
    data = b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" style="max-width: 100%">'
