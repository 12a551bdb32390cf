"""Chat templates as their makers publish them, and models that have one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from compress.publishing.chat_templates import Chat

LOOP, END, AHEAD = "{% for message in messages %}", "{% endfor %}", "{% if add_generation_prompt %}"
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
)
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
# As their makers publish them, without what they do with tools.
TEMPLATES = {
    "chatml": LOOP
    + "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    + END
    + AHEAD
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "qwen 2.5": """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama 2": SYSTEM_FIRST
    + "{% for message in loop_messages %}"
    + ALTERNATE
    + "{% if loop.index0 == 0 and system_message != false %}"
    + "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    + "{% else %}{% set content = message['content'] %}{% endif %}"
    + "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    + "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    + END,
    "llama 3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    + "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    + "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    + END
    + AHEAD
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama 3.1": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "gemma 2": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + LOOP
    + ALTERNATE
    + "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    + "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    + END
    + AHEAD
    + "{{'<start_of_turn>model\n'}}{% endif %}",
    "gemma 3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
""",
    "mistral 0.1": "{{ bos_token }}"
    + LOOP
    + ALTERNATE
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    + "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    + "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    + END,
    "mistral 0.3": SYSTEM_FIRST
    + "{{- bos_token }}{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    + "{% if loop.last and system_message %}{{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}"
    + "{% else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    + "{% elif message['role'] == 'assistant' %}{{- ' ' + message['content']|trim + eos_token}}{% endif %}"
    + END,
    "phi 3": LOOP
    + "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    + "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    + "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    + END
    + AHEAD
    + "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "phi 4": LOOP
    + "{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    + "{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    + "{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}"
    + END
    + AHEAD
    + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    "zephyr": LOOP
    + "\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}"
    + "\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}"
    + "\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}"
    + "\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "what is learnt": LOOP
    + "{% if message.role == 'assistant' %}{% generation %}A: {{ message.content }}\n{% endgeneration %}"
    + "{% else %}{{ message.role }}: {{ message.content }}\n{% endif %}{% endfor %}"
    + AHEAD
    + "A: {% endif %}",
}
# What a model writes for a turn that is not the last, some in another way than for the last: nobody can tell answers in them.
THINKING = (
    LOOP
    + "{% if message.role == 'assistant' %}A: {% if loop.last %}(thought) {% endif %}{{ message.content }}\n"
    + "{% else %}{{ message.role }}: {{ message.content }}\n{% endif %}{% endfor %}"
    + AHEAD
    + "A: {% endif %}"
)


def chat_of(name: str) -> Chat:
    return Chat(TEMPLATES[name], {"bos_token": "<bos>", "eos_token": "<eos>"})


def chatting(folder: Path, template: str = TEMPLATES["chatml"]) -> Path:
    """The model in a folder, with a chat template."""
    (folder / "chat_template.jinja").write_text(template)
    return folder


def conversation(*texts: str, system: str = "") -> dict[str, list[dict[str, str]]]:
    """A row: user and assistant in turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def rows(path: Path, *given: object) -> str:
    """A file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


def exchanges(path: Path, count: int, first: int = 0, words: Sequence[str] = ("sorted", "empty", "reversed")) -> str:
    """A file of short conversations, none like another."""
    numbers = range(first, first + count)
    return rows(path, *(conversation(f"Item {n}?", f"It is {words[n % len(words)]} {n}.") for n in numbers))
