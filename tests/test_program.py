"""What is read out of a compiled program: kernels by kind, their bytes, planned memory."""

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.analysis.program import bytes_of, kernels, planned_bytes

PROGRAM = """HloModule jit_call, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%body (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %inner = f32[4,8]{1,0} fusion(%p), kind=kLoop, calls=%other
}

ENTRY %main.1 (x: f32[4,8], k: bf16[3,3]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %k = bf16[3,3]{1,0} parameter(1)
  %cudnn-conv.2 = (f32[4,8]{1,0}, u8[100]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convForward"
  %part = f32[4,8]{1,0} get-tuple-element(%cudnn-conv.2), index=0
  %named = f32[32]{0} bitcast(%part)
  %loop = f32[4,8]{1,0} while(%part), condition=%c, body=%body
  ROOT %wrapped = f32[4,8]{1,0} fusion(%part, %loop), kind=kLoop, calls=%other
}
"""


def test_kernels_and_their_bytes_are_those_of_the_entry_computation():
    found = kernels(PROGRAM)
    array, kernel = 4 * 8 * 4, 3 * 3 * 2
    assert found.kinds == {"convolutions": 1, "copies": 0, "reductions": 0, "others": 1} and found.count == 2
    assert found.bytes == (array + kernel + array + 100) + (array + array + array)


@pytest.mark.parametrize(
    ("name", "operation", "kind"),
    [
        ("cudnn-conv-bw-filter.3", "custom-call", "convolutions"),
        ("loop_convert_fusion.1", "fusion", "others"),
        ("copy.7", "copy", "copies"),
        ("input_convert_transpose_fusion", "fusion", "copies"),
        ("input_convert_reduce_fusion.12", "fusion", "reductions"),
    ],
)
def test_a_kernel_is_of_one_kind(name, operation, kind):
    found = kernels(PROGRAM.replace("%wrapped = f32[4,8]{1,0} fusion", f"%{name} = f32[4,8]{{1,0}} {operation}"))
    before = {"convolutions": 1, "copies": 0, "reductions": 0, "others": 0}
    assert found.kinds == before | {kind: before[kind] + 1}


@pytest.mark.parametrize(
    "shape, expected",
    [("f32[]", 4), ("bf16[2,3]{1,0}", 12), ("(s8[16]{0}, (f32[2]{0}, pred[3]{0}))", 27), ("token[]", 0)],
)
def test_bytes_of_a_shape(shape, expected):
    assert bytes_of(shape) == expected


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        kernels("HloModule empty")


def test_planned_memory_counts_a_result_in_its_arguments_place_once():
    matrix = jax.ShapeDtypeStruct((512, 512), jnp.float32)

    def planned(*donated):
        return planned_bytes(jax.jit(jnp.add, donate_argnums=donated).lower(matrix, matrix).compile())

    assert planned() == pytest.approx(3 * 2**20, abs=100)
    assert planned(0) == pytest.approx(2 * 2**20, abs=100)


def test_planned_memory_counts_temporary_buffers():
    long = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    planned = planned_bytes(jax.jit(lambda x: jnp.sort(x)[::-1][:5]).lower(long).compile())
    assert planned > 1.9 * long.size * 4
