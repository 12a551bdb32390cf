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
from tests.chat_templates import END, LOOP, TEMPLATES, chat_of
from tests.go_templates import Template, as_ollama
from tests.tiny import tiny_byte_tokenizer

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
