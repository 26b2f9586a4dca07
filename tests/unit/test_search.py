"""The search for a recipe: parts of the data, what is fixed stays fixed, a study goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import helpers
import tiny
from znatok import search as module
from znatok.cli import main
from znatok.config import ModelOptions, SearchOptions, TrainConfig
from znatok.data.schema import Pair
from znatok.errors import DataError, SystemFault, UsageError
from znatok.eval.dev import DevScore, agreement, compared, dev_score, forgotten
from znatok.expert import Voice, open_expert
from znatok.files import read_json, read_jsonl
from znatok.model.score import bits_per_byte
from znatok.prose import general_text
from znatok.runs import Run, find
from znatok.search import SPACE, Trial, search, table, with_values, write_part

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def records(count=200):
    facts = [
        {"prompt": f"Вопрос {i} {n}", "response": "Да.", "fact_ids": [f"f{i}"], "kind": "direct"}
        for i in range(count)
        for n in range(3)
    ]
    others = [
        {"prompt": f"{kind} {i}", "response": "Да.", "fact_ids": [], "kind": kind}
        for kind in ("general", "unknown", "missing")
        for i in range(count)
    ]
    return facts + others


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records()), encoding="utf-8")
    return path


def test_a_part_has_whole_facts_and_the_same_share_of_the_rest(source, tmp_path):
    write_part(source, tmp_path / "part.jsonl", 0.3, {})
    rows = read_jsonl(tmp_path / "part.jsonl")
    facts = [row["fact_ids"][0] for row in rows if row["fact_ids"]]
    assert all(facts.count(name) == 3 for name in set(facts))
    assert 0.2 < len(set(facts)) / 200 < 0.4
    assert 0.2 < sum(row["kind"] == "general" for row in rows) / 200 < 0.4
    assert [row for row in records() if row in rows] == rows  # the order of the file


def test_a_part_is_made_of_what_the_reader_accepted(tmp_path):
    """Once the accepted file was parsed again, in a laxer way: a mark on a later line or half a character broke it."""
    line = '{"prompt": "Вопрос?", "response": "Да.", "x": "\\ud800", "kind": "unknown"}'
    (tmp_path / "all.jsonl").write_bytes(f"\ufeff{line}\r\n\ufeff{line}".encode())
    write_part(tmp_path / "all.jsonl", tmp_path / "part.jsonl", 1.0, {})
    assert (tmp_path / "part.jsonl").read_text(encoding="utf-8") == f"{line}\n" * 2


def test_a_share_that_nothing_falls_into_is_said_before_a_trial_reads_an_empty_file(tmp_path):
    pairs = tiny.write_pairs(tmp_path / "few.jsonl", tiny.PAIRS[:1])
    with pytest.raises(DataError, match=r"few\.jsonl: no pair of it falls into --share 0\.01; raise it"):
        write_part(pairs, tmp_path / "part.jsonl", 0.01, {})
    assert not (tmp_path / "part.jsonl").exists()


@pytest.mark.parametrize("study", ["file/study", "x" * 300])
def test_a_study_that_can_not_be_written_is_one_error(tmp_path, monkeypatch, study):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    config = replace(TrainConfig(), data=replace(TrainConfig().data, val_path="dev.jsonl"))
    with pytest.raises(SystemFault, match=r"can't be written: (Not a directory|File name too long)"):
        search(config, SearchOptions(study=study))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "Напиши стих.", "response": "Мороз.", "kind": "general"}'.encode(), "nothing to compare"),
        ('{"prompt": "Что такое сопло?", "response": "Деталь."}'.encode("cp1251"), "in cp1251; expected UTF-8"),
        (b'{"prompt": "Why?"}', r"dev\.jsonl:1: no key"),
    ],
)
def test_questions_that_can_not_judge_are_refused_before_a_model_is_loaded(tmp_path, content, said):
    (tmp_path / "dev.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        dev_score(Run(tmp_path / "no-run"), tmp_path / "dev.jsonl")


def test_a_mix_leaves_out_what_it_names_and_nothing_else(source, tmp_path):
    write_part(source, tmp_path / "all-of-it.jsonl", 0.5, {})
    write_part(source, tmp_path / "less.jsonl", 0.5, {"admissions": 0.5, "general": 1.0})
    whole, less = read_jsonl(tmp_path / "all-of-it.jsonl"), read_jsonl(tmp_path / "less.jsonl")
    missing = [row for row in whole if row not in less]
    assert {row["kind"] for row in missing} == {"unknown", "missing"}
    admitting = sum(row["kind"] in {"unknown", "missing"} for row in whole)
    assert 0.35 < len(missing) / admitting < 0.65


def test_the_scale_of_the_adapter_follows_its_rank(tmp_path):
    config = TrainConfig()
    changed = with_values(config, {"lora_r": 16, "learning_rate": 1e-3, "general": 0.5}, tmp_path, tmp_path, tmp_path)
    assert changed.lora.lora_alpha / changed.lora.lora_r == config.lora.lora_alpha / config.lora.lora_r
    assert changed.train.learning_rate == 1e-3
    assert changed.train.num_train_epochs == config.train.num_train_epochs


def test_validation_pairs_are_needed(tmp_path):
    with pytest.raises(UsageError, match="--val_path"):
        search(TrainConfig(), SearchOptions(study=str(tmp_path)))


def test_a_study_is_made_of_runs_and_goes_on(tiny_dir, tmp_path):
    pairs = tiny.write_pairs(tmp_path / "pairs.jsonl")
    dev = tmp_path / "dev.jsonl"
    # a mark, and no line feed at the end: the last line was once dropped as if a crash had torn it
    dev.write_text('{"prompt": "Другой вопрос?", "response": "Другой ответ."}', encoding="utf-8-sig")
    config = helpers.settings(
        tiny_dir,
        pairs,
        tmp_path / "unused",
        data_options={"val_path": str(dev), "val_share": 0.0},
        lora={"lora_r": 8, "lora_alpha": 16},
        max_steps=3,
    )
    options = SearchOptions(study=str(tmp_path / "study"), trials=1, share=1.0)
    stated = [name for name in SPACE if name not in {"learning_rate", "lora_r"}]
    (first,) = search(config, options, stated)
    assert first.number == 0
    assert first.values["lora_r"] == 8  # the recipe's own; its learning rate lies outside the space
    trials = search(config, replace(options, trials=2), stated)
    assert sorted(trial.number for trial in trials) == [0, 1, 2]
    assert [trial.score for trial in trials] == sorted((trial.score for trial in trials), reverse=True)
    assert {name for trial in trials for name in trial.values} == {"learning_rate", "lora_r"}
    run = tmp_path / "study" / f"trial-{trials[0].number:03}"
    losses = [row["val_loss"] for row in read_jsonl(run / "metrics.jsonl") if "val_loss" in row]
    assert losses[-1] == trials[0].figures["loss"]
    judged = dev_score(find(run), dev, "float32")
    assert judged.mean == trials[0].score
    assert {f"prose_{name}": rise for name, rise in judged.forgotten.items()}.items() <= trials[0].figures.items()
    assert read_json(tmp_path / "study" / "search.json")["trials"][0]["score"] == trials[0].score


def test_two_processes_work_on_one_study(tiny_dir, tmp_path):
    pairs = tiny.write_pairs(tmp_path / "pairs.jsonl")
    dev = tmp_path / "dev.jsonl"
    dev.write_text('{"prompt": "Другой вопрос?", "response": "Другой ответ."}\n', encoding="utf-8")
    words = ["search", "--study", "study", "--share", "1", "--trials", "2", "--recipe", "seed", "--threads", "1"]
    words += ["--model_name", tiny_dir, "--dtype", "float32", "--data_path", pairs, "--val_path", dev]
    words += ["--val_share", "0", "--max_steps", "2", "--num_train_epochs", "1"]
    workers = [helpers.started("znatok", *words, "--worker", number, cwd=tmp_path) for number in (0, 1)]
    said = [worker.communicate(timeout=280) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    stored = read_json(tmp_path / "study" / "search.json")["trials"]
    assert sorted(trial["number"] for trial in stored) == [0, 1, 2, 3]
    assert all(trial["score"] is not None for trial in stored)
    recipe = [trial for trial in stored if trial["lora_r"] == 8 and trial["per_device_train_batch_size"] == 4]
    assert len(recipe) >= 1  # the recipe's own values, tried by one of them
    assert {find(tmp_path / "study" / f"trial-{n:03}").read_status()["state"] for n in range(4)} == {"finished"}


def test_a_trial_that_failed_stands_last():
    shown = table(
        [
            Trial(1, {"lora_r": 8}, 0.5, {"score": 0.5, "prose_ru": 0.011, "steps": 3}),
            Trial(0, {"lora_r": 16}, None, {}),
        ]
    )
    assert shown.splitlines()[-2] == "| 1 | 0.5 | – | – | 0.011 | – | – | 3 | – | 8 |"
    assert shown.splitlines()[-1] == "| 0 | – | – | – | – | – | – | – | – | 16 |"


def test_a_trial_that_forgets_stands_below_all_that_do_not(monkeypatch, tmp_path):
    pytest.importorskip("optuna")
    found = {0: (0.9, 0.01), 1: (0.3, -0.02), 2: (0.5, 0.0)}

    def attempt(_config, _options, number, _values):
        return dict(zip(("score", "excess"), found[number], strict=True))

    monkeypatch.setattr(module, "attempt", attempt)
    config = replace(TrainConfig(), data=replace(TrainConfig().data, val_path="dev.jsonl"))
    trials = search(config, SearchOptions(study=str(tmp_path), trials=3))
    assert [trial.number for trial in trials] == [2, 1, 0]
    assert [trial.forgets for trial in trials] == [False, False, True]


def test_what_was_forgotten_is_a_ratio_of_bits(tiny_dir, tmp_path):
    run = helpers.trained(tiny_dir, tiny.write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run", max_steps=2)
    expert = open_expert(ModelOptions(model_name=str(tiny_dir), dtype="float32"), run, "", "torch")
    rises = forgotten(expert)
    for language, rise in rises.items():
        bits = {}
        for voice in expert.voices:
            with expert.weights(voice) as model:
                windows = bits_per_byte(model, expert.chat, general_text(language))
            bits[voice] = sum(found for found, _size in windows)
        assert rise == pytest.approx(bits[Voice.TUNED] / bits[Voice.BASE] - 1)
    assert set(rises) == {"ru", "en"}
    assert all(rise != 0 for rise in rises.values())


@pytest.mark.parametrize("language", ["ru", "en"])
def test_a_recipe_is_not_chosen_by_the_prose_it_is_examined_with(language):
    def runs(path):
        words = path.read_text(encoding="utf-8").lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    chosen_by = runs(general_text(language))
    assert len(chosen_by) > 800
    assert not chosen_by & runs(Path(__file__).parents[2] / "data" / "eval" / f"prose_{language}.txt")


def test_the_worst_language_decides():
    assert DevScore(0, 0, 0, 1).excess == 0
    assert DevScore(0, 0, 0, 1, {"ru": 0.01, "en": 0.04}).excess == pytest.approx(-0.01)
    assert DevScore(0, 0, 0, 1, {"ru": 0.05, "en": 0.04}).excess == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("question", "reference", "answer", "score"),
    [
        ("Сколько греть PLA?", "180–220 °C.", "До 180–220 °C.", 1.0),
        ("Сколько греть PLA?", "180–220 °C.", "До 180–230 °C.", 0.5),
        ("Верно ли, что 230?", "Нет, 220.", "Да, 230.", 0.0),
        ("Сколько греть PLA?", "180–220 °C.", "Сильно.", 0.0),
        ("Чем смыть смолу?", "Изопропиловым спиртом.", "Спиртом, изопропиловым!", 1.0),
        ("Чем смыть смолу?", "Изопропиловым спиртом.", "Смолу смыть водой.", 0.0),
    ],
)
def test_agreement_counts_numbers_then_words(question, reference, answer, score):
    assert agreement(question, reference, answer) == pytest.approx(score)


def test_admissions_are_counted_apart():
    pairs = [
        Pair("Сколько греть PLA?", "200 °C.", kind="direct"),
        Pair("Что такое Брямс?", "Не знаю.", kind="unknown"),
        Pair("Что такое Жульк?", "Не знаю.", kind="unknown"),
    ]
    found = compared(pairs, ["До 200 °C.", "Такого материала я не знаю.", "Это пластик."])
    assert (found.facts, found.admitted, found.n) == (1.0, 0.5, 3)
    assert found.mean == pytest.approx(2 / 3)


def test_the_verb_checks_its_flags(capsys):
    assert main(["search", "--share", "0"]) == 2
    assert "--share" in capsys.readouterr().err


def proposals(monkeypatch, folder, seed=42, parts=(3,), worker=0):
    """Return what a study proposes, begun anew for each part, where every trial is worth its learning rate."""
    monkeypatch.setattr(module, "attempt", lambda _c, _o, _n, values: {"score": values["learning_rate"], "excess": 0.0})
    config = replace(TrainConfig(), data=replace(TrainConfig().data, val_path="dev.jsonl"))
    config = replace(config, train=replace(config.train, seed=seed))
    for trials in parts:
        found = search(config, SearchOptions(study=str(folder), trials=trials, worker=worker), ())
    return [dict(trial.values) for trial in sorted(found, key=lambda trial: trial.number)]


def test_a_study_proposes_the_same_again(monkeypatch, tmp_path):
    pytest.importorskip("optuna")
    first = proposals(monkeypatch, tmp_path / "a", parts=(3, 3))
    assert proposals(monkeypatch, tmp_path / "b", parts=(3, 3)) == first
    assert proposals(monkeypatch, tmp_path / "c", seed=43, parts=(3, 3)) != first
    assert proposals(monkeypatch, tmp_path / "d", worker=1, parts=(3, 3)) != first
    assert len({tuple(values.items()) for values in first}) == 6  # going on, it does not begin with the same ones
