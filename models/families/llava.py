"""LLaVA-1.5 and models of its architecture (`LlavaForConditionalGeneration`)."""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# vicuna_v1: system sentence, "USER: ... ASSISTANT: ...</s>", each image on its own line before the text.
VICUNA_V1 = (
    "{{ bos_token }}" + SYSTEM + " "
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Every linear layer of the language model, as transformers names them.
LANGUAGE_MODEL = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"

LLAVA = Family(
    name="llava",
    model_types=("llava",),
    box_format=BoxFormat("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", scale=1, frame="original"),
    image="square",
    chat_template=VICUNA_V1,
    lora_targets=LANGUAGE_MODEL,
    # The hub's llava-1.5 checkpoints bring the same turns without these. The model was trained with them.
    reworded=(SYSTEM, "</s>"),
)
