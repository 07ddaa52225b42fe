"""Programs: one call for several operations, for any sizes, from several threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.numerics.native import library
from octavo.numerics.octavo_operators import dequantize, quantize
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations, program
from octavo.runtimes.native.convolution import Convolution, Epilogue, Geometry
from octavo.runtimes.native.operations import Combination
from octavo.runtimes.native.planning import CHANNELS_LAST, Planner
from octavo.runtimes.native.program import Arenas, Line, Program

pytestmark = pytest.mark.skipif(library.library() is None, reason="make native")

X, Y = (Integers(0.05, 120, 0, 255, torch.uint8), Integers(0.2, 100, 0, 255, torch.uint8))


def layer() -> operations.Layer:
    weight = torch.randint(-127, 128, (8, 3, 3, 8), dtype=torch.int8)
    epilogue = Epilogue(
        torch.full((8,), 0.001), torch.randn(8), out_scale=Y.scale, out_zero_point=Y.zero_point
    )
    geometry = Geometry(8, 8, (3, 3), padding=(1, 1, 1, 1))
    return operations.Layer(Convolution.of(geometry, weight, X.zero_point, epilogue))


def residual(results: tuple[str, ...] = ("sum",)) -> Program:
    """x -> round -> two layers, whose results are added."""
    lines = (
        Line("q", operations.Quantize(X), ("x",)),
        Line("a", layer(), ("q",)),
        Line("b", layer(), ("q",)),
        Line("sum", operations.Binary(Combination.ADD, Y, Y, Y), ("a", "b")),
    )
    return Program(lines, ("x",), results)


def test_results_are_those_of_its_parts():
    whole, x = residual(("q", "a", "sum")), torch.randn(2, 8, 9, 7)
    q, a, total = whole(x)
    assert torch.equal(q, quantize(x, X.scale, X.zero_point, 0, 255, torch.uint8))
    alone = [Program.of(line.operation, len(line.reads)) for line in whole.lines]
    assert torch.equal(a, alone[1](q))
    assert torch.equal(total, alone[3](a, alone[2](q)))


def test_a_result_is_not_touched_by_the_next_call():
    whole, x = residual(), torch.randn(2, 8, 9, 7)
    first = whole(x)
    kept = first.clone()
    whole(-x)
    assert torch.equal(first, kept)


def test_results_made_in_inference_mode_can_be_trained_on():
    """Else a model copies them behind the call, by torch's own threads, which then stand in the way
    of the next one's.
    """
    with torch.inference_mode():
        result = residual()(torch.randn(2, 8, 9, 7))
    assert not result.is_inference()


def test_the_imaginary_part_of_a_conjugate_is_negated():
    """Memory holds the values that torch has yet to negate."""
    whole, z = residual(), torch.randn(2, 8, 9, 7, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    assert torch.equal(whole(x), whole(x.clone()))


def test_sizes_and_orders_may_differ_from_call_to_call():
    whole = residual()
    for size in ((1, 8, 5, 5), (3, 8, 4, 9), (0, 8, 4, 9), (1, 8, 1, 1)):
        x = torch.randn(size)
        result = whole(x)
        assert result.shape == size
        assert torch.equal(result, whole(x.contiguous(memory_format=torch.channels_last)))
        assert torch.equal(result, whole(torch.randn(2 * len(x), *size[1:])[::2].copy_(x)))


@pytest.mark.parametrize(("sizes", "order", "found"), [
    ((1, 3, 4, 5), CHANNELS_LAST, CHANNELS_LAST),
    ((2, 3, 4, 5), CHANNELS_LAST, CHANNELS_LAST),
    ((1, 3, 4, 1), CHANNELS_LAST, (0, 3, 2, 1)),
    ((1, 3, 1, 5), CHANNELS_LAST, CHANNELS_LAST),
    ((2, 3, 1, 1), CHANNELS_LAST, (0, 1, 2, 3)),
])  # fmt: skip
def test_axes_of_one_value_stand_in_front_where_counting_does_not_do(sizes, order, found):
    """Kernels take the last axis at once; of one image it had a single value."""
    assert Planner(threads=1).new(sizes, torch.uint8, order).order == found


def test_values_of_another_device_are_refused():
    """Their addresses ended the process."""
    with pytest.raises(RuntimeError, match="an input is on meta: give it"):
        residual()(torch.empty(1, 3, 9, 9, device="meta"))


def test_plans_are_kept_for_the_last_sizes():
    whole = residual()
    for batch in range(1, 12):
        whole(torch.randn(batch, 8, 4, 4))
    assert len(whole._plans) == program.MOST_PLANS
    before = whole._plans
    whole(torch.randn(11, 8, 4, 4))
    assert whole._plans is before


def test_several_threads_call_one_program():
    whole = residual()
    inputs = [torch.randn(1 + index % 3, 8, 9, 9) for index in range(12)]
    wanted = [whole(x) for x in inputs]
    found: list[Tensor | None] = [None] * len(inputs)

    def call(index: int) -> None:
        for _ in range(5):
            found[index] = whole(inputs[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_more_threads_give_the_same():
    whole, x = residual(), torch.randn(3, 8, 17, 9)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(whole(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


NOTHING_TO_DO = """
import ctypes, torch
from octavo.numerics.native.library import library
from octavo.runtimes.native.planning import Planner
from test_program import Y, operations

planner = Planner(threads=3)
x = torch.arange(256, dtype=torch.uint8)
value = planner.given(x)
first, second = (operations.Dequantize(Y).plan(planner, value) for _ in range(2))
plan = planner.finished([first, second])
made = [torch.full((256,), -1.0) for _ in plan.made]
addresses = [0, *(tensor.data_ptr() for tensor in (x, *made))]
plan.steps[0].chunks = 0
bases = (ctypes.c_void_p * len(addresses))(*addresses)
assert library().octavo_run(plan.steps, ctypes.c_int64(2), bases, 3) == 0
assert (made[0] == -1).all() and torch.equal(made[1], (x.float() - 100) * Y.scale)
"""


def test_a_step_without_chunks_is_passed_over():
    """Once nobody was left to say that it is done, and all threads waited for that."""
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, folder])}
    words = [sys.executable, "-c", NOTHING_TO_DO]
    subprocess.run(words, env=environment, check=True, timeout=100)


def test_a_view_of_what_is_given_is_a_view():
    look = operations.Look(torch.ops.aten.permute.default, ([0, 2, 3, 1],))
    storage = torch.randint(0, 255, (3, 4, 5, 6), dtype=torch.uint8)
    x = storage[1:]
    result = Program.of(look, 1)(x)
    assert torch.equal(result, x.permute(0, 2, 3, 1))
    assert result.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr()


def test_large_memory_is_not_kept():
    arenas = Arenas()
    arenas.give_back(torch.empty(program.KEPT_BYTES + 1, dtype=torch.uint8))
    assert arenas.take(8).numel() == 8
    arenas.give_back(torch.empty(100, dtype=torch.uint8))
    assert arenas.take(8).numel() == 100


def test_an_input_of_other_channels_is_refused():
    with pytest.raises(RuntimeError, match="7 channels"):
        residual()(torch.randn(1, 7, 4, 4))


def test_memory_of_values_that_live_at_once_does_not_overlap():
    """Of a chain of layers the arena holds two neighbours, not all."""
    lines = [Line("0", operations.Quantize(X), ("x",))]
    lines += [Line(str(n + 1), layer(), (str(n),)) for n in range(10)]
    whole = Program(tuple(lines), ("x",), ("10",))
    x = torch.randn(4, 8, 32, 32)
    result = whole(x)
    (plan,) = whole._plans.values()
    assert plan.arena < 3 * x.numel() + 2**18
    value = dequantize(quantize(x, X.scale, X.zero_point, 0, 255, torch.uint8), 1.0, 0)
    value = value.to(torch.uint8)
    for line in lines[1:]:
        value = Program.of(line.operation, 1)(value)
    assert torch.equal(value, result)
