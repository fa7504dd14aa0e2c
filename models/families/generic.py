"""Any other model that transformers loads for questions about images (`AutoModelForImageTextToText`).

Its own processor makes the prompt's images and its own chat template the turns, which must be able to hold
several images. It is used where nothing is known about the model's insides, so only transformers' own
`generate` runs it, on whole batches.
Named with family=generic; `docs/families.md` shows how to write a family instead.
"""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family

GENERIC = Family(
    name="generic",
    model_types=(),
    box_format=BoxFormat("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", scale=1, frame="original"),
    image="as_is",
    chat_template="",
    lora_targets=r".*\.(q|k|v|o|gate|up|down)_proj",
    engine="batched",
)
