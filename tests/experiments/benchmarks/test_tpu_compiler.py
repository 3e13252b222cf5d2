"""The benchmark that compiles for a TPU without one."""

import json
import re
from functools import partial

import jax
import pytest

from experiments.benchmarks import hlo_costs, models, tpu_compiler
from jaxdet.config import ConfigError
from tests.experiments.benchmarks.test_models import TINY
from tests.optional import need

ROW = {
    "compile_seconds": 3.2,
    "compile_cpu_seconds": 5.8,
    "largest_batch": 12,
    "peak": 2**31,
    "temporaries": 2**30,
    "flops": 197e9,
    "bytes": 8.19e9,
    "all_reduces": [("f32", 2**20)],
    "groups": {name: [2, 0.004, 0.001] for name in hlo_costs.GROUPS},
    "heaviest": [
        dict(
            name="fusion", seconds=0.002, row_seconds=0.001, trips=16, place="a.py:1 f"
        )
    ],
}


def test_rows_are_compiled_once(monkeypatch, tmp_path):
    compiled = []

    def compile_row(function, case, devices, target):
        compiled.append(str(case))
        return ROW if len(compiled) == 1 else {"error": "out of memory"}

    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tpu_compiler.importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(tpu_compiler, "in_a_process", compile_row)
    call = partial(tpu_compiler.main, detectors=("ssd",), output=tmp_path / "tpu")
    call(tasks=("train",))
    lines = (tmp_path / "tpu.md").read_text().splitlines()
    times = "3 (6) | 2.00 | 1.00 | 12 | 0.197 | 8.19 | 1 / 10 | 32 + 8 | 2"
    assert lines[2] == f"| SSD, train, bfloat16, 300x300, batch 8 | {times} |"
    assert lines[-1] == "| 3 | 16 | fusion | a.py:1 f |"
    assert any(line.endswith("sums over devices: f32 1 MiB.") for line in lines)
    call()
    assert [x.split(", ")[1] for x in compiled] == ["train", "predict"]
    assert "out of memory" in (tmp_path / "tpu.md").read_text()
    assert len(json.loads((tmp_path / "tpu.json").read_text())["rows"]) == 2
    monkeypatch.setattr(tpu_compiler.importlib.metadata, "version", lambda name: "2")
    call(tasks=("train",))
    assert len(compiled) == 3 and compiled[0] == compiled[2]


def test_small_functions_take_their_arguments():
    for program in tpu_compiler.small_functions().values():
        assert jax.make_jaxpr(program.function)(*program.arguments).out_avals


def test_an_h100_tells_less(monkeypatch, tmp_path):
    known = ("compile_seconds", "compile_cpu_seconds", "peak", "temporaries")
    row = {name: ROW[name] for name in (*known, "largest_batch")}
    row["convolutions"] = {"convForward": 2}
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tpu_compiler.importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(tpu_compiler, "in_a_process", lambda *arguments: row)
    tpu_compiler.main(
        detectors=("ssd",), tasks=("train",), target="h100", output=tmp_path / "gpu"
    )
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    name = "SSD, train, bfloat16, 300x300, batch 8, h100"
    assert lines[2].startswith(f"| {name} | 3 (6) | 2.00 | 1.00 | 12 | ")
    assert lines[-1] == f"{name}: convolutions: 2 convForward."
    with pytest.raises(ConfigError, match="devices is 2"):
        tpu_compiler.main(target="h100", devices=2)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "jax\[tpu\]"'):
        tpu_compiler.main()


@pytest.mark.parametrize("key", ["largest_batch", "all_reduces", "rows"])
def test_rows_of_an_older_form(monkeypatch, tmp_path, key):
    row = {name: value for name, value in ROW.items() if name != key}
    text = json.dumps({"rows": {"SSD": row}} if key != "rows" else [row])
    (tmp_path / "tpu.json").write_text(text)
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=r"tpu\.json is not of this form"):
        tpu_compiler.main(output=tmp_path / "tpu")


def _step_for_tpu(name: str) -> dict:
    detector = models.MODELS[name]._replace(**TINY[name]).detector("bfloat16")
    batch = jax.eval_shape(partial(models.random_batch, 1, (64, 64), 5, 4))
    program = tpu_compiler.of_detector(detector, batch, "train", 4)
    return {"text": tpu_compiler.compile_for(program).as_text()}


@pytest.mark.slow
@pytest.mark.optional
@pytest.mark.parametrize("name", ["faster_rcnn", "detr", "deformable_detr"])
def test_a_step_stays_on_its_tpus(name):
    need("libtpu", '"jax[tpu]"')
    text = tpu_compiler.in_a_process(_step_for_tpu, name)["text"]
    assert " convolution(" in text and " while(" in text
    forbidden = "infeed|outfeed|send|recv|conditional"
    assert not re.findall(rf" (?:{forbidden})\(.*", text)
    assert "Host" not in text and "f64[" not in text
    assert {dtype for dtype, _ in hlo_costs.all_reduces(text)} == {"f32"}
