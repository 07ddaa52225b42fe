"""What is asked of every runtime: each layer, quantized in each way, is the oracle's within a step.

All cases of `test_every_layer` stand side by side in one model for each way, so that a runtime
lowers four models and no more. The graph is cut into its layers: each gets what the oracle gave it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache

import torch
from test_every_layer import ASKED, CASES, TARGET, Between, Recurrent, inputs_of, shape_of
from torch import Tensor, nn

import octavo
from octavo.errors import MissingExtra, OctavoError
from octavo.flow.whole import quantize_captured
from octavo.graph.cuts import Cuts
from octavo.graph.graph import Graph, Ref
from octavo.measuring.parity import LayerParity, _compared_layers
from octavo.quantization.weights import with_correction
from octavo.runtimes import Options
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.lowering import lower_as_meant

CPU = torch.device("cpu")


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(50, 16, mode="mean"), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))


class AllCases(nn.Module):
    """Every case on an input of its own kind: of as many dimensions as it has, or tokens."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.inputs = {name: case.dims for name, case in CASES.items() if name in names}
        made = {name: CASES[name].make() for name in self.inputs}
        cases: dict[str, nn.Module] = {
            name: Between(layer, self.inputs[name], inputs_of(layer))
            for name, layer in made.items()
        }
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            cases[kind.__name__], self.inputs[kind.__name__] = Recurrent(kind), 1
        for name, text in (("embedding", Text()), ("embedding bag", Bags())):
            cases[name], self.inputs[name] = text, 4
        self.cases = nn.ModuleDict({name.replace(" ", "_"): case for name, case in cases.items()})

    def forward(
        self, rows: Tensor, lines: Tensor, images: Tensor, volumes: Tensor, tokens: Tensor
    ) -> dict[str, Tensor]:
        inputs = (rows, lines, images, volumes, tokens)
        cases = zip(self.cases.items(), self.inputs.values(), strict=True)
        return {name: case(inputs[kind]) for (name, case), kind in cases}


def has_weights(name: str) -> bool:
    """Whether a case can be dynamic or weight-only."""
    weighted = (nn.Linear, nn.modules.conv._ConvNd)
    return any(isinstance(module, weighted) for module in CASES[name].make().modules())


LAYERS = """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d lstm gru rnn_tanh
""".split()
# How the layers are quantized -> the mode, the operators that rules name, and how these want them.
WAYS: dict[str, tuple[str, list[str], octavo.QConfig]] = {
    "static": ("static", ASKED, octavo.static_qconfig(TARGET)),
    "dynamic": ("dynamic", LAYERS, octavo.dynamic_qconfig(TARGET, per_token=True)),
    "dynamic, one range": ("dynamic", LAYERS, octavo.dynamic_qconfig(TARGET, per_token=False)),
    "weight-only": ("weight_only", LAYERS, octavo.weight_only_qconfig()),
}
OTHERS = ("LSTM", "GRU", "RNN", "embedding", "embedding bag")
NAMES = {
    way: (*(name for name in CASES if way == "static" or has_weights(name)), *OTHERS)
    for way in WAYS
}


# OpenVINO's kernel for a layer norm on few columns of integers ends the process with AVX2.
_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
FATAL = frozenset() if _AVX512 else frozenset({("openvino", "static", "layer norm")})

# OpenVINO takes one input for another where several recurrent layers read the same tensor, rounded
# by the range of all of it. Lowering finds that out, and refuses such a model.
WRONG = frozenset({("openvino", "dynamic, one range", name) for name in ("LSTM", "GRU")})


@dataclass(frozen=True)
class Contract:
    """One way: the quantized model of all cases, and its cuts."""

    model: octavo.QuantizedModel
    cuts: Cuts

    def of(self, *names: str) -> Cuts:
        """The cuts of some cases."""
        starts = tuple(f"cases.{name.replace(' ', '_')}." for name in names)
        outputs = self.cuts.graph.output_names()
        own = [i for i, layer in enumerate(self.cuts.layers) if layer.startswith(starts)]
        graph = replace(self.cuts.graph, outputs=[Ref(outputs[i]) for i in own]).pruned()
        picked = {
            key: tuple(getattr(self.cuts, key)[i] for i in own)
            for key in ("outputs", "layers", "scales", "zero_points")
        }
        return replace(self.cuts, graph=graph, **picked)


@cache
def captured(names: tuple[str, ...]) -> tuple[Graph, tuple[Tensor, ...]]:
    """The model of some cases and its inputs; three ways have the same ones."""
    torch.manual_seed(0)
    model = AllCases(names).eval()
    inputs = (*(torch.randn(shape_of(dims)) for dims in range(4)), torch.randint(0, 50, (8, 7)))
    model(*inputs)
    return octavo.capture(model, inputs), inputs


@cache
def contract(way: str) -> Contract:
    graph, inputs = captured(NAMES[way])
    mode, operators, qconfig = WAYS[way]
    rules = octavo.QConfigMapping()
    for op in operators:
        rules.set_object_type(op, qconfig)
    data = [inputs] if mode == "static" else None
    methods = with_correction((), data is not None)  # as `octavo.quantize` has them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        plan = octavo.plan(graph, rules, mode=mode, target=TARGET)
        q = quantize_captured(graph, plan, data, weights=methods, progress=False)
    return Contract(q, Cuts.of(q.graph, inputs))


@cache
def found(runtime: str, way: str) -> dict[str, LayerParity] | OctavoError:
    """Every layer of all cases; or why the runtime cannot run them all."""
    try:
        cuts = contract(way).of(*(n for n in NAMES[way] if (runtime, way, n) not in FATAL))
        layers = _compared_layers(cuts, lowered(cuts, runtime).run)
    except OctavoError as error:
        return error
    return {layer.layer: layer for layer in layers}


def layers_of(runtime: str, way: str, name: str) -> list[LayerParity]:
    """The layers of one case against the oracle.

    Raises:
        OctavoError: the runtime cannot run it.
    """
    cuts = contract(way).of(name)
    together = found(runtime, way)
    if isinstance(together, MissingExtra):
        raise together
    if isinstance(together, OctavoError):  # by itself, to know which of the cases it is
        return list(_compared_layers(cuts, lowered(cuts, runtime).run))
    return [together[layer] for layer in cuts.layers]


def lowered(cuts: Cuts, runtime: str) -> Lowered:
    return lower_as_meant(cuts.graph, runtime, CPU, Options())[0]
