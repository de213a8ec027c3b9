"""Launches: limits, kernels that begin early, the order of blocks, what was executed."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import executor, kernels

HEAD = ".version 8.8\n.target sm_90a\n.address_size 64\n"


def test_sizes() -> None:
    """Each thread of a grid of three dimensions says who it is."""
    body = """mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z;
mov.u32 %r4, %tid.y; mov.u32 %r5, %tid.z; mov.u32 %r6, %nctaid.x; mov.u32 %r7, %nctaid.y;
mad.lo.u32 %r8, %r3, %r7, %r2; mad.lo.u32 %r8, %r8, %r6, %r1;
mov.u32 %r9, %ntid.x; mov.u32 %r10, %ntid.y; mov.u32 %r11, %ntid.z;
mad.lo.u32 %r12, %r5, %r10, %r4; mad.lo.u32 %r12, %r12, %r9, %r0;
mul.lo.u32 %r13, %r9, %r10; mul.lo.u32 %r13, %r13, %r11; mad.lo.u32 %r14, %r8, %r13, %r12;
mul.wide.u32 %rd5, %r14, 4; add.s64 %rd5, %rd5, %rd1; st.global.b32 [%rd5], %r14;"""
    out: np.ndarray = np.zeros(2 * 3 * 4 * 5 * 6 * 2, np.uint32)
    for seed in (0, 1, 7):
        out[:] = 0
        with executor.settings(seed=seed, races=True):
            kernels.run(body, out, grid=(2, 3, 4), block=(5, 6, 2))
        np.testing.assert_array_equal(out, np.arange(out.size))


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"block": (1025,)}, "blocks of 1025 threads"),
        ({"block": (1, 1, 65)}, "blocks of 65 threads"),
        ({"grid": (1, 65536)}, "a grid of 1 x 65536 x 1"),
        ({"grid": (0,)}, "a grid of 0 x 1 x 1"),
        ({"shared": 300 << 10}, "307200 bytes of shared memory; a block has 232448"),
    ],
)
def test_limits_of_the_architecture(launch: dict, message: str) -> None:
    with pytest.raises(executor.Fault, match=message):
        kernels.run("mov.u32 %r1, 0;", np.zeros(1), **launch)


def test_limits_of_a_kernel() -> None:
    executor.load("limits.ptx", HEAD + ".entry few()\n.maxntid 64, 1, 1\n{ ret; }\n")
    executor.load("limits.ptx", HEAD + ".entry exact()\n.reqntid 32\n{ ret; }\n")
    with pytest.raises(executor.Fault, match="blocks of 96 threads; it takes up to 64"):
        executor.launch("few", block=(96,))
    with pytest.raises(executor.Fault, match="reqntid"):
        executor.launch("exact", block=(16,))
    executor.launch("exact", block=(32,))


def test_a_newer_architecture_than_the_device_has() -> None:
    with (
        executor.settings(capability=80),
        pytest.raises(
            executor.Fault, match="compiled for sm_90; the device has a capability of 80"
        ),
    ):
        kernels.run("mov.u32 %r1, 0;", np.zeros(1))


def test_no_kernel() -> None:
    with pytest.raises(executor.Fault, match="no kernel nothing was loaded"):
        executor.launch("nothing")


PRODUCER = """mov.u32 %r1, %ctaid.x; griddepcontrol.launch_dependents;
mul.wide.u32 %rd5, %r1, 4; add.s64 %rd5, %rd5, %rd1; add.u32 %r2, %r1, 100;
st.global.b32 [%rd5], %r2;"""
CONSUMER = """mov.u32 %r1, %ctaid.x; {wait}
mul.wide.u32 %rd5, %r1, 4; add.s64 %rd6, %rd5, %rd1; add.s64 %rd7, %rd5, %rd2;
ld.global.b32 %r2, [%rd6]; st.global.b32 [%rd7], %r2; griddepcontrol.launch_dependents;"""


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_dependent_kernels_begin_early(overlap: bool, waits: bool) -> None:
    """Whoever does not wait for the kernel before sees that it has not written yet."""
    blocks = 8
    middle, out = np.zeros(blocks, np.uint32), np.zeros(blocks, np.uint32)
    first = kernels.load(PRODUCER, 1)
    second = kernels.load(CONSUMER.format(wait="griddepcontrol.wait;" if waits else ""), 2)
    with executor.settings(overlap=overlap), executor.watched(middle, out):
        executor.launch(first, middle, grid=(blocks,), block=(1,), wait=False)
        executor.launch(second, middle, out, grid=(blocks,), block=(1,), dependent=True)
    expected = np.arange(blocks) + 100
    np.testing.assert_array_equal(middle, expected)
    if waits or not overlap:
        np.testing.assert_array_equal(out, expected)
    else:
        assert (out == 0).all()


def test_what_was_executed_is_counted() -> None:
    text = f"""{HEAD}
.shared .align 16 .b8 tile[4096];
.entry counted(.param .u64 p)
{{ .reg .pred %p<2>; .reg .b32 %r<8>;
mov.u32 %r1, %tid.x; mov.u32 %r2, tile; mad.lo.u32 %r3, %r1, 128, %r2;
mad.lo.u32 %r4, %r1, 4, %r2;
st.shared.b32 [%r4], %r1;
setp.lt.u32 %p1, %r1, 8; @!%p1 bra END;
st.shared.b32 [%r3], %r1;
END: ret; }}
.section .debug_str
{{
$L__info_string0:
.b8 104,105,0
}}
"""
    executor.load("counted.ptx", text)
    executor.forget_counts()
    with executor.settings(banks=True):
        executor.launch("counted", np.zeros(1), grid=(3,))
    rows = [row for row in executor.counts() if row.kernel == "counted"]
    stores = [row for row in rows if row.opcode == "st.shared.b32"]
    assert [(row.warps, row.lanes) for row in stores] == [(3, 96), (3, 24)]
    # All lanes in one pass, then eight lanes of one bank.
    assert [(row.passes, row.least_passes) for row in stores] == [(3, 3), (24, 3)]
    kinds = executor.by_kind(rows)
    assert kinds["shared memory"] == 6
    assert kinds["predicates"] == 3


def test_inlined_functions_have_names() -> None:
    text = f"""{HEAD}
.file 1 "some.cuh"
.entry inlined()
{{ .reg .b32 %r<8>;
.loc 1 5 3
mov.u32 %r1, 1;
.loc 1 77 3, function_name $L__info_string0, inlined_at 1 5 3
add.u32 %r1, %r1, 1;
ret; }}
.section .debug_str
{{
$L__info_string0:
.b8 104,101,108,112
.b8 101,114,0
}}
"""
    executor.load("inlined.ptx", text)
    executor.forget_counts()
    executor.launch("inlined")
    regions = {
        r.opcode: (r.regions, r.source_line) for r in executor.counts() if r.kernel == "inlined"
    }
    assert regions["mov.u32"] == ((), 5)
    assert regions["add.u32"] == (("helper",), 77)
