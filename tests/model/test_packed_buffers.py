"""Weights that only a kernel holds: whoever asks for them gets them back."""

from __future__ import annotations

import copy
import pickle
from multiprocessing.context import set_spawning_popen
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import octavo
from octavo.model.packed_buffers import Buffers

TARGET = octavo.host_target()


class Heads(nn.Module):
    """Three layers that become one product."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, n) for n in (8, 16, 24))

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def _four_bits() -> dict:
    scheme = octavo.Scheme("int4", symmetric=True, channel_axis=0, narrow_range=True)
    return {
        "qconfig": octavo.QConfig(
            octavo.static_qconfig(TARGET).activation, octavo.QSpec(scheme, octavo.MinMax())
        )
    }


CASES = {
    "linear": (lambda: nn.Linear(16, 24), (16,), {"mode": "static"}),
    "four bits": (lambda: nn.Linear(16, 24), (16,), _four_bits()),
    "dynamic": (lambda: nn.Linear(16, 24), (16,), {"mode": "dynamic"}),
    "weight only": (lambda: nn.Linear(16, 24), (16,), {"mode": "weight_only"}),
    "weight only, four bits": (
        lambda: nn.Linear(64, 128),
        (64,),
        {"qconfig": octavo.weight_only_qconfig(4, group_size=32)},
    ),
    "weight only, unsigned": (
        lambda: nn.Linear(64, 64),
        (64,),
        {"qconfig": octavo.weight_only_qconfig(4, group_size=32, symmetric=False)},
    ),
    "joined": (Heads, (16,), {"mode": "dynamic"}),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3), (6, 9), {"mode": "static"}),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, padding=1), (6, 9, 9), {"mode": "static"}),
    "conv3d": (lambda: nn.Conv3d(6, 8, 2), (6, 5, 5, 5), {"mode": "static"}),
}


def weights_of(q: octavo.QuantizedModel) -> list[str]:
    integers = (torch.int8, torch.uint8)
    return [name for name, t in q.graph.constants.items() if t.dtype in integers]


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_gives_its_weights_back(name):
    torch.manual_seed(0)
    make, shape, how = CASES[name]
    x = torch.randn(4, *shape)
    q = octavo.quantize(make().eval(), calibration=[x], target=TARGET, progress=False, **how)
    if q.lowered.fallbacks:
        pytest.skip("this CPU has no kernel for it")
    assert set(q.lowered.prepacked) == set(weights_of(q))
    oracle = q.lower("reference")  # holds tensors
    before = {key: tensor.clone() for key, tensor in oracle.graph.constants.items()}
    for _ in range(2):
        after = q.graph.constants
        assert list(after) == list(before)
        for key, tensor in after.items():
            assert torch.equal(tensor, before[key])
            assert (tensor.dtype, tensor.is_contiguous()) == (before[key].dtype, True)
        q.to("cpu")  # tensors again, and made ready once more
        _ = q.lowered


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv1d(6, 18, 3, groups=6), lambda: nn.Conv3d(6, 6, 2, groups=6)]
)
def test_weights_in_groups_stay_tensors(make, torchs_kernels):
    """Asking oneDNN for them ended the process with AVX512."""
    layer = make().eval()
    x = torch.randn(4, 6, *[9] * (layer.weight.dim() - 2))
    q = octavo.quantize(layer, calibration=[x], target=TARGET, progress=False)
    assert q.lowered.prepacked == {}
    assert torch.allclose(q(x), q.lower("reference")(x), atol=1e-4)


@pytest.mark.parametrize("rows", [3, 300])
def test_what_a_model_can_do_with_its_tensors(rows, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(rows, 16)
    for mode in ("static", "dynamic", "weight_only"):
        q = octavo.quantize(net, calibration=[x], mode=mode, target=TARGET, progress=False)
        expected = q(x)
        other = octavo.quantize(
            nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval(),
            calibration=[x],
            mode=mode,
            target=TARGET,
            progress=False,
        )
        assert not torch.equal(other(x), expected)
        other.load_state_dict(q.state_dict())
        q.save(tmp_path / "model.octavo")
        twins = [
            other,
            copy.deepcopy(q),
            pickle.loads(pickle.dumps(q)),  # noqa: S301  (our own)
            octavo.load(tmp_path / "model.octavo"),
            copy.copy(q).to("cpu"),
        ]
        for twin in twins:
            assert torch.equal(twin(x), expected)
        assert torch.equal(q(x), expected)
        assert {name for name, _ in q.named_buffers()} == set(q.graph.constants)
        assert q.to("meta").device == torch.device("meta")


def test_buffers_are_a_mapping():
    buffers = Buffers({"a": torch.zeros(2), "b": None})
    buffers.let_go("a", lambda: torch.ones(2))
    assert list(buffers) == ["a", "b"]
    assert buffers["a"].tolist() == [1.0, 1.0]
    assert buffers.get("b") is None
    assert buffers.get("c") is None
    with torch.inference_mode():
        assert not buffers["a"].is_inference()
    buffers["a"] = torch.zeros(1)
    assert buffers["a"].tolist() == [0.0]
    buffers.let_go("a", lambda: torch.ones(2))
    assert type(copy.deepcopy(buffers)) is dict
    del buffers["a"]
    assert list(buffers.copy()) == ["b"]


def test_what_a_starting_process_is_given_lives_until_it_has_it():
    """Else files of shared memory are closed first, and others get their numbers."""
    buffers, process = Buffers({"a": torch.zeros(2)}), SimpleNamespace()
    buffers.let_go("a", lambda: torch.ones(2))
    pickle.dumps(buffers)
    set_spawning_popen(process)
    try:
        given = buffers.__reduce__()[1][0]
    finally:
        set_spawning_popen(None)
    assert [kept is given for kept in vars(process)["_octavo_tensors"]] == [True]
