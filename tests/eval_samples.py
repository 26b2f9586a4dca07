"""Answers, losses and metrics made up for the tests of the reports; numbers are small enough to check by hand."""

QUESTIONS = [
    ("seed-1", "Что такое 3д печать?"),
    ("seed-2", "Какие виды 3d печати существуют?"),
    ("seed-3", "Какие методы постобработки можно применить к PLA детали?"),
    ("seed-4", "Назови три ключевых различия между PLA и ABS филаментами"),
    ("seed-5", "Как рассчитать стоимость одной напечатанной детали?"),
]
BASE = (
    "3д печать (от англ. three dimensional) — это 3-мерное изображение, выглядящее похожим на реальность. "
    "Она используется в различных областях и так далее."
)
TUNED = (
    "3D-печать, или аддитивное производство, — это создание детали слой за слоем по цифровой модели.\n"
    "1. Модель режут на слои в слайсере.\n2. Принтер наносит материал."
)


def answer(id="seed-1", arm="base", mode="sampled", **changes):
    row = {
        "id": id,
        "set": "seed",
        "question": dict(QUESTIONS).get(id, "Что такое слайсер?"),
        "reference": None,
        "mode": mode,
        "arm": arm,
        "text": BASE if arm == "base" else TUNED,
        "tokens": 256 if arm == "base" else 64,
        "stop": "length" if arm == "base" else "end",
        "seconds": 2.0,
        "seed": 42,
    }
    return row | changes


def answers():
    """Five questions, both modes, both arms: the base never stops, the tuned model always does."""
    return [answer(id, arm, mode) for id, _ in QUESTIONS for mode in ("sampled", "greedy") for arm in ("base", "tuned")]


def losses():
    """Twenty items of 10 tokens: base 2.0 to 2.95 a token, tuned exactly 0.5 less."""
    base = [(f"h-{i:02d}", 20.0 + i / 2, 10) for i in range(20)]
    return {"base": base, "tuned": [(id, loss - 5, tokens) for id, loss, tokens in base]}


def metrics_rows(steps=60):
    rows = []
    for step in range(1, steps + 1):
        rows.append(
            {
                "step": step,
                "epoch": 3 * step / steps,
                "loss": 1.2 + 1.6 * 0.95**step + 0.15 * ((step * 7919) % 13 / 13 - 0.5),
                "learning_rate": 2e-4,
                "grad_norm": 0.7,
                "tokens": 380 * step,
                "tokens_per_second": 90.0,
                "seconds": 4.0 * step,
                "peak_rss_bytes": 3_400_000_000,
            }
        )
        if step % (steps // 3) == 0:
            rows.append({"step": step, "epoch": 3 * step / steps, "val_loss": (1.9, 1.55, 1.6)[step * 3 // steps - 1]})
    return rows


def manifest():
    return {
        "model_name": "Qwen/Qwen2.5-1.5B",
        "base_sha256": "a" * 64,
        "data_path": "/home/anna/secret/data.jsonl",
        "data_sha256": "b" * 64,
        "seed": 42,
        "machine": {"cpu": "Intel Xeon", "cores": 2, "memory": "16 GB"},
        "versions": {"znatok": "0.1.0", "torch": "2.13.0"},
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 256},
        "command": ["znatok", "train", "--data_path=/home/anna/secret dir/data.jsonl", "--output_dir", "/srv/run 1"],
        "seconds": 2880.0,
        "engine": "torch",
        "created": "2026-08-01T10:00:00Z",
    }


def pairs():
    return [
        {
            "prompt": "Какую температуру сопла и стола ставить для PLA?",
            "response": "Сопло — 180–220 °C, стол — 50–60 °C. Точную температуру подбирают по температурной башне.",
            "topic": "materials",
        },
        {"prompt": "FDM и FFF — разные технологии?", "response": "Одна и та же.\nFDM — торговая марка Stratasys."},
    ]
