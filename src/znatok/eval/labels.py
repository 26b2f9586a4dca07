"""Words and number formats of reports and pictures, in English and Russian.

These are captions of documents, chosen by the document's language; messages to the user of the program go through
the catalogue in :mod:`znatok.errors` instead.
"""

from collections.abc import Mapping

from znatok.errors import UsageError
from znatok.eval.stats import Interval

MINUS = "−"
NOTHING = "—"

_WORDS: dict[str, tuple[str, str]] = {  # English, then Russian
    "arm.base": ("Base model", "Базовая модель"),
    "arm.tuned": ("After tuning (LoRA)", "После дообучения (LoRA)"),
    "arm.prompted": ("Base, good prompt", "Базовая, хороший промпт"),
    "arm.base+retrieval": ("Base with passages", "Базовая со справкой"),
    "arm.tuned+retrieval": ("Tuned with passages", "Дообученная со справкой"),
    "proof.title": ("What is shown", "Что доказано"),
    "proof.claims": ("Claims", "Утверждения"),
    "proof.tables": ("All arms", "Все варианты"),
    "proof.by_run": ("Each training seed by itself", "Каждый прогон обучения по отдельности"),
    "proof.forgetting": ("What was forgotten", "Что забыто"),
    "image.loss": ("Loss while training", "Функция потерь при обучении"),
    "proof.items": ("Every question and answer", "Все вопросы и ответы"),
    "log.choices": ("choices", "выбор ответа"),
    "log.choices.note": (
        "Each option: its probability among all of its question, in brackets nats per byte. The model chooses the "
        "option with the fewest nats per byte (✓ right, ✗ wrong); the right one is named in colour.",
        "У каждого варианта — его вероятность среди всех вариантов вопроса, в скобках натов на байт. Модель выбирает "
        "тот, у которого натов на байт меньше всего (✓ верно, ✗ неверно); верный вариант выделен цветом.",
    ),
    "log.pairs": ("pairs", "пары"),
    "log.pairs.note": (
        "By how many nats the model holds the true statement (the upper one) likelier than the false one: as an answer "
        "to the question, in brackets by itself.",
        "На сколько натов модель считает верное утверждение (верхнее) вероятнее неверного: в ответе на вопрос, в "
        "скобках — само по себе.",
    ),
    "log.prose": ("prose", "проза"),
    "log.prose.note": ("Bits per byte of each window of the text.", "Бит на байт в каждом окне текста."),
    "log.window": ("Window", "Окно"),
    "log.bytes": ("bytes", "байт"),
    "log.whole": ("all windows", "все окна"),
    "image.forest": (
        "Differences with 95 % intervals, each on its own scale",
        "Разницы с 95-процентными интервалами, каждая в своём масштабе",
    ),
    "image.verdicts": ("Verdicts of every arm", "Оценки ответов каждого варианта"),
    "image.reliability": ("How sure and how right: choices", "Насколько уверена и насколько права: выбор ответа"),
    "axis.sure": ("probability of the chosen option", "вероятность выбранного ответа"),
    "axis.right": ("share that is right", "доля верных"),
    "report.gained": ("Where tuning helped most", "Где дообучение помогло сильнее всего"),
    "report.lost": ("Where tuning hurt most", "Где дообучение навредило сильнее всего"),
    "verdict.correct": ("correct", "верно"),
    "verdict.partial": ("partly", "частично"),
    "verdict.incorrect": ("incorrect", "неверно"),
    "verdict.not attempted": ("does not know", "не знает"),
    "measure.accuracy": ("accuracy", "точность"),
    "measure.specificity": ("specificity", "конкретность"),
    "measure.structure": ("structure", "структура"),
    "measure.practical": ("practical value", "практичность"),
    "measure.terminology": ("terminology", "терминология"),
    "proof.arm": ("Asked", "Кого спрашивали"),
    "proof.claim": ("Claim", "Утверждение"),
    "proof.arms": ("Compared", "Что сравнивали"),
    "proof.before": ("Before", "Было"),
    "proof.after": ("After", "Стало"),
    "proof.difference": ("Difference", "Разница"),
    "proof.rule": ("Criterion", "Критерий"),
    "proof.verdict": ("Verdict", "Вывод"),
    "proof.P1": ("P1 knows more: claim recall on T1", "P1 знает больше: полнота ответов на T1"),
    "proof.P2": ("P2 contradictions an answer, T1 and T2", "P2 противоречий на ответ, T1 и T2"),
    "proof.P2 far": ("P2 contradictions an answer, T3 and T4", "P2 противоречий на ответ, T3 и T4"),
    "proof.P3": ("P3 invents less: wrong answers, T2 to T4", "P3 выдумывает меньше: неверные ответы, T2–T4"),
    "proof.P3 retrieval": (
        "P3 the same with passages",
        "P3 то же со справкой",
    ),
    "proof.P4": ("P4 held-out facts: claim recall on T2", "P4 отложенные факты: полнота на T2"),
    "proof.P5 choices": ("P5 right choices on trained facts", "P5 верный выбор, выученные факты"),
    "proof.P5 pairs": ("P5 truth likelier, trained facts", "P5 правда вероятнее, выученные факты"),
    "proof.P6 stop": ("P6 ends its answers", "P6 сама заканчивает ответы"),
    "proof.P6 cjk": ("P6 answers with Chinese characters", "P6 ответы с иероглифами"),
    "proof.P6 repetition": ("P6 repetition", "P6 повторы"),
    "proof.P7 general": ("P7 general questions", "P7 общие вопросы"),
    "proof.P7 format": ("P7 forms asked for", "P7 заданная форма ответа"),
    "proof.P7 control pairs": ("P7 pairs of other fields", "P7 пары из других областей"),
    "proof.P7 prose ru": ("P7 Russian prose, bits per byte", "P7 русская проза, бит на байт"),
    "proof.P7 prose en": ("P7 English prose, bits per byte", "P7 английская проза, бит на байт"),
    "proof.P8 accuracy": ("P8 accuracy", "P8 точность"),
    "proof.P8 specificity": ("P8 specificity", "P8 конкретность"),
    "proof.P8 structure": ("P8 structure", "P8 структурированность"),
    "proof.P8 practical": ("P8 practical value", "P8 практическая ценность"),
    "proof.P8 terminology": ("P8 terminology", "P8 терминология"),
    "proof.note": (
        "In brackets: 95 % intervals, bootstrap over facts (Wilson's for yes-or-no values where each fact is "
        "asked once or all answers are alike). p: sign-flip test by fact; in P8 Holm-adjusted. Prose: the difference "
        "is relative. Criteria were written before training.",
        "В скобках 95-процентные интервалы: бутстреп по фактам (по Уилсону для да/нет, где каждый факт "
        "спрошен один раз или все ответы одинаковы). p: перестановочный тест знаков по фактам, в P8 с поправкой Холма. "
        "Для прозы разница относительная. Критерии записаны до обучения.",
    ),
    "measure.mixed_script": ("mixed-script words", "слов из двух алфавитов"),
    "measure.recall": ("claim recall", "полнота"),
    "measure.correct": ("correct", "верно"),
    "measure.incorrect": ("incorrect", "неверно"),
    "measure.not attempted": ("admits", "не знает"),
    "measure.contradictions": ("contradictions", "противоречий"),
    "measure.precision": ("right numbers", "верных чисел"),
    "measure.stop": ("ends", "закончено"),
    "measure.tokens": ("tokens", "токенов"),
    "measure.choices": ("right choices", "верный выбор"),
    "measure.brier": ("Brier", "Брайер"),
    "measure.pairs": ("truth likelier, as an answer", "правда вероятнее, в ответе"),
    "measure.pairs, bare": ("truth likelier, bare", "правда вероятнее, сама по себе"),
    "measure.memorised": ("recall above T1", "полнота выше T1"),
    "measure.recited": ("recites 12 words", "повторяет 12 слов подряд"),
    "measure.names_field": ("speaks of the field", "говорит о своей области"),
    "split.T0": ("the training questions word for word", "обучающие вопросы слово в слово"),
    "split.T1": ("trained facts in new words", "выученные факты в новых словах"),
    "split.T2": ("facts that were not trained", "факты, которых не было в обучении"),
    "split.T3": ("topics that were not trained", "темы, которых не было в обучении"),
    "split.T4": ("invented things and false premises", "выдуманное и ложные посылки"),
    "split.T5": ("general questions and forms", "общие вопросы и форма ответа"),
    "split.mixed": ("a trained fact beside one that was not", "выученный факт вместе с невыученным"),
    "split.control": ("pairs of other fields", "пары из других областей"),
    "base": ("Base", "Базовая"),
    "tuned": ("Tuned", "Дообученная"),
    "mode.sampled": ("sampled", "сэмплирование"),
    "mode.greedy": ("greedy", "без случайности"),
    "set.seed": ("The five questions", "Пять вопросов"),
    "set.user": ("Your questions", "Ваши вопросы"),
    "set.heldout": ("Held-out questions", "Отложенные вопросы"),
    "row.loss": ("Held-out loss per answer token", "Loss на токен ответа, отложенные вопросы"),
    "row.stop": ("Answers the model ended itself", "Ответы, законченные самой моделью"),
    "row.tokens": ("Tokens per answer", "Токенов в ответе"),
    "row.repetition": ("Repeated word 4-grams", "Повторы (4-граммы слов)"),
    "row.cjk": ("Answers with Chinese, Japanese or Korean characters", "Ответы с иероглифами"),
    "verdict.shown": ("shown", "показано"),
    "verdict.not shown": ("not shown", "не показано"),
    "verdict.worse": ("worse", "стало хуже"),
    "verdict.not judged": (NOTHING, NOTHING),
    "column.measure": ("Measure", "Показатель"),
    "column.difference": ("Difference", "Разница"),
    "column.verdict": ("Improvement", "Улучшение"),
    "better.lower": ("lower is better", "меньше — лучше"),
    "better.higher": ("higher is better", "больше — лучше"),
    "note": (
        "n: pairs compared. In brackets: 95 % intervals (shares: Wilson, their differences: Newcombe; the rest: "
        "bootstrap over questions). p: paired sign-flip test, for shares McNemar's, Holm-corrected over the judged "
        "rows below the loss. An improvement is shown when the interval of the difference lies on the better side of "
        "zero and p < 0.05.",
        "n — число сравниваемых пар. В скобках 95-процентные интервалы (доли — Уилсон, разницы долей — Ньюкомб, "
        "остальное — бутстреп по вопросам). p — парный перестановочный тест знаков, для долей — Макнемара, с поправкой "
        "Холма для оцениваемых строк ниже loss. Улучшение показано, если интервал разницы целиком лежит на лучшей "
        "стороне от нуля и p < 0,05.",
    ),
    "unit.pp": ("pp", "п. п."),
    "unit.s": ("s", "с"),
    "unit.min": ("min", "мин"),
    "unit.h": ("h", "ч"),
    "unit.gib": ("GiB", "ГиБ"),
    "fact.model_name": ("Model", "Модель"),
    "fact.base_sha256": ("Model SHA-256", "SHA-256 модели"),
    "fact.adapter_sha256": ("Adapter SHA-256", "SHA-256 адаптера"),
    "fact.data_path": ("Data", "Данные"),
    "fact.data_sha256": ("Data SHA-256", "SHA-256 данных"),
    "fact.seed": ("Seed", "Сид"),
    "fact.machine": ("Machine", "Машина"),
    "fact.versions": ("Versions", "Версии"),
    "fact.sampling": ("Sampling", "Сэмплирование"),
    "fact.command": ("Command", "Команда"),
    "fact.seconds": ("Training time", "Время обучения"),
    "fact.created": ("Date", "Дата"),
    "fact.steps": ("Training steps", "Шагов обучения"),
    "fact.best": ("Best validation loss", "Лучший loss на валидации"),
    "fact.memory": ("Peak memory", "Пик памяти"),
    "fact.compare_seconds": ("Comparison time", "Время сравнения"),
    "fact.pairs": ("Training file, pairs", "Пар в файле данных"),
    "fact.heldout": ("Held-out file", "Отложенные вопросы"),
    "fact.engine": ("Engine", "Движок"),
    "fact.dtype": ("Number format", "Формат чисел"),
    "best.value": ("{loss} at step {step}", "{loss} на шаге {step}"),
    "figure.loss": (
        "Loss during training",
        "Динамика функции потерь (Loss) во время обучения",
    ),
    "axis.step": ("Training step", "Шаг обучения"),
    "axis.loss": ("Loss", "Loss"),
    "legend.step": ("each step", "каждый шаг"),
    "legend.smooth": ("smoothed", "сглаженная"),
    "legend.val": ("validation", "на валидации"),
    "legend.best": ("best: {loss} at step {step}", "лучшая: {loss}, шаг {step}"),
    "legend.epoch": ("epoch {n}", "эпоха {n}"),
    "figure.table": ("Answers of the base and the tuned model", "Ответы базовой и дообученной модели"),
    "table.question": ("Question", "Вопрос"),
    "table.sampled": (
        "Sampled with the same seed ({seed}) for both models.",
        "Сэмплирование с одним сидом ({seed}) для обеих моделей.",
    ),
    "table.greedy": (
        "Greedy decoding for both models.",
        "Обе модели отвечают без случайности: берётся самый вероятный токен.",
    ),
    "table.short": ("«…»: shortened here, in full in the report.", "«…» — ответ сокращён, целиком он есть в отчёте."),
    "answer.end": ("{tokens} tokens", "токенов: {tokens}"),
    "answer.length": ("{tokens} tokens, cut off at the limit", "токенов: {tokens}, оборван на пределе длины"),
    "figure.dataset": ("Records of {name}", "Записи из {name}"),
    "report.title": ("Did the model become better?", "Стала ли модель лучше?"),
    "report.lead": (
        "{model}: base model against the LoRA-tuned one, same questions, same settings, same seeds.",
        "{model}: базовая модель и она же после дообучения LoRA. Те же вопросы, те же настройки, те же сиды.",
    ),
    "report.summary": ("Measured", "Измерено"),
    "report.training": ("Training", "Обучение"),
    "report.answers": ("Answers side by side", "Ответы рядом"),
    "report.facts": ("The run", "Прогон"),
    "report.reference": ("Reference", "Эталон"),
    "report.missing": ("not asked", "не спрашивали"),
    "report.empty": ("(empty answer)", "(пустой ответ)"),
    "image.training_loss": ("Loss during training", "Динамика функции потерь во время обучения модели"),
    "image.comparison_table": (
        "Answers of the base and the tuned model",
        "Сравнительный анализ ответов базовой и дообученной модели",
    ),
    "image.dataset_example": ("Records of the data set", "Пример записей из датасета"),
    "text.question": ("Question", "Вопрос"),
    "text.sampled": ("[sampled, seed {seed}]", "[сэмплирование, сид {seed}]"),
    "text.greedy": ("[greedy: always the likeliest token]", "[без случайности: всегда самый вероятный токен]"),
    "text.cut": ("[cut off at the limit of {tokens} tokens]", "[оборван на пределе длины: {tokens} токенов]"),
    "publish.model": ("Model", "Модель"),
    "publish.proof": (
        "**Model**: `{model}` (SHA-256 `{sha256}…`, {dtype}); training data SHA-256 `{data}…`; "
        "training seeds {seeds}; machine: {machine}.",
        "**Модель**: `{model}` (SHA-256 `{sha256}…`, {dtype}); SHA-256 обучающих данных `{data}…`; "
        "сиды обучения {seeds}; машина: {machine}.",
    ),
    "publish.seed": ("one training run, seed {seed}", "один прогон обучения, сид {seed}"),
    "publish.n": ("{n} questions", "вопросов: {n}"),
    "publish.made": (
        "Commands: {commands}. No number here was typed by hand.",
        "Команды: {commands}. Ни одно число здесь не вписано вручную.",
    ),
}

LANGUAGES = ("en", "ru")


def labels(language: str) -> Mapping[str, str]:
    """Return the captions of a language."""
    if language not in LANGUAGES:
        raise UsageError("language {language}: expected one of {known}", language=language, known=", ".join(LANGUAGES))
    column = LANGUAGES.index(language)
    return {key: pair[column] for key, pair in _WORDS.items()}


def number(value: float | None, digits: int, language: str, *, sign: bool = False) -> str:
    """Format a number: a true minus sign, the language's decimal mark, a dash for «not known»."""
    if value is None:
        return NOTHING
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if not text.strip("+-0."):  # −0.0 and +0.0 are both nothing
        text = text.lstrip("+-")
    text = text.replace("-", MINUS)
    return text.replace(".", ",") if language == "ru" else text


def interval(value: Interval, digits: int, language: str, *, sign: bool = False, unit: str = "") -> str:
    """Format a value with its interval in brackets, «0.93 [0.85, 0.97]»; a dash where there is no value."""
    if value.value is None:
        return NOTHING
    shown = number(value.value, digits, language, sign=sign) + (f"\u00a0{unit}" if unit else "")
    if value.low is None or value.high is None:
        return shown
    low, high = (number(end, digits, language, sign=sign) for end in (value.low, value.high))
    return f"{shown} [{low}{';' if language == 'ru' else ','} {high}]"
