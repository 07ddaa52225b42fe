"""Variants: what they run, how they are told apart, and their programs for known sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import octavo
from octavo.errors import RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.runtimes import RUNTIMES, Lowered, Options, Runtime
from octavo.runtimes.tuning import Variant, lower_variant

CPU = torch.device("cpu")
ONE = ((2, 3, 8, 8),)
FULL = Variant("quick", ONE, 2, frozenset({"stem"}), frozenset({"depthwise"}), False, True, False)


def test_one_is_its_json() -> None:
    assert Variant.from_dict(json.loads(json.dumps(FULL.to_dict()))) == FULL
    assert len({FULL.key, Variant("quick").key, Variant("torch").key}) == 3
    assert Variant("quick").plain
    assert not FULL.plain
    assert str(FULL) == (
        "quick, known sizes, threads=2, 1 layer in float, 1 layer in bfloat16, siblings apart, "
        "channels last, no native programs"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": 3},
        {"sizes": [["2"]]},
        {"sizes": [[-1]]},
        {"threads": True},
        {"in_float": [1]},
        {"joined": "yes"},
    ],
)
def test_what_is_none(change: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        Variant.from_dict({**FULL.to_dict(), **change})


def test_options_are_those_that_the_runtime_has(toys) -> None:
    asked = Options(threads=3, precision="float32")
    assert FULL.options(Options()) == Options(2, None, None, None, False, True, False)
    assert Variant("quick").options(asked) == asked
    assert Variant("slow").options(asked) == Options(precision="float32")


def test_what_is_asked_for_stays(toys) -> None:
    asked = Options(threads=3, precision="float32")
    assert FULL.options(asked) == Options(3, None, None, "float32", False, True, False)
    RUNTIMES["quick"] = replace(RUNTIMES["quick"], islands=False)
    assert FULL.options(Options()).precision == "bfloat16"
    assert FULL.options(asked).precision == "float32"


def test_its_own_program_has_its_sizes_and_all_others_run(graph: Graph, toys) -> None:
    shapes: list[object] = []

    def noting(graph: Graph, device: torch.device, options: Options) -> Lowered:
        shapes.append(graph.inputs[0].meta.shape)
        return Lowered(run_of(graph, device), {}, {})

    RUNTIMES["quick"] = Runtime(noting, options=("batch",))
    samples = [(torch.randn(*ONE[0]),)]
    lowered = lower_variant(graph, Variant("quick", ONE), CPU, Options(), samples)
    assert lowered.agreement is not None
    assert lowered.agreement.agrees
    assert shapes == [ONE[0]]
    for batch in (2, 5, 2, 1):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(lowered.run(x), run_of(graph)(x))
    assert shapes == [ONE[0], (None, 3, *shapes[1][2:])]  # the second one, once


def test_a_program_for_any_size_that_is_wrong_is_found(graph: Graph, toys) -> None:
    def at_others(graph: Graph, device: torch.device, options: Options) -> Lowered:
        name = "wrong" if None in graph.inputs[0].meta.shape else "slow"
        return RUNTIMES[name].lower(graph, device, options)

    RUNTIMES["quick"] = Runtime(at_others, options=("batch",))
    samples = [(torch.randn(*ONE[0]),)]
    lowered = lower_variant(graph, Variant("quick", ONE), CPU, Options(), samples)
    with pytest.raises(RuntimeUnavailable, match="computes something else"):
        lowered.run(torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("runtime", ["torch", "reference"])
@pytest.mark.parametrize("layers", [{"stem"}, {"depthwise", "left"}, {"add", "mean"}])
def test_layers_in_float_agree_with_their_oracle(
    quantized: octavo.QuantizedModel, runtime: str, layers: set[str]
) -> None:
    graph = quantized.graph
    own = {"joined": False, "channels_last": True} if runtime == "torch" else {}
    variant = Variant(runtime, in_float=frozenset(layers), **own)
    lowered = lower_variant(graph, variant, CPU, Options(), quantized.check_inputs())
    x = torch.randn(2, 3, 8, 8)
    assert len(lowered.run(x)) == 2
    assert not layers & lowered.kernels.keys()
    if runtime == "torch":
        assert lowered.agreement is not None
        assert lowered.agreement.agrees


def test_layers_run_by_torchs_kernels_where_programs_are_left_out(
    quantized: octavo.QuantizedModel,
) -> None:
    without = Variant("torch", programs=False)
    args = (CPU, Options(), quantized.check_inputs())
    lowered = lower_variant(quantized.graph, without, *args)
    assert lowered.agreement is not None
    assert lowered.agreement.agrees
    assert not [kernel for kernel in lowered.kernels.values() if kernel.startswith("native.conv")]
