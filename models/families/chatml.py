"""ChatML, the turns of Qwen's language models: `<|im_start|>role ... <|im_end|>`."""


def chatml(image: str, system: str = "", before_reply: str = "") -> str:
    """A chat template in Jinja. image: the text for an image, before the question. system: a sentence that
    opens every conversation, or none. before_reply: what opens a turn of the model besides its role."""
    reply = "'" + before_reply.replace("\n", "\\n") + "'"
    own = "{% if message['role'] == 'assistant' %}{{ " + reply + " }}{% endif %}" if before_reply else ""
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return (
        opening + "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        + own
        + "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '"
        + image.replace("\n", "\\n")
        + "' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}"
        "{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + " + reply + " }}{% endif %}"
    )
