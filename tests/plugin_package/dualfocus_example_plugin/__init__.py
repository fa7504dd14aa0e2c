"""What another package adds to DualFocus: a model family and a selection rule, each one line to register."""

from dualfocus_lmms import Answer, BoxFormat, Family

EXAMPLE = Family(
    name="example",
    model_types=("example_llava",),
    box_format=BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000),
    image="as_is",
    chat_template=(
        "{% for message in messages %}<|{{ message['role'] }}|>"
        "{% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    lora_targets=r".*language_model.*\.(q|v)_proj",
)


def longest(macro: Answer, micro: Answer, count_eos: bool) -> Answer:
    """The answer with more to say; a tie goes to macro."""
    return micro if len(micro.text) > len(macro.text) else macro
