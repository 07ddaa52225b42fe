"""Every layer, quantized in every way, on every runtime that is known: the oracle's, within a step.

A runtime is held by this once it stands in `RUNTIMES`, a kernel of the ``torch`` runtime once it
stands in `KERNELS`, a layer once it is a case of `test_every_layer`.
"""

from __future__ import annotations

from dataclasses import replace

import contract
import pytest

from octavo.errors import MissingExtra, OctavoError, RuntimeUnavailable
from octavo.measuring.parity import Threshold
from octavo.runtimes import ORACLE, RUNTIMES, is_for
from octavo.runtimes.torch import kernels
from octavo.runtimes.torch.int8 import lower_to

CASES = [(way, name) for way, names in contract.NAMES.items() for name in names]


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """What Inductor makes of the kernels takes minutes, and is test_inductor's."""
    monkeypatch.setattr("octavo.runtimes.inductor._compiled", lambda run: run)


@pytest.mark.parametrize(("way", "name"), CASES)
@pytest.mark.parametrize(
    "runtime", [n for n in RUNTIMES if n != ORACLE and is_for(n, contract.TARGET)]
)
def test_every_layer_is_the_oracles(runtime, way, name):
    if (runtime, way, name) in contract.FATAL:
        pytest.skip("it ends the process on a CPU of this kind")
    if (runtime, way, name) in contract.WRONG:
        pytest.skip("it is wrong about it, which lowering finds out")
    try:
        layers = contract.layers_of(runtime, way, name)
    except MissingExtra as error:
        pytest.skip(str(error))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))  # no C++ compiler, say
    assert layers
    assert [layer for layer in layers if not layer.within(Threshold())] == []


@pytest.mark.parametrize(("way", "name"), CASES)
def test_every_layer_is_the_oracles_in_a_package(way, name):
    """The kernels that a compiled library calls, called here."""
    cuts = contract.contract(way).of(name)
    layers = contract._compared_layers(cuts, lower_to(cuts.graph, "package").run)
    assert [layer for layer in layers if not layer.within(Threshold())] == []


def test_every_kernel_has_a_case(monkeypatch):
    met = set()

    def noting(kernel):
        def call(context, chain):
            met.add((kernel.operators, kernel.reads))
            return kernel.call(context, chain)

        return replace(kernel, call=call)

    monkeypatch.setattr(kernels, "KERNELS", list(map(noting, kernels.KERNELS)))
    for way in contract.WAYS:
        for caller in ("python", "compiler"):
            lower_to(contract.contract(way).model.graph, caller)
    known = {(kernel.operators, kernel.reads) for kernel in kernels.KERNELS}
    assert met == known, "give the operator a case in test_every_layer, next to the others"


def test_a_wrong_layer_is_found(monkeypatch):
    """A runtime that multiplies the third case's results by 1.1 is held by no other case."""

    def lower(graph, device, options):
        wrong = RUNTIMES[ORACLE].lower(graph, device, options)
        layers = contract.contract("static").of(*contract.NAMES["static"]).layers
        name = contract.NAMES["static"][2].replace(" ", "_")

        def run(*tensors):
            results = wrong.run(*tensors)
            own = [layer.startswith(f"cases.{name}.") for layer in layers]
            return tuple(r * 1.1 if o else r for r, o in zip(results, own, strict=True))

        return replace(wrong, run=run)

    monkeypatch.setitem(RUNTIMES, "wrong", replace(RUNTIMES[ORACLE], lower=lower))
    for index, name in enumerate(contract.NAMES["static"]):
        layers = contract.layers_of("wrong", "static", name)
        assert all(layer.within(Threshold()) for layer in layers) == (index != 2), name


def test_what_a_runtime_refuses_is_said_of_its_case_alone(monkeypatch):
    def lower(graph, device, options):
        if any(node.short_op == "softmax" for node in graph.nodes):
            raise RuntimeUnavailable("no softmax here")
        return RUNTIMES[ORACLE].lower(graph, device, options)

    monkeypatch.setitem(RUNTIMES, "fussy", replace(RUNTIMES[ORACLE], lower=lower))
    assert contract.layers_of("fussy", "static", "conv1d")
    with pytest.raises(OctavoError, match="no softmax here"):
        contract.layers_of("fussy", "static", "softmax")
