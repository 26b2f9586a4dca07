import base64
from html.parser import HTMLParser

import pytest

import eval_samples as samples
from znatok.errors import DataError
from znatok.eval.figures import training_loss
from znatok.eval.report import render_report
from znatok.eval.summary import summarise

VOID = {"meta", "img", "br", "link", "input"}
ATTACKS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "![x](https://evil.example/p.png)",
    "{{ 7 * 7 }}{% raw %}",
    "</div></main><style>*{display:none}</style>",
    "&lt;b&gt;\x1b[31m\u202e\x00",
]


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that don't nest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "training_loss.png"
    training_loss(samples.metrics_rows(), path)
    return path


def render(rows, image=None, language="ru", metrics=(), manifest=None):
    summary = summarise(rows, samples.losses(), seed=1)
    images = {"training_loss": image} if image else {}
    return render_report(summary, rows, manifest or samples.manifest(), metrics, images, language)


def test_report_holds_every_answer_the_table_and_the_facts(image):
    rows = [
        *samples.answers(),
        *(samples.answer("h", arm, set="heldout", reference="Эталон тут") for arm in ("base", "tuned")),
    ]
    page = Page(render(rows, image, metrics=samples.metrics_rows()))
    assert page.tags.count("article") == 6
    assert page.text.count(samples.BASE) == page.text.count(samples.TUNED) == 11
    assert page.tags.count("tr") == 1 + 9
    for part in (
        "Эталон тут",
        "a" * 64,
        "b" * 64,
        "Intel Xeon",
        "torch 2.13.0",
        "48 мин",
        "1,550 на шаге 40",
        "3,2\u00a0ГиБ",
    ):
        assert part in page.text
    assert "/home/anna" not in page.text


def test_report_loads_nothing_and_runs_nothing(image):
    html = render(samples.answers(), image)
    page = Page(html)
    assert not {"script", "link", "iframe", "form", "object", "a", "base"} & set(page.tags)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert ("img", "src", "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()) in page.attributes
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in {"href", "style"}]
    assert "http:" not in html  # a colon can't come from base64
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_model_wrote_stays_text(attack):
    honest = Page(render([samples.answer(arm=arm, reference="x") for arm in ("base", "tuned")]))
    rows = [samples.answer(arm=arm, text=attack, question=attack, reference=attack) for arm in ("base", "tuned")]
    hostile = Page(render(rows, manifest=samples.manifest() | {"model_name": attack, "machine": attack}))
    assert hostile.tags == honest.tags
    assert hostile.tags.count("img") == hostile.tags.count("script") == 0
    shown = "".join(c for c in attack if c.isprintable())
    assert hostile.text.count(shown) >= 4
    assert not {"\x1b", "\u202e", "\x00"} & set(hostile.text)


def test_a_question_only_one_model_was_asked_says_so():
    rows = [samples.answer(arm=arm) for arm in ("base", "tuned")]
    summary = summarise(rows, {}, seed=1)
    rows.append(samples.answer(arm="base", mode="greedy", text=""))
    page = Page(render_report(summary, rows, {}, [], {}, "en"))
    assert "not asked" in page.text
    assert "(empty answer)" in page.text


def test_training_facts_come_as_far_as_they_are_known():
    html = render(samples.answers(), metrics=[{"step": 3, "epoch": 1, "loss": 2.0}])
    assert '<dd class="steps">3</dd>' in html
    assert 'class="best"' not in html
    assert 'class="memory"' not in html


def test_report_of_nothing_is_still_a_page():
    page = Page(render_report(summarise([], {}, seed=1), [], {}, [], {}, "en"))
    assert page.tags.count("table") == 0
    assert "Did the model become better?" in page.text


def test_verdicts_are_marked_in_the_table():
    html = render(samples.answers(), language="en")
    assert '<td class="shown">shown</td>' in html
    assert '<td class="not-shown">not shown</td>' in html


def test_a_picture_must_be_a_png(tmp_path):
    (tmp_path / "x.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(DataError, match="not a PNG"):
        render(samples.answers(), tmp_path / "x.png")
