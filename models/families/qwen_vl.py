"""Qwen-VL-Chat of 2023 (`QwenVLForConditionalGeneration`): every image 256 tokens, boxes in thousandths."""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family

# ChatML. Images are counted over the whole conversation; <imgpad> stands for all tokens of one.
CHATML = (
    "{% set pictures = namespace(count=0) %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{% set pictures.count = pictures.count + 1 %}"
    "{{ 'Picture ' ~ pictures.count ~ ': <img><imgpad></img>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN_VL = Family(
    name="qwen_vl",
    model_types=("qwen",),
    box_format=BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000, frame="original"),
    image="as_is",
    chat_template=CHATML,
    lora_targets=r".*\btransformer\.h\.\d+\.(attn\.(c_attn|c_proj)|mlp\.(w1|w2))",
)
