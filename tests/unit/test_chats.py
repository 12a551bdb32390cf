"""Chat templates as turns and as Ollama's Go templates: to the byte what transformers makes of the very same conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from compress.publishing.chat_templates import Chat, Message, Untranslatable, message, read_chat, turns_of
from compress.publishing.modelfiles import can_stop, go_template
from tests.go_templates import Template, as_ollama
from tests.tiny import tiny_byte_tokenizer

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
NO_SYSTEM = {"gemma 2", "mistral 0.1"}
CONVERSATIONS = (
    message("What is 2 + 2?"),
    message("Hi", "Hello!\n\nHow can I help?", "Tell me {a joke}"),
    message("1", "2", "3", "4", "5", "6", "7 — überall 日本"),
    message("Hi", system="You are terse."),
    message("Hi", "Hello!", "Bye", system="Line one\nline two"),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_byte_tokenizer()


@pytest.fixture(params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def chat_of(name: str) -> Chat:
    return Chat(TEMPLATES[name], {"bos_token": "<bos>", "eos_token": "<eos>"})


def rendered(tokenizer: PreTrainedTokenizerBase, name: str, messages: list[Message], **how: bool) -> str:
    """By transformers."""
    found = tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, **{"add_generation_prompt": True, **how}
    )
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_ollama_is_given_what_transformers_gives(
    name: str, messages: list[Message], tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = chat_of(name)
    turns = turns_of(chat)
    if messages[0]["role"] == "system" and name in NO_SYSTEM:
        assert turns.system is None
        assert as_ollama(go_template(turns), messages) == as_ollama(go_template(turns), messages[1:])
        return
    wanted = rendered(tokenizer, name, messages)
    assert chat.render(messages) == wanted
    assert as_ollama(go_template(turns, "<bos>" if turns.bos else ""), messages) == wanted
    assert (turns.system is None) == (name in NO_SYSTEM)


@pytest.mark.parametrize("messages", [message("Hi", "Hel"), message("Hi", "Hel", system="Be brief.")])
def test_an_answer_that_was_begun_is_gone_on_with(
    name: str, messages: list[Message], tokenizer: PreTrainedTokenizerBase
) -> None:
    turns = turns_of(chat_of(name))
    if messages[0]["role"] == "system" and (turns.system is None or turns.folded == "last"):
        return  # such a template looks for the message that is the last one
    how = {"add_generation_prompt": False, "continue_final_message": True}
    wanted = rendered(tokenizer, name, messages, **how)
    assert as_ollama(go_template(turns, "<bos>" if turns.bos else ""), messages) == wanted


WORDS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)


SOME = [chat_of(name) for name in ("qwen 2.5", "llama 3", "gemma 3", "mistral 0.3", "llama 2")]
TRANSLATED = [(chat, go_template(turns_of(chat), "<bos>" if turns_of(chat).bos else "")) for chat in SOME]


@settings(max_examples=25, deadline=None)
@given(turns=st.lists(WORDS, min_size=1, max_size=5).filter(lambda found: len(found) % 2), system=st.just("") | WORDS)
def test_whatever_is_message(turns: list[str], system: str) -> None:
    messages = message(*turns, system=system)
    for chat, template in TRANSLATED:
        assert as_ollama(template, messages) == chat.render(messages)


REFUSED = {
    "{{ messages[0]['content'] | upper }}": "does not write each text once",
    LOOP + "{{ message.content }}{% if loop.index > 2 %}!{% endif %}" + END: "in another way",
    LOOP
    + "{{ message.content }}|{% endfor %}{% if messages|length > 5 %}{{ '#' }}{% endif %}": "otherwise than turn by turn",
    "{{ raise_exception('no chat') }}": "refuses a conversation: no chat",
    "{% if %}": "refuses a conversation",
    LOOP + "{{ message.content }}{{ strftime_now('%d %b %Y') }}" + END: "strftime_now' is undefined",
    LOOP + "{{ '{{' }}{{ message.content }}" + END: "braces or quotes",
    LOOP + "{{ message.content }}{{ '{' }}" + END: "braces or quotes",
    "{% if messages[0].role == 'system' %}{{ messages[1].content + '~' + messages[0].content }}{% else %}"
    + LOOP
    + "{{ message.content }}"
    + END
    + "{% endif %}": "order",
}


@pytest.mark.parametrize("template", REFUSED)
def test_a_template_that_does_more_than_write_turns_is_refused(template: str) -> None:
    with pytest.raises(Untranslatable, match=REFUSED[template]):
        go_template(turns_of(Chat(template, {"bos_token": "<bos>", "eos_token": "<eos>"})))


def test_a_template_that_tells_the_day_tells_what_it_does_where_it_knows_none() -> None:
    day = "{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}\n"
    chat = Chat(day + TEMPLATES["chatml"], {"bos_token": "<bos>", "eos_token": "<eos>"})
    assert chat.tells_the_day
    assert as_ollama(go_template(turns_of(chat)), message("Hi")).startswith("26 Jul 2024\n<|im_start|>user\nHi")


def test_a_template_is_read_where_libraries_keep_it(tmp_path: Path) -> None:
    assert read_chat(tmp_path) is None
    config = {"bos_token": {"content": "<b>"}, "chat_template": [{"name": "tool_use", "template": "no"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_chat(tmp_path) is None
    config["chat_template"] = [{"name": "default", "template": "{{ bos_token }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_chat(tmp_path) == Chat("{{ bos_token }}", {"bos_token": "<b>"})
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert read_chat(tmp_path) == Chat("{{ messages }}", {"bos_token": "<b>"})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(Untranslatable, match="is no UTF-8"):
        read_chat(tmp_path)


@pytest.mark.parametrize(
    ("text", "there"),
    [("</s>", True), ("<|end {of} turn|>", True), ("", False), ('a"b', False), ("a\nFROM ./b", False)],
)
def test_what_would_end_its_quotes_is_no_stop_text(text: str, there: bool) -> None:
    assert can_stop(text) == there


def test_what_stands_for_go_here_does_as_go_says() -> None:
    """Examples from the documentation of text/template."""
    assert Template('{{ "a" }} < {{- 3 }}').render() == "a <3"
    assert Template("{{3 -}} < {{- 45}}").render() == "3<45"
    text = "{{ $n := 0 }}{{ range $i, $one := .L }}{{ if eq $i 1 }}{{ $n = $i }}{{ else if $one }}y{{ else }}n{{ end }}{{ end }}{{ $n }}"
    assert Template(text).render(L=[0, 0, 5]) == "ny1"
    assert Template("{{ if and .A (ne .B 1) }}x{{ end }}").render(A=1, B=2) == "x"
