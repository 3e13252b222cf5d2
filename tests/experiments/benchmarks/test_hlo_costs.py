"""What programs cost, read from a small one written by hand."""

import pytest

from experiments.benchmarks.hlo_costs import (
    BANDWIDTH,
    CLOCK,
    all_reduces,
    convolutions,
    operations,
)

HLO = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/jaxdet/ops/matching.py"
2 "/usr/lib/python3/jax/numpy.py"
3 "/home/me/jaxdet/detectors/ssd.py"

FunctionNames
1 "loss"
2 "match"
3 "argmax"

FileLocations
1 {file_name_id=3 function_name_id=1 line=20 end_line=21 column=4 end_column=8}
2 {file_name_id=1 function_name_id=2 line=70 end_line=70 column=4 end_column=8}
3 {file_name_id=2 function_name_id=3 line=900 end_line=900 column=4 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%fused_gather (p.0: f32[50,200], p.1: s32[10]) -> f32[10,200] {
  %p.0 = f32[50,200]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[10]{0:T(128)} parameter(1)
  ROOT %gather.0 = f32[10,200]{1,0:T(8,128)} gather(%p.0, %p.1), slice_sizes={1,200}
}

%fused_scatter (p.2: bf16[50,100], p.3: s32[10], p.4: bf16[10,100]) -> bf16[50,100] {
  %p.2 = bf16[50,100]{1,0:T(8,128)(2,1)} parameter(0)
  %p.3 = s32[10]{0:T(128)} parameter(1)
  %p.4 = bf16[10,100]{1,0:T(8,128)(2,1)} parameter(2)
  ROOT %s.0 = bf16[50,100]{1,0} scatter(%p.2, %p.3, %p.4), update_window_dims={1}
}

%body (state.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state.1 = (s32[], f32[4]{0:T(128)}) parameter(0)
  %sum = f32[5,2]{1,0} all-reduce(%state.1), to_apply=%add
  %product = f32[4]{0} convolution(%state.1), {"estimated_cycles":"1500"}
  %inner = (s32[], f32[4]{0:T(128)}) while(%product), condition=%test, \
body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %tuple.1 = (s32[], f32[4]{0:T(128)}) tuple(%product, %inner)
}

%inner_body (state.2: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state.2 = (s32[], f32[4]{0:T(128)}) parameter(0)
  ROOT %copy.1 = f32[4]{0} copy(%state.2), {"estimated_cycles":"100"}
}

%below_7 (state.4: (s32[], f32[4])) -> pred[] {
  %state.4 = (s32[], f32[4]{0:T(128)}) parameter(0)
  %constant.7 = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%state.4), index=0
  ROOT %less.7 = pred[]{:T(512)} compare(%i, %constant.7), direction=LT
}

%branch (state.3: f32[4]) -> f32[4] {
  ROOT %sort.1 = f32[4]{0} sort(%state.3), dimensions={0}, to_apply=%less
}

ENTRY %main (x.1: f32[50,200], i.1: s32[10], u.1: bf16[10,100]) -> f32[10,200] {
  %x.1 = f32[50,200]{1,0:T(8,128)} parameter(0)
  %index = s32[10]{0:T(128)} fusion(%x.1), kind=kLoop, calls=%fused_none, \
metadata={op_name="jit(step)/argmax" stack_frame_id=3}, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
  %rows = f32[10,200]{1,0} fusion(%x.1, %index), kind=kCustom, calls=%fused_gather, \
metadata={op_name="jit(step)/gather" stack_frame_id=1}
  %sums = bf16[50,100]{1,0} fusion(%x.1, %index), kind=kCustom, calls=%fused_scatter
  %both = (bf16[50,100]{1,0:T(8,128)(2,1)}, bf16[3]{0}) all-reduce-start(%x.1)
  %copy-start = (f32[4]{0:T(128)}, u32[]{:S(2)}) copy-start(%x.1)
  %loop = (s32[], f32[4]{0:T(128)}) while(%rows), condition=%test, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %endless = (s32[], f32[4]) while(%rows), condition=%test, body=%inner_body
  %counted = (s32[], f32[4]) while(%rows), condition=%below_7, body=%inner_body
  ROOT %either = f32[4]{0} conditional(%loop, %x.1), branch_computations={%branch}
}

%fused_none (p.5: f32[50,200]) -> s32[10] {
  ROOT %compare.1 = s32[10]{0:T(128)} compare(%p.5, %p.5), direction=LT
}
"""


def test_each_operation_with_its_repetitions():
    found = [(x.name, x.group, x.trips, x.seconds * CLOCK) for x in operations(HLO)]
    assert found == [
        ("index", "matching", 1, pytest.approx(3000)),
        ("rows", "other", 1, 0),
        ("sums", "other", 1, 0),
        ("sum", "other", 3, 0),
        ("product", "convolutions", 3, pytest.approx(3 * 1500)),
        ("copy.1", "copies and layouts", 15, pytest.approx(15 * 100)),
        ("copy.1", "copies and layouts", 1, pytest.approx(100)),
        ("copy.1", "copies and layouts", 7, pytest.approx(7 * 100)),
        ("sort.1", "sorts and top-k", 1, 0),
    ]


def test_loops_that_data_ends_count_as_often_as_they_may_run():
    line = "%endless = (s32[], f32[4]) while(%rows), condition=%test, body=%inner_body"
    text = HLO.replace(line, line + ', metadata={op_name="while" stack_frame_id=3}')
    for file, rounds in (("matching", 1), ("chunks", 8)):
        found = operations(text.replace("ops/matching", f"ops/{file}"))
        assert found[6].name == "copy.1" and found[6].trips == rounds


def test_rows_are_whole_tiles():
    moved = {x.name: x.row_seconds * BANDWIDTH for x in operations(HLO)}
    # 200 numbers lie in two tiles of 8 rows: 9 are moved. Scatters also write 8 back.
    assert moved["rows"] == pytest.approx(10 * 256 * 4 * 9)
    assert moved["sums"] == pytest.approx(10 * 128 * 2 * 17)
    assert moved["index"] == moved["product"] == 0


def test_sums_over_devices():
    assert all_reduces(HLO) == [("bf16", 2 * 5003), ("f32", 4 * 10)]


def test_places_are_those_of_our_own_code():
    match, rows, sums, *_ = operations(HLO)
    assert match.place == "jaxdet/ops/matching.py:70 match"
    assert rows.place == "jaxdet/detectors/ssd.py:20 loss"
    assert sums.place == ""


def test_convolutions_of_a_gpu():
    call = ' custom-call(%a, %b), custom_call_target="__cudnn$'
    lines = [f'%x.{n} = f32[8]{call}convForward"' for n in range(2)]
    lines += [f'%y = f32[8]{call}convBackwardFilter"', f'%z = f32[8]{call}fmha"']
    lines += ["%w = f32[8] convolution(%x.0, %y), dim_labels=b01f_01io->b01f"]
    expected = {"convForward": 2, "convBackwardFilter": 1, "convolution": 1}
    assert convolutions("\n".join(lines)) == expected
