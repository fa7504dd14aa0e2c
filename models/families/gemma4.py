"""Gemma 4 (`Gemma4ForConditionalGeneration`): boxes as JSON in thousandths of the image, y before x.

Its processor scales every image, up or down, to a budget of tokens (280 unless processor_config.json says
another), so that crops are enlarged without us. Google documents no notation of boxes. Asked for one in
plain words it answers `[{"box_2d": [171, 75, 245, 308], ...}]`, on a grid of 1,000 x 1,000, as Hugging Face
found (the announcement of the model): Gemini's notation, whose order is y, x. A wide button has this box.
"""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL

# An assistant turn opens with an empty reasoning, as the templates of the large models do it when they are
# told enable_thinking=False. Those of E2B and E4B leave it out.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|turn>model\n<|channel>thought\n<channel|>' }}"
    "{% else %}{{ '<|turn>' + message['role'] + '\n' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<|image|>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n<|channel>thought\n<channel|>' }}{% endif %}"
)

GEMMA4 = Family(
    name="gemma4",
    model_types=("gemma4",),
    box_format=BoxFormat('{{"box_2d": [{:d}, {:d}, {:d}, {:d}]}}', scale=1000, order="yxyx"),
    image="as_is",
    chat_template=TEMPLATE,
    lora_targets=LANGUAGE_MODEL,
    native_locate="What's the bounding box of the region that is needed to answer this question? {question}",
    engine="batched",
)
