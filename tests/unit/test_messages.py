"""Messages in two languages: the catalogue is complete, and the language of the user decides."""

import importlib.util
import json
import os
import string
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from znatok import errors

ROOT = Path(__file__).parents[2]
CLASSES = ("UsageError", "DataError", "ModelError", "SystemFault", "TrainingError", "Interrupted")


@pytest.fixture(scope="module")
def messages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("messages", ROOT / "tools" / "messages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["messages"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def templates(messages):
    found = messages.extract()
    assert found.problems == []
    return found.templates


def dummies(template):
    """Return a value for every placeholder: a number where the format wants one."""
    parsed = [(name, spec) for _text, name, spec, _how in string.Formatter().parse(template) if name]
    return {name: 1 if spec and spec[-1] in "dfg" else "Ж" for name, spec in parsed}


def in_shell(code, **environment):
    kept = {
        k: v for k, v in os.environ.items() if k not in {"ZNATOK_LANG", "LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES"}
    }
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        env=kept | environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
        cwd=ROOT,
    )
    return done.stdout


def test_catalogue_is_complete_and_compiled(messages, capsys):
    status = messages.main(["--check"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_template_formats(templates, language):
    translate = errors.catalogue(language).gettext
    for template, taker in templates.items():
        if taker != "argparse" and (fields := dummies(template)):
            shown = translate(template).format(**fields)
            assert "{" not in shown.replace('{"prompt": …, "response": …}', "")


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"ZNATOK_LANG": "ru"}, "ru"),
        ({"LANG": "ru_RU.UTF-8"}, "ru"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "ru_RU.UTF-8", "ZNATOK_LANG": "en"}, "en"),
    ],
)
def test_errors_speak_the_users_language(templates, environment, language):
    samples = {name: next(text for text, taker in templates.items() if taker == name) for name in CLASSES}
    given = {name: (template, dummies(template)) for name, template in samples.items()}
    code = (
        "import json; from znatok import errors\n"
        f"given = json.loads({json.dumps(given)!r})\n"
        "print(json.dumps({n: str(getattr(errors, n)(t, **f)) for n, (t, f) in given.items()}))"
    )
    said = json.loads(in_shell(code, **environment))
    for name, (template, fields) in given.items():
        english = template.format(**fields)
        assert (said[name] == english) == (language == "en"), said[name]


def test_argparse_speaks_russian_too():
    code = (
        "from znatok import config, errors\n"
        "parser = config.Parser(prog='x')\n"
        "parser.add_argument('--n', type=int, default=7, help='h')\n"
        "print(parser.format_help())\n"
        "for words in (['--n', 'a'], ['--n'], ['--m']):\n"
        "    try: parser.parse_args(words)\n"
        "    except errors.UsageError as error: print(error)"
    )
    said = in_shell(code, ZNATOK_LANG="ru")
    for russian in ("использование: x", "показать эту справку", "(по умолчанию: 7)", "'a' не читается как int"):
        assert russian in said
    for russian in (
        "аргумент --n: ожидается одно значение",
        "неизвестные аргументы: --m; возможно, вы имели в виду --n?",
    ):
        assert russian in said


@pytest.mark.parametrize(
    ("russian", "complaint"),
    [
        ("", "not translated"),
        ("нет {number:.1f} в {path}", "fields differ"),
        ("нет {n:.2f} в {path}", "fields differ"),
        ("нет {n:.1f} в {path", "braces"),
        ("нет {n:.1f} в {path}; задайте --seed", "must stand in both"),
        ("нет {n:.1f} в {path} ", "white space"),
    ],
)
def test_check_finds_a_bad_translation(messages, russian, complaint):
    catalog = messages.Russian(locale="ru", domain="znatok")
    catalog.add("no {n:.1f} in {path}", russian)
    (found,) = messages.complaints(catalog)
    assert complaint in found


def test_a_changed_template_keeps_its_translation_as_fuzzy(messages):
    old = messages.merged(["{path}: no such file here", "gone"], messages.Russian(locale="ru"))
    old["{path}: no such file here"].string, old["gone"].string = "{path}: нет такого файла", "нет"
    new = messages.merged(["{path}: no such file there"], old)
    assert [str(message.id) for message in new if message.id] == ["{path}: no such file there"]
    assert messages.complaints(new) == ["fuzzy, check it and remove the mark: '{path}: no such file there'"]
    assert b"no such file" not in messages.mo_bytes(new)  # a doubtful translation is never shown


def test_a_template_that_cannot_be_read_is_reported(messages, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "catalogue.toml").write_text("model = []")
    (tmp_path / "cli.py").write_text('VERBS = {"a": Verb("verb", f, g)}\n')
    (tmp_path / "a.py").write_text(
        'class Odd(ModelError): pass\nclass ModelError(ZnatokError): pass\nOdd("one"); _("two" if x else "three")\n'
        'def fail(text, at): raise ModelError(text, at=at)\nfail("four", 1)\n_(f"{x}")\n_("a" + y)\n'
    )
    found = messages.extract(tmp_path)
    assert set(found.templates) - set(messages.ARGPARSE) == {"one", "two", "three", "four", "verb"}
    assert [problem.split(": ")[0] for problem in found.problems] == ["a.py:6", "a.py:7"]
