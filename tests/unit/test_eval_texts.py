import eval_samples as samples
from znatok.eval.texts import FILES, answers_text


def test_header_says_what_answered_and_how():
    head = answers_text(samples.answers(), "base", samples.manifest()).split("\n\n")[0]
    assert head.splitlines() == [
        "Базовая модель",
        "Модель: Qwen/Qwen2.5-1.5B",
        "SHA-256 модели: " + "a" * 64,
        "Сид: 42",
        "Сэмплирование: temperature 0.7, top_p 0.9, max_new_tokens 256",
        "Движок: torch",
        "Дата: 2026-08-01T10:00:00Z",
    ]


def test_questions_are_numbered_and_sampled_answers_come_before_greedy_ones():
    rows = [row | {"text": f"{row['mode']} {row['id']} {row['arm']}"} for row in samples.answers()]
    text = answers_text(rows, "tuned", samples.manifest())
    places = [text.index(f"{n}. Вопрос: {question}") for n, (_, question) in enumerate(samples.QUESTIONS, 1)]
    assert places == sorted(places)
    for id, _ in samples.QUESTIONS:
        assert text.index(f"sampled {id} tuned") < text.index(f"greedy {id} tuned")
    assert "base" not in text.split("\n\n", 1)[1]
    assert "[сэмплирование, сид 42]" in text


def test_the_other_models_hash_stays_out_of_the_base_file():
    manifest = samples.manifest() | {"adapter_sha256": "c" * 64}
    assert "c" * 64 in answers_text(samples.answers(), "tuned", manifest)
    assert "c" * 64 not in answers_text(samples.answers(), "base", manifest)


def test_cut_off_and_empty_answers_say_so():
    rows = [samples.answer("seed-1", "base"), samples.answer("u", "base", set="user", text="\x00 ", stop="end")]
    text = answers_text(rows, "base", {}, "en")
    assert "[cut off at the limit of 256 tokens]" in text
    assert text.endswith("(empty answer)\n")
    assert "Your questions\n==============" in text
    assert "\x00" not in text


def test_file_names_are_those_of_the_seed_document():
    assert FILES == {"base": "Базовая модель.txt", "tuned": "дообученная модель.txt"}
