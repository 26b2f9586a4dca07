"""Another field in another language: the example of docs and README, as its own page says, on a tiny model."""

import shlex

import helpers
import tiny
from znatok.files import read_json, read_jsonl

EXAMPLE = tiny.REPO / "examples" / "sourdough"


def commands():
    """Return the commands of the example's page, each as words without the program's name."""
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    block = page.split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in block.splitlines() if line.strip()]


def test_the_page_of_the_example_is_true(tmp_path):
    model = tiny.save_tiny(tmp_path / "model", max_position_embeddings=2048)  # passages are long in a tiny vocabulary
    training, examining = commands()
    assert (training[0], examining[0]) == ("train", "eval")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "sourdough").symlink_to(EXAMPLE)
    quick = ["--model_name", str(model), "--max_steps", "2", "--threads", "1"]
    done = helpers.script("znatok", *training, *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = helpers.script("znatok", *examining, "--limit", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "sourdough" / "eval"
    rows = read_jsonl(folder / "items.jsonl")
    arms = {row["arm"] for row in rows if row["kind"] == "open"}
    assert arms == {"base", "prompted", "base+retrieval", "tuned", "tuned+retrieval"}
    assert {row["split"] for row in rows} >= {"T1", "T2", "T4"}
    claims = {claim["key"] for claim in read_json(folder / "proof.json")["claims"]}
    assert {"P1", "P2", "P3", "P5 choices"} <= claims
