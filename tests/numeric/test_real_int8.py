"""int8 on real weights: SmolLM2-135M-Instruct from the catalogue, and a batch of the project's own pairs.

So small a model is the hardest case there is: its gradients keep 0.981 to 0.988 of their direction, about what the
guard asks for, so some batches pass as they are and some with half of the projections in float.
"""

import pytest

import helpers
import packs
import tiny
from znatok.fast.guard import COSINE_LIMIT, GROUPS, LOSS_LIMIT, judge
from znatok.fast.product import INT_MM
from znatok.model import load
from znatok.model.quantised import float_reader
from znatok.model.score import head_weight
from znatok.tokens.packing import pack
from znatok.train.prepare import prepare

pytestmark = [
    pytest.mark.real("smollm2-135m-instruct"),
    pytest.mark.filterwarnings(packs.QUIET),
    pytest.mark.skipif(not INT_MM.exact(), reason="this processor's int8 product is not exact"),
]


def test_int8_earns_its_place_on_a_real_model(tmp_path, monkeypatch):
    lines = (tiny.REPO / "data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_text("".join(sorted(lines, key=len)[:16]), encoding="utf-8")
    able = {**load.machine_capabilities(), "avx512_vnni": True}  # fast or not, here it must be right
    monkeypatch.setattr(load, "machine_capabilities", lambda: able)
    config = helpers.settings("smollm2-135m-instruct", tmp_path / "data.jsonl", tmp_path / "run", dtype="int8")
    ready = prepare(config, {"name": "int8", "float_groups": []})
    computation, read = ready.engine.computation, float_reader(ready.loaded.source, ready.loaded.dtype)
    batch = pack(ready.train[:1])
    _chosen, verdict = judge(computation.backbone, batch, (computation.head, head_weight(ready.model)), read)
    assert verdict.passed
    assert abs(verdict.difference) <= LOSS_LIMIT
    assert verdict.cosine >= COSINE_LIMIT
    assert verdict.worst[0] > 0.9
    assert len(verdict.floats) <= len(computation.backbone.layers) * len(GROUPS) // 2
