"""One table of fusions: what targets plan for this CPU, the torch runtime's kernels do."""

from __future__ import annotations

import pytest

from octavo.quantization.fusions import NOTHING, ONEDNN, Fusion
from octavo.quantization.targets import TARGETS
from octavo.runtimes.torch.kernel import Reads
from octavo.runtimes.torch.kernels import kernels_of


def test_the_default_takes_in_nothing():
    assert Fusion() == NOTHING
    assert not NOTHING.activations
    assert not NOTHING.addition


@pytest.mark.parametrize("target", ["x86", "x86-avx2"])
def test_what_is_planned_as_one_kernel_is_one(target):
    fusions = TARGETS[target].fusions
    assert fusions.keys() == {*ONEDNN, "add"}
    for operator, fusion in fusions.items():
        kernel = kernels_of(operator, Reads.INTEGERS)[-1]  # torch's, which stands behind ours
        assert fusion.activations <= kernel.fusion.activations, operator
        assert fusion.addition == kernel.fusion.addition, operator
