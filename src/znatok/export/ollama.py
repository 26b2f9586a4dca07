"""A Modelfile for Ollama, in which nothing is left to be guessed: template, system message, stop words and sampling.

Ollama takes a template of its own where it knows the one in the file, and none, without a word, where it does not. What
a Modelfile leaves open of the sampling is as Ollama has it, not as the chat: it draws from the 40 likeliest tokens, and
older releases penalise repetition. Its templates are Go's ``text/template``. :func:`rendered` reads the part of that
language which is used here, so that what a Modelfile makes of a dialogue can be compared with what was trained.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict

from jinja2.sandbox import ImmutableSandboxedEnvironment

from znatok.config import SampleOptions
from znatok.errors import ModelError
from znatok.tokens.chat import ChatFormat, Message, Role

CONTEXT = 4096
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_new_tokens": "num_predict",
}
"""What Ollama calls the fields of :class:`SampleOptions`; 0 is no limit for its ``top_k`` as well."""
UNQUOTED = re.compile(r'["\x00-\x1f]|\{[{%#]|\}\}')
CHATML = (
    '{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant{{ "\\n" }}'
)
PLAIN = (
    'BOS{{ range $i, $m := .Messages }}{{ if eq $m.Role "system" }}{{ $m.Content }}'
    '{{ else if eq $m.Role "user" }}{{ if $i }}{{ "\\n\\n" }}{{ end }}### User:{{ "\\n" }}{{ $m.Content }}'
    '{{ else }}{{ "\\n\\n" }}### Assistant:{{ "\\n" }}{{ $m.Content }}END{{ end }}{{ end }}'
    '{{ "\\n\\n" }}### Assistant:{{ "\\n" }}'
)


def template(chat: ChatFormat) -> str:
    """Return a chat format as a Go template."""
    if chat.name == "chatml":
        return CHATML
    names = {number: token for token, number in chat.tokenizer.get_vocab().items()}
    bos = "".join(names[number] for number in chat.bos)
    return PLAIN.replace("BOS", bos).replace("END", names[chat.end_id])


def modelfile(chat: ChatFormat, system: str, model: str) -> str:
    """Return the text of a Modelfile.

    Args:
        chat: the format the adapter was trained in.
        system: the system message it was trained with.
        model: the GGUF file beside it.

    Raises:
        ModelError: the system message or a token can't be quoted.
    """
    system = system.strip()
    if '"""' in system or system.endswith('"'):
        raise ModelError(
            'the system message holds """ or ends with a quotation mark, which a Modelfile can\'t quote; train with'
            " another --system"
        )
    names = {number: token for token, number in chat.tokenizer.get_vocab().items()}
    for number in sorted({*chat.bos, *chat.stop_ids}):
        if UNQUOTED.search(names[number]):
            raise ModelError(
                "the token {name} holds a quotation mark, a line break or braces, which a Modelfile can't quote;"
                " take --to gguf",
                name=ascii(names[number]),
            )
    lines = [f"FROM ./{model}", f'TEMPLATE """{template(chat)}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{names[number]}"' for number in sorted(chat.stop_ids)]  # Ollama unescapes nothing
    lines += [f"PARAMETER num_ctx {CONTEXT}", "PARAMETER min_p 0"]  # the chat has no min_p
    lines += [f"PARAMETER {PARAMETERS[name]} {value}" for name, value in asdict(SampleOptions()).items()]
    return "\n".join(lines) + "\n"


def rendered(text: str, messages: Sequence[Message]) -> str:
    """Return what a Modelfile makes of a dialogue, as Ollama does it: its system message first, then its template.

    Raises:
        ModelError: it has no template, or one that says what is not used here.
    """
    found = dict(re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', text, re.MULTILINE | re.DOTALL))
    if "TEMPLATE" not in found:
        raise ModelError("the Modelfile has no TEMPLATE: Ollama would guess one")
    opening = [Message(Role.SYSTEM, found["SYSTEM"])] if "SYSTEM" in found else []
    environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True)
    shown = [{"Role": str(message.role), "Content": message.text} for message in (*opening, *messages)]
    return environment.from_string(_jinja_of(found["TEMPLATE"])).render(Messages=shown)


SAYINGS = (
    (r"range (?:\$i, \$m := )?\.Messages", "for", "{%- for m in Messages %}"),
    (r"if \$i", "if", "{%- if loop.index0 %}"),
    (r'if eq \$m\.Role ("\w+")', "if", "{%- if m.Role == VALUE %}"),
    (r'else if eq \$m\.Role ("\w+")', "", "{%- elif m.Role == VALUE %}"),
    (r"else", "", "{%- else %}"),
    (r"(?:\$m)?\.(Role|Content)", "", "{{- m.VALUE }}"),
    (r'("(?:\\n)*")', "", "{{- VALUE }}"),
)
"""What is said in Go, the block it opens, and how Jinja says it; white space before ``-`` is dropped by both."""


def _jinja_of(template: str) -> str:
    """Return a Go template as Jinja; ModelError where it says what is not in :data:`SAYINGS`."""
    blocks: list[str] = []

    def said(match: re.Match[str]) -> str:
        dash, words = match[1], match[2].strip()
        if words == "end" and blocks:
            return f"{{%{dash} end{blocks.pop()} %}}"
        for pattern, block, jinja in SAYINGS:
            if found := re.fullmatch(pattern, words):
                blocks.extend([block] if block else [])
                value = found[1] if found.re.groups else ""
                return jinja.replace("-", dash, 1).replace("VALUE", value)
        raise ModelError("the Modelfile's template says {words}, which znatok can't check", words=words)

    return re.sub(r"\{\{(-?)(.*?)\}\}", said, template)
