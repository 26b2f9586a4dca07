"""Generated documents are what the code says, and the tool that makes them names what is missing."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "tools" / "generate_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def captions():
    return {
        "src": {"en": "code", "ru": "код"},
        "src/znatok": {"en": "package", "ru": "пакет"},
        "src/znatok/cli.py": {"en": "commands", "ru": "команды"},
        "Базовая модель.txt": {"en": "answers", "ru": "ответы", "made": True},
        "README.md": {"en": "this", "ru": "это"},
    }


FILES = {"src/znatok/cli.py", "README.md"}


@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_option_is_in_the_table(docs, language):
    page = docs.options_page(language)
    options = [spec for group in docs.GROUPS for spec in dataclasses.fields(group)]
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == [
        f"--{spec.name}" for spec in options
    ]
    assert f"`{docs.config.LANGUAGE_NEUTRAL_SYSTEM}`" in page


def test_every_option_group_is_in_the_table(docs):
    groups = [kind for kind in vars(docs.config).values() if isinstance(kind, type)]
    assert {g for g in groups if issubclass(g, docs.config.Options)} - {docs.config.Options} == set(docs.GROUPS)


def test_help_of_a_command_is_live(docs):
    helps = dict(docs.helps())
    assert helps["znatok model get"].startswith("usage: znatok model get [-h]")
    assert {"znatok", "znatok demo", "znatok data split", "python train_model.py", "python chatting.py"} <= set(helps)


def test_tree_shows_what_is_there_in_order(docs, captions):
    assert docs.tree_block(captions, FILES, "ru").splitlines()[2:-2] == [
        "├── src/            код",
        "│   └── znatok/     пакет",
        "│       └── cli.py  команды",
        "└── README.md       это",
    ]


def test_tree_names_what_lacks_a_caption_and_what_is_gone(docs, captions):
    assert docs.tree_problems(captions, FILES, FILES) == []
    found = docs.tree_problems(captions, FILES | {"src/znatok/new/part.py", "LICENSE"}, FILES)
    assert [text.split("no caption for ")[1] for text in found] == [
        "LICENSE",
        "src/znatok/new",
        "src/znatok/new/part.py",
    ]
    (gone,) = docs.tree_problems(captions, set(), FILES - {"README.md"})
    assert "README.md is not there any more" in gone


@pytest.mark.parametrize("text", ["", "<!-- tree:start -->", "<!-- tree:end --><!-- tree:start -->"])
def test_a_readme_without_marks_is_refused(docs, text):
    assert docs.with_tree(text, "tree") is None


def test_a_tree_replaces_the_old_one_and_nothing_else(docs):
    text = f"before {docs.START}old{docs.END} after"
    assert docs.with_tree(text, f"{docs.START}new{docs.END}") == f"before {docs.START}new{docs.END} after"


def test_check_writes_nothing_and_fails_on_a_difference(docs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "pages", lambda: ({Path("page.md"): "text"}, []))
    assert docs.main(["--check"]) == 1
    assert "page.md: out of date" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0


# Faults

TABLE = {
    "lead": "What can go wrong.\n",
    "area": {"data": "Data", "web": "The page"},
    "fault": [
        {"number": 1, "area": "data", "fault": "no | file", "promise": "says so", "tests": ["tests/a.py::test_a"]},
        {"number": 2, "area": "web", "fault": "a storm", "promise": "nothing", "tests": [], "reason": "it is indoors"},
    ],
}


def test_a_fault_is_shown_with_the_tests_that_provoke_it(docs):
    page, problems = docs.reliability_page(TABLE, {"tests/a.py::test_a"})
    assert problems == []
    assert "| 1 | no \\| file | says so | `a.py::test_a` |" in page
    assert "| 2 | a storm | nothing | it is indoors |" in page
    assert page.index("## Data") < page.index("no \\| file") < page.index("## The page") < page.index("a storm")
    assert "Not provoked yet" not in page


def test_a_fault_without_test_or_reason_fails_and_so_does_a_test_that_is_not_there(docs):
    first, second = TABLE["fault"]
    for row, said in (
        (first | {"tests": []}, "needs tests, a reason"),
        (first | {"reason": "and a reason too"}, "needs no reason"),
        (first | {"tests": ["tests/a.py::test_b"]}, "tests/a.py::test_b is not there"),
        (first | {"number": 3}, "the numbers are not"),
    ):
        _page, problems = docs.reliability_page(TABLE | {"fault": [row, second]}, {"tests/a.py::test_a"})
        assert len(problems) == 1
        assert said in problems[0]


def test_what_no_test_provokes_yet_is_listed(docs):
    rows = [TABLE["fault"][0] | {"open": "a file on the moon"}, TABLE["fault"][1]]
    page, problems = docs.reliability_page(TABLE | {"fault": rows}, {"tests/a.py::test_a"})
    assert problems == []
    assert page.endswith("## Not provoked yet\n\n* 1: a file on the moon\n")


def test_tests_are_found_by_their_names(docs):
    own = f"tests/unit/test_generate_docs.py::{test_tests_are_found_by_their_names.__name__}"
    assert own in docs.test_ids({"tests/unit/test_generate_docs.py", "README.md"})
