"""`QuantizedModel` as a module: devices, copies, state dicts, saving, lowering."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import (
    ArtifactError,
    InputError,
    OctavoError,
    RuntimeDisagrees,
    RuntimeUnavailable,
)
from octavo.runtimes import RUNTIMES, Lowered, Runtime


@pytest.fixture(scope="module")
def q():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return octavo.quantize(
        model, calibration=[torch.randn(8, 1, 8, 8) for _ in range(3)], target=octavo.host_target()
    )


@pytest.fixture
def x():
    return torch.randn(5, 1, 8, 8)


def test_runs_on_the_torch_runtime_without_gradients(q, x):
    assert q.runtime == "torch"
    assert not q.training
    assert not q(x.requires_grad_()).requires_grad


def test_tensors_have_the_float_models_names(q):
    assert {"0.weight", "0.bias", "3.weight", "3.bias"} <= set(q.state_dict())
    assert q.state_dict()["0.weight"].dtype == torch.int8


def test_copies_run_alike(q, x):
    assert torch.equal(copy.deepcopy(q)(x), q(x))
    assert torch.equal(pickle.loads(pickle.dumps(q))(x), q(x))  # noqa: S301


def test_a_loaded_state_dict_takes_effect(q, x):
    changed = copy.deepcopy(q)
    state = changed.state_dict()
    state["3.bias"] = state["3.bias"] + 1
    changed.load_state_dict(state)
    assert torch.allclose(changed(x), q(x) + 1, atol=1e-5)


def test_the_reference_runtime_runs_the_qdq_graph(q, x):
    reference = q.lower("reference")
    assert reference.runtime == "reference"
    assert q.runtime == "torch"
    assert (reference(x) - q(x)).abs().max() < 0.05 * q(x).abs().max()


def test_unknown_runtime(q):
    with pytest.raises(
        RuntimeUnavailable, match=r"no runtime 'tpu': there is 'reference', 'torch'"
    ):
        q.lower("tpu")


def test_the_torch_runtime_says_where_it_runs(q, x):
    moved = copy.deepcopy(q).to("meta")
    with pytest.raises(
        RuntimeUnavailable, match=r'the model is on meta; use .lower\("reference"\)'
    ):
        moved(x.to("meta"))


def test_the_reference_runtime_follows_the_device(q, x):
    moved = q.lower("reference").to("meta")
    assert moved(x.to("meta")).shape == (5, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_the_reference_runtime_on_cuda(q, x):
    moved = copy.deepcopy(q).lower("reference").to("cuda")
    expected = q.lower("reference")(x)
    assert (moved(x.cuda()).cpu() - expected).norm() < 0.01 * expected.norm()


def test_the_dtype_cannot_be_changed(q):
    with pytest.raises(OctavoError, match="cannot change its dtype"):
        copy.deepcopy(q).half()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "argument 'input' is missing"),
        ((torch.zeros(1, 1, 8, 8), 1), {}, "takes 1 arguments"),
        ((torch.zeros(1, 1, 8, 8),), {"scale": 2}, "no argument 'scale'"),
        ((torch.zeros(1, 1, 9, 8),), {}, r"float32\[1, 1, 9, 8\]; expected float32\[N, 1, 8, 8\]"),
        (("x",), {}, "is 'x': give a tensor"),
    ],
)
def test_wrong_calls_are_clear_errors(q, args, kwargs, message):
    with pytest.raises(InputError, match=message):
        q(*args, **kwargs)


def test_save_and_load(q, x, tmp_path):
    q.save(tmp_path / "m.octavo")
    loaded = octavo.load(tmp_path / "m.octavo")
    assert torch.equal(loaded(x), q(x))
    assert loaded.plan == q.plan
    assert loaded.signature == q.signature
    assert loaded.provenance == q.provenance
    assert loaded.provenance["calibration_batches"] == 3
    assert octavo.load(tmp_path / "m.octavo", "reference").runtime == "reference"


def test_saving_where_nothing_can_be_written(q, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        q.save(tmp_path / "file" / "m.octavo")


def test_summary_counts_the_layers(q):
    summary = q.summary()
    assert (summary.layers, summary.int8) == (4, 4)
    assert summary.size_mb < 0.3 * summary.float_mb
    assert str(summary).startswith("100 % of the multiply-adds in int8 on torch")
    assert summary.to_dict()["fallbacks"] == {}
    assert q._repr_html_() == summary._repr_html_()


def test_layers_left_in_float_are_named_with_the_reason():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Conv2d(4, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = octavo.quantize(
            model, calibration=[torch.randn(4, 1, 8, 8)], target=octavo.host_target()
        )
    reason = "softplus has no quantized form"
    assert q.summary().float_layers["1"].startswith(reason)
    assert "in float too, without multiply-adds: 1 softplus" in str(q.summary())


def test_layers_may_have_the_names_of_the_quantized_models_own_attributes(x):
    names = ("plan", "target", "graph", "device", "summary", "lower", "runtime")
    layers = nn.ModuleDict({name: nn.Conv2d(1, 1, 3, padding=1) for name in names})

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x):
            for layer in self.children():
                x = layer(x)
            return x

    q = octavo.quantize(Named(), calibration=[x], target=octavo.host_target())
    assert {f"{name}.weight" for name in names} <= set(q.state_dict())
    assert q.target == q.plan.target
    assert torch.equal(copy.deepcopy(q)(x), q(x))


def test_batches_that_do_not_fit_together_are_one_clear_error():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    batch = (torch.randn(8, 4), torch.randn(8, 4))
    q = octavo.quantize(Sum(), calibration=[batch], target=octavo.host_target())
    with pytest.raises(InputError, match=r"captured for x\.shape\[0\] == y\.shape\[0\]: forward"):
        q(torch.randn(3, 4), torch.randn(2, 4))


def test_many_layers_of_one_reason_are_one_line_of_the_summary():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(5)))
    summary = octavo.quantize(model, torch.randn(2, 4), target="x86-avx2").summary()
    assert len(summary.float_layers) == 5
    assert "in float too, without multiply-adds: 5 relu" in str(summary)


def test_who_calls_in_inference_mode_gets_no_copy():
    """There is nothing to train; a copy of a large result woke torch's own threads."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Softplus()).eval()
    q = octavo.quantize(net, calibration=[torch.randn(4, 2, 4)])
    with torch.inference_mode(), torch.profiler.profile() as seen:
        q(torch.randn(4, 2, 4))
    assert "aten::clone" not in {event.key for event in seen.key_averages()}


def test_a_head_on_top_of_it_can_be_trained():
    q = octavo.quantize(nn.Linear(4, 3), torch.randn(5, 4), progress=False)
    head = nn.Linear(3, 2)
    head(q(torch.randn(5, 4))).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def _broken(*tensors):
    raise RuntimeError("could not create a primitive\nat some place")


def test_a_kernel_that_stops_is_not_the_inputs_fault(q, x):
    broken = copy.copy(q)
    broken._lowered = replace(q.lowered, run=_broken)
    message = (
        r"the torch runtime cannot run inputs that the model takes \(.*5, 1, 8, 8.*\): could not "
        r'create a primitive\. .*lower\("reference"\)'
    )
    with pytest.raises(RuntimeUnavailable, match=message):
        broken(x)


@pytest.mark.parametrize("runtime", ["torch", "reference", "onnxruntime"])
def test_inputs_that_the_oracle_cannot_run_either_are(runtime):
    model = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(16, 4))
    words = octavo.quantize(model, torch.tensor([[0, 4], [1, 2]]), progress=False).lower(runtime)
    with pytest.raises(InputError, match="the model cannot run on these inputs: "):
        words(torch.tensor([[0, 5], [1, 2]]))


def test_a_kernel_that_stops_is_found_when_it_is_proved(q, monkeypatch):
    runtime = Runtime(lambda graph, device, options: Lowered(_broken, {}, {}))
    monkeypatch.setitem(RUNTIMES, "broken", runtime)
    with pytest.raises(RuntimeDisagrees, match="broken cannot run what the oracle can: could not"):
        q.lower("broken")
    (row,) = octavo.verify(q, runtimes=["broken"]).runtimes
    assert (row.passed, row.error.splitlines()[0]) == (False, "could not create a primitive")


def test_results_lie_in_memory_as_the_float_models_do() -> None:
    """So that a view of them is possible wherever it was."""
    images, rows = torch.rand(2, 3, 8, 8), torch.rand(5, 32)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 1)).eval()
    conv = octavo.quantize(net, calibration=[images], target=octavo.host_target())
    linear = octavo.quantize(nn.Linear(32, 20), rows, target=octavo.host_target())
    assert conv(images).view(2, -1).shape == (2, 180)
    assert linear(rows).view(-1).shape == (100,)
    with torch.inference_mode():
        assert conv(images).view(2, -1).shape == (2, 180)
        assert linear(rows).view(-1).shape == (100,)
    last = images.contiguous(memory_format=torch.channels_last)
    assert conv(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv(last), conv(images))
