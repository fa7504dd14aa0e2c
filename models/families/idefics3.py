"""Idefics3 and SmolVLM (`Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`): tiles.

Their processor scales an image until its longer side has a given length, up or down, and cuts it into tiles:
crops are enlarged without us. No notation of boxes is documented for them, so they are asked for fractions.
(Granite-Docling is of this architecture, and writes document tags with places on a grid of 500.)
"""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

IDEFICS3 = Family(
    name="idefics3",
    model_types=("idefics3", "smolvlm"),
    box_format=BoxFormat("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", scale=1, frame="original"),
    image="as_is",
    chat_template=TEMPLATE,
    lora_targets=r".*text_model.*\.(q|k|v|o|gate|up|down)_proj",
)
