#!/usr/bin/env python3
"""Goldens of crates/text: published chat templates as transformers renders them.

    python scripts/golden/text_templates.py ASSETS > crates/text/tests/golden/templates.json

Reads ASSETS/chat-templates/**/*.jinja and the templates of ASSETS/models/*. Holds no template and no text of
theirs, only the beginning of the SHA-256 of each rendering of the conversations below (or that transformers raised).
Of templates with `{% generation %}` blocks also that of the rendering with ⟦ and ⟧ around what transformers takes for
the assistant's part; white space at its ends is left outside, parts with nothing else between are one. Made with the versions written into the file.
"""
import hashlib
import json
import sys
from datetime import datetime
from pathlib import Path

import jinja2
import transformers
import transformers.utils.chat_template_utils as templates

NOW = datetime(2026, 11, 21, 9, 5, 3)
BOS, EOS = "<s>", "</s>"


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


templates.datetime = Clock

CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 1, "b": 2.5, "c": ["ü", None, True]}}}
CONVERSATIONS = {
    "one turn": [("user", "Hello"), ("assistant", "Hi there.")],
    "two turns": [("user", " Leading and trailing "), ("assistant", "  kept? \n"), ("user", "Ünïcödé 🚀\nline"), ("assistant", "Done.")],
    "system": [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "Sure?"), ("assistant", "Yes.")],
    "open": [("system", "Be brief."), ("user", "1 + 1?")],
    "thought": [("user", "Think."), ("assistant", "<think>\nhm\n</think>\n\nFirst."), ("user", "Again."), ("assistant", "<think>\nwell\n</think>\n\nSecond.")],
    "tool": [("user", "Add."), ("assistant", "", {"tool_calls": [CALL]}), ("tool", "3.5", {"tool_call_id": "abcdefghi", "name": "add"}), ("assistant", "It is 3.5.")],
    "two users": [("user", "a"), ("user", "b"), ("assistant", "c")],
    "empty answer": [("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")],
}


def messages(conversation):
    made = []
    for role, content, *extra in conversation:
        message = {"role": role, "content": content, **(extra[0] if extra else {})}
        if not content and "tool_calls" in message:
            message["content"] = None
        made.append(message)
    return made


def render(source, conversation, add_generation_prompt):
    try:
        text = templates._compile_jinja_template(source).render(
            messages=messages(conversation), tools=None, documents=None,
            add_generation_prompt=add_generation_prompt, bos_token=BOS, eos_token=EOS)
    except Exception as error:  # whatever a template raises
        return "error"
    return digest(text)


def render_marked(source, conversation):
    try:
        text, spans = templates._render_with_assistant_indices(
            templates._compile_jinja_template(source), messages(conversation), tools=None, documents=None,
            add_generation_prompt=False, bos_token=BOS, eos_token=EOS)
    except Exception as error:  # whatever a template raises
        return "error"
    joined = []
    for start, end in spans:
        if joined and not text[joined[-1][1]:start].strip():
            start, _ = joined.pop()
        joined.append((start, end))
    for start, end in reversed(joined):
        spoken = text[start:end].strip()
        start = text.index(spoken, start)
        text = f"{text[:start]}⟦{spoken}⟧{text[start + len(spoken):]}"
    return digest(text)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sources(assets):
    for path in sorted((assets / "chat-templates").glob("**/*.jinja")):
        yield str(path.relative_to(assets)), path.read_text(encoding="utf-8")
    for path in sorted((assets / "models").glob("*/chat_template.jinja")):
        yield str(path.relative_to(assets)), path.read_text(encoding="utf-8")
    for path in sorted((assets / "models").glob("*/tokenizer_config.json")):
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(template, str):
            yield str(path.relative_to(assets)), template


def main():
    assets = Path(sys.argv[1])
    rendered = {
        name: {f"{title}{' +' if prompt else ''}": render(source, conversation, prompt)
               for title, conversation in CONVERSATIONS.items() for prompt in (False, True)}
        for name, source in sources(assets)
    }
    marked = {
        name: {title: render_marked(source, conversation) for title, conversation in CONVERSATIONS.items()}
        for name, source in sources(assets) if "generation %}" in source and "endgeneration" in source
    }
    conversations = {title: messages(conversation) for title, conversation in CONVERSATIONS.items()}
    made_with = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    now = int((NOW - datetime(1970, 1, 1)).total_seconds())
    json.dump({"made_with": made_with, "now": now, "bos": BOS, "eos": EOS, "conversations": conversations,
               "rendered": rendered, "marked": marked}, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
