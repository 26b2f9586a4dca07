"""One record of a data file: what it must hold, and what is said where it does not."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from znatok.errors import DataError, _

REQUIRED = ("prompt", "response")
KNOWN = frozenset({*REQUIRED, "topic", "fact_ids", "source", "id", "calc", "kind", "origin"})

# What other tools call the same things; only used to say which key to rename, never to guess what was meant
LIKELY = {
    "prompt": ("instruction", "question", "input", "query", "user", "q", "вопрос"),
    "response": ("output", "answer", "completion", "reply", "assistant", "a", "ответ"),
}

# C0 and C1 controls (tab and line feed stay), halves of surrogate pairs, and the private planes 15 and 16: terminals
# obey the first, no tokenizer can encode the second, and transformers marks its own places in a text with the third
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\U000f0000-\U0010ffff]")
# Controls, formats, spaces, and marks that show only on a letter (a variation selector is one), by their category; and
# letters and signs that are drawn as nothing: Hangul fillers, the empty Braille cell
INVISIBLE = frozenset({"Cc", "Cf", "Me", "Mn", "Zl", "Zp", "Zs"})
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer.

    Attributes:
        prompt: The question, without spaces at its ends.
        response: The answer, without spaces at its ends.
        topic: What the pair is about, for tables; may be empty.
        fact_ids: The facts the answer rests on; pairs that share one never stand on both sides of a split.
        line: Where the pair stood in its file, counted from 1; 0 for a pair made in memory.
        source: Where the answer was taken from; may be empty.
        kind: What kind of wording it is, for a search; may be empty.
    """

    prompt: str
    response: str
    topic: str = ""
    fact_ids: tuple[str, ...] = ()
    line: int = 0
    source: str = ""
    kind: str = ""


def parse_record(obj: object, path: Path, line: int) -> Pair:
    """Turn one parsed JSON value into a pair.

    Args:
        obj: What the line held.
        path: The file, for messages only.
        line: The line, counted from 1.

    Returns:
        The pair. Its texts lost white space at their ends, and CRLF inside them became LF; nothing else is changed.

    Raises:
        DataError: The value is no object, a key is missing, or a value has the wrong type or forbidden characters.
    """
    place = {"path": shown_path(path), "line": line}
    if not isinstance(obj, dict):
        raise DataError(
            '{path}:{line}: {found}; expected an object {{"prompt": …, "response": …}}', **place, found=described(obj)
        )
    if missing := [key for key in REQUIRED if key not in obj]:
        raise DataError(
            '{path}:{line}: no key {missing}; expected "prompt" and "response", found {found}{hint}',
            **place,
            missing=quoted(missing),
            found=quoted(obj) or "{}",
            hint=_rename_hint(missing, obj),
        )
    return Pair(
        prompt=_text(obj, "prompt", place),
        response=_text(obj, "response", place),
        topic=_text(obj, "topic", place) if "topic" in obj else "",
        fact_ids=_fact_ids(obj.get("fact_ids", []), place),
        line=line,
        source=_text(obj, "source", place) if "source" in obj else "",
        kind=_text(obj, "kind", place) if "kind" in obj else "",
    )


def unknown_keys(obj: object) -> set[str]:
    """Return the keys of a record that znatok does not know and does not read."""
    return set(obj) - KNOWN if isinstance(obj, dict) else set()


def _text(record: Mapping[str, Any], key: str, place: dict[str, Any]) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(
            '{path}:{line}: "{key}" is {found}; expected a string', **place, key=key, found=described(value)
        )
    text = value.replace("\r\n", "\n")
    _refuse_characters(text, key, place)
    text = text.strip()
    if key in REQUIRED and not is_visible(text):
        raise DataError('{path}:{line}: "{key}" is empty; expected text', **place, key=key)
    return text


def is_visible(text: str) -> bool:
    """Tell whether anything of a text can be seen."""
    return any(unicodedata.category(c) not in INVISIBLE and c not in BLANK for c in text)


def _fact_ids(value: object, place: dict[str, Any]) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(
            '{path}:{line}: "fact_ids" is {found}; expected an array of strings', **place, found=described(value)
        )
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise DataError(
                '{path}:{line}: "fact_ids" holds {found}; expected strings that are not empty',
                **place,
                found=described(item),
            )
        _refuse_characters(item, "fact_ids", place)
    return tuple(dict.fromkeys(value))


def _refuse_characters(text: str, key: str, place: dict[str, Any]) -> None:
    if not (match := FORBIDDEN.search(text)):
        return
    code = ord(match[0])
    where = {**place, "key": key, "code": f"U+{code:04X}", "position": match.start() + 1}
    if code >= 0xF0000:
        raise DataError('{path}:{line}: private-use character {code} at {position} of "{key}"; remove it', **where)
    if code >= 0xD800:
        raise DataError(
            '{path}:{line}: {code} at {position} of "{key}" is half of a surrogate pair; write the whole character',
            **where,
        )
    raise DataError(
        '{path}:{line}: control character {code} at {position} of "{key}"; only tab and line feed may stand there',
        **where,
    )


def _rename_hint(missing: Iterable[str], record: Mapping[str, Any]) -> str:
    if "messages" in record or "conversations" in record:
        return _("; chat records are not read, write one question and one answer on each line")
    spare = {key.lower(): key for key in record if key not in KNOWN}
    hints = []
    for wanted in missing:
        likely = [name for name in (wanted, *LIKELY[wanted]) if name in spare]
        likely += difflib.get_close_matches(wanted, spare, n=1, cutoff=0.7)
        if likely:
            hints.append(_("; rename {found} to {wanted}", found=quoted([spare[likely[0]]]), wanted=quoted([wanted])))
    return "".join(hints)


# How values of the data are shown: on one line, short, and never as raw control characters


def shown(text: str, limit: int = 40) -> str:
    """Return ``text`` quoted, escaped and cut to ``limit`` characters."""
    cut = repr(text[:limit])
    return cut if len(text) <= limit and len(cut) <= limit + 2 else cut[: limit - 1] + "…"


def shown_path(path: Path) -> str:
    """Return the path as it is, or escaped where it can't be printed on one line."""
    name = str(path)
    return name if name.isprintable() else ascii(name)


def quoted(names: Iterable[str], most: int = 8) -> str:
    """Return keys or names as a list in double quotes, at most ``most`` of them."""
    items = list(names)
    listed = ['"' + shown(name)[1:-1] + '"' if len(name) <= 40 else shown(name) for name in items[:most]]
    return ", ".join(listed) + (", …" if len(items) > most else "")


def described(value: object) -> str:
    """Return the JSON type of a value, with the value itself where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"string {shown(value)}"
    if isinstance(value, (int, float)):
        return f"number {str(value)[:40]}"
    return "array" if isinstance(value, list) else "object"
