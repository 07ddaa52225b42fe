"""The `executorch` runtime: results, sizes, what it says of itself. The oracle's integers."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import phones
import pytest
import torch
from torch import nn

import octavo
from octavo.errors import RuntimeUnavailable

pytest.importorskip("executorch", reason="executorch is not installed")
pytestmark = pytest.mark.sweep  # a program takes seconds to make


@pytest.fixture(scope="module")
def q():
    return phones.for_phones(phones.image_net(), phones.IMAGES)


@pytest.fixture(scope="module")
def lowered(q):
    return q.lower("executorch")


def test_every_integer_is_the_oracles(q, lowered):
    x = phones.IMAGES[:2]
    scale = q.graph.by_name["10.quantized"].args[1]
    steps = (lowered(x) - q.lower("reference")(x)) / scale
    assert steps.abs().max() < 0.01


def test_layer_by_layer(q):
    found = octavo.verify(q, [phones.IMAGES[:2]], runtimes=["executorch"]).runtimes[0]
    assert found.passed, found
    names = {layer.layer.removesuffix(".dequantized") for layer in found.layers}
    assert {"2", "4.relu", "4.relu_1", "5", "7", "8", "10"} <= names
    assert max(layer.unequal for layer in found.layers) <= 1e-3
    assert max(layer.steps or 0 for layer in found.layers) <= 1


def test_all_of_a_network_runs_on_integers_in_one_delegate(q, lowered):
    summary = octavo.summary(lowered)
    assert summary.headline.startswith("100 % of the multiply-adds in int8")
    assert "outside of XNNPACK" not in str(summary)


def test_other_sizes_get_programs_of_their_own(q, lowered):
    oracle = q.lower("reference")
    for batch in (1, 3, 1):
        x = phones.IMAGES[:batch]
        torch.testing.assert_close(lowered(x), oracle(x), atol=1e-4, rtol=0)


def test_calls_from_threads_get_their_own_results(q, lowered):
    inputs = [phones.IMAGES[i : i + 2] for i in range(8)]
    expected = [lowered(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lowered, inputs), expected, strict=True):
            assert torch.equal(got, want)


def test_what_stays_outside_is_told_with_the_reason():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1)).eval()
    lowered = phones.for_phones(net, phones.IMAGES).lower("executorch")
    assert (
        "outside of XNNPACK, by ExecuTorch's portable kernels: 1 upsample_nearest2d (XNNPACK has "
        "no such operator)"
    ) in str(octavo.summary(lowered))


def test_threads_are_no_option_of_it(q):
    with pytest.raises(RuntimeUnavailable, match="no option 'threads'"):
        q.lower("executorch", threads=1)


def test_a_method_keeps_the_memory_of_its_program(q):
    from octavo.runtimes.executorch.export import program_of
    from octavo.runtimes.executorch.package import method_of

    x = phones.IMAGES[:1]
    data = bytearray(program_of(q.graph, [x]).data)
    execute = method_of(bytes(data))
    gc.collect()
    junk = [bytes(len(data)) for _ in range(64)]  # where the program was, if it is gone
    torch.testing.assert_close(execute([x])[0], q.lower("reference")(x), atol=1e-4, rtol=0)
    assert len(junk) == 64
