"""What is read out of a compiled program's text, and the table of the record."""

import json
from pathlib import Path

import pytest
from experiment_modules import experiment_modules

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "compiled"
PROGRAM = """HloModule jit_call, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%body (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %inner = f32[4,8]{1,0} fusion(%p), kind=kLoop, calls=%other
}

ENTRY %main.1 (x: f32[4,8], k: bf16[3,3]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %k = bf16[3,3]{1,0} parameter(1)
  %conv.2 = (f32[4,8]{1,0}, u8[100]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convForward"
  %part = f32[4,8]{1,0} get-tuple-element(%conv.2), index=0
  %named = f32[32]{0} bitcast(%part)
  %loop = f32[4,8]{1,0} while(%part), condition=%c, body=%body
  ROOT %wrapped = f32[4,8]{1,0} fusion(%part, %loop), kind=kLoop, calls=%other
}
"""


@pytest.fixture(scope="module")
def modules():
    """Imports the experiment's modules by name."""
    with experiment_modules(FOLDER) as imported:
        yield imported


def test_kernels_and_their_bytes_are_those_of_the_entry_computation(modules):
    found = modules("program").kernels(PROGRAM)
    array, kernel = 4 * 8 * 4, 3 * 3 * 2
    assert found.count == 2
    assert found.bytes == (array + kernel + array + 100) + (array + array + array)


@pytest.mark.parametrize(
    "shape, expected",
    [("f32[]", 4), ("bf16[2,3]{1,0}", 12), ("(s8[16]{0}, (f32[2]{0}, pred[3]{0}))", 27), ("token[]", 0)],
)
def test_bytes_of_a_shape(modules, shape, expected):
    assert modules("program").bytes_of(shape) == expected


def test_a_text_without_an_entry_is_refused(modules):
    with pytest.raises(ValueError, match="no entry computation"):
        modules("program").kernels("HloModule empty")


def test_the_record_keeps_the_bounds_that_were_promised():
    path = FOLDER / "record.json"
    if not path.is_file():
        pytest.skip("no record yet: experiments/benchmarks/compiled/README.md says how it is made")
    record = json.loads(path.read_text())
    assert record["commit"]["dirty"] is False and "H200" in record["target"]
    planned = {
        (row["dtype"], row["remat"]): row["planned_bytes"] / 1e9
        for row in record["rows"]
        if row["net"] == "cifar_resnet1202"
    }
    assert planned["bfloat16", False] < 20 and planned["bfloat16", True] < 4 and planned["float32", True] < 4
    assert record["unrolled"]["times_scanned"] >= 10
