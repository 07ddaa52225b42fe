"""Programs of ExecuTorch: what they compute in every mode, and what they say runs where."""

from __future__ import annotations

import phones
import pytest
import torch
from decibel import sqnr_db
from torch import nn
from torch.nn import functional as F

import octavo
from octavo.errors import ExportError
from octavo.runtimes.executorch.meaning import as_xnnpack_rounds

pytest.importorskip("executorch", reason="executorch is not installed")
pytestmark = pytest.mark.sweep  # a program takes seconds to make


def program_of(q, *tensors):
    from octavo.runtimes.executorch.export import program_of

    return program_of(as_xnnpack_rounds(q.graph), tensors)


def result_of(program, *tensors):
    from octavo.runtimes.executorch.programs import LoadedProgram

    return LoadedProgram(program).run(tensors)[0]


def oracle(q, *tensors):
    from octavo.graph.program import run_of

    return run_of(as_xnnpack_rounds(q.graph))(*tensors)[0]


def dynamic(**how):
    qconfig = octavo.dynamic_qconfig("executorch", **how)
    return octavo.QConfig(qconfig.activation, octavo.static_qconfig("executorch").weight)


def four_bits(group_size):
    weight = octavo.weight_only_qconfig(4, group_size=group_size).weight
    return octavo.QConfig(octavo.dynamic_qconfig("executorch").activation, weight)


@pytest.mark.parametrize(
    "qconfig",
    [dynamic(), dynamic(per_token=False), four_bits(32), four_bits(None)],
    ids=["rows", "one range", "four bits in groups", "four bits"],
)
def test_dynamic_layers_run_on_integers(qconfig):
    q = phones.for_phones(
        phones.row_net(), phones.ROWS, calibration=None, mode="dynamic", qconfig=qconfig
    )
    program = program_of(q, phones.ROWS)
    assert program.integer.keys() == {"0", "2", "3"}
    assert program.outside == {}
    assert sqnr_db(oracle(q, phones.ROWS), result_of(program, phones.ROWS)) > 70


def test_a_layer_that_xnnpack_cannot_read_runs_in_float_and_is_right():
    qconfig = octavo.weight_only_qconfig(4, group_size=16)
    q = phones.for_phones(
        phones.row_net(), phones.ROWS, calibration=None, mode="weight_only", qconfig=qconfig
    )
    program = program_of(q, phones.ROWS)
    assert program.integer == {}
    assert program.outside["0"] == "its groups of 16 are no multiple of 32"
    assert sqnr_db(oracle(q, phones.ROWS), result_of(program, phones.ROWS)) > 100


@pytest.mark.parametrize("target", ["x86", "edge", "tensorrt"])
def test_models_of_other_targets(target):
    q = phones.for_phones(phones.image_net(), phones.IMAGES, target=target)
    x = phones.IMAGES[:2]
    program = program_of(q, x)
    assert "7" in program.integer  # what their kernels fuse is not always rounded where it has to
    assert sqnr_db(oracle(q, x), result_of(program, x)) > 50


def test_a_transposed_convolution_of_groups_runs_in_float():
    torch.manual_seed(0)
    net = Three(nn.ConvTranspose2d(8, 8, 3, stride=2, groups=4))
    q = phones.for_phones(net.eval(), phones.IMAGES)
    x = phones.IMAGES[:2]
    program = program_of(q, x)
    assert program.integer.keys() == {"before", "after"}
    assert sqnr_db(oracle(q, x), result_of(program, x)) > 50


def test_texts():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(50, 64), nn.Linear(64, 3)

        def forward(self, tokens):
            return self.head(self.table(tokens).mean(1))

    tokens = torch.randint(0, 50, (2, 7))
    torch.manual_seed(0)
    q = phones.for_phones(Text().eval(), tokens)
    program = program_of(q, tokens)
    assert program.integer.keys() == {"head"}
    assert sqnr_db(oracle(q, tokens), result_of(program, tokens)) > 60


def test_an_operator_without_a_kernel_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(8, 8)

        def forward(self, x):
            return torch.erfinv(torch.tanh(self.line(x)))

    x = torch.randn(4, 8)
    q = phones.for_phones(Net().eval(), x)
    with pytest.raises(ExportError, match=r"erfinv.*export_onnx"):
        program_of(q, x)


@pytest.mark.parametrize(
    ("layer", "x", "channels", "op"),
    [
        (nn.Conv3d(2, 2, 1), torch.randn(2, 2, 4, 4, 4), 128, "conv3d"),
        (nn.EmbeddingBag(9, 8, mode="sum"), torch.randint(0, 9, (2, 3)), 8, "embedding_bag"),
    ],
)
def test_an_operator_without_a_form_is_named(layer, x, channels, op):
    q = phones.for_phones(nn.Sequential(layer, nn.Flatten(), nn.Linear(channels, 4)), x)
    with pytest.raises(ExportError, match=rf"no form for {op}, the layer '0.*': .*export_onnx"):
        program_of(q, x)


ZOO = "resnet18 squeezenet1_1".split()  # more take minutes: benchmarks/executorch.py


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_are_the_oracles_layer_by_layer(name):
    import zoo

    from benchmarks import reach

    entry = zoo.BY_NAME[name]
    pytest.importorskip(entry.family)
    net = entry.build()
    graph = octavo.capture(net, *reach.call(entry, 2, seed=0))
    q = reach.quantized(entry, net, graph, "static", "executorch")
    args, _ = reach.call(entry, 1, seed=1)
    found = octavo.verify(q, [args], runtimes=["executorch"]).runtimes[0]
    assert found.error == ""
    assert max(layer.unequal for layer in found.layers) <= 1e-3
    assert max(layer.steps or 0 for layer in found.layers) <= 1


class Three(nn.Module):
    """A function of what one convolution gives, read by another."""

    def __init__(self, function):
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.function = function

    def forward(self, x):
        return self.after(self.function(self.before(x)))


CLIPPED = {
    "relu": torch.relu,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.2),
    "clamp": lambda x: x.clamp(-0.3, 0.2),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_a_clip_behind_pooling_changes_the_scale(name):
    """XNNPACK's kernel that clips integers copies them, whatever scale they have behind it."""
    torch.manual_seed(0)
    clip = CLIPPED[name]
    net = Three(lambda x: clip(F.max_pool2d(x, 2)))
    q = phones.for_phones(net.eval(), phones.IMAGES)
    x = phones.IMAGES[:2]
    program = program_of(q, x)
    assert {"before", "after"} <= program.integer.keys()
    assert sqnr_db(oracle(q, x), result_of(program, x)) > 50


@pytest.mark.parametrize("even", [True, False])
def test_a_layer_in_float_may_pad_integers(even):
    """XNNPACK would pad them as integers, and stops at a layer in float that reads these."""
    torch.manual_seed(0)
    net = Three(nn.Conv2d(8, 8, 2, padding="same") if even else nn.ZeroPad2d((1, 0, 0, 2)))
    rules = (
        octavo.QConfigMapping() if even else octavo.QConfigMapping().set_module_name("after", None)
    )
    q = phones.for_phones(net.eval(), phones.IMAGES, qconfig=rules)
    x = phones.IMAGES[:2]
    program = program_of(q, x)
    assert "before" in program.integer
    assert sqnr_db(oracle(q, x), result_of(program, x)) > 50
