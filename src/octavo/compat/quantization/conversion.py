"""A converted model: the user's module, holding integers, with the quantized graph for forward.

The tensors live in the module tree, under the names of the float model's own; scales and zero
points of activations are buffers too. So a state dict holds all that calibration found, and a model
that was converted without calibration becomes the other one by loading it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.compat.quantization.fuse_modules import FusedModule
from octavo.compat.quantization.holding import Quantize, held, hold, holder, put, strip
from octavo.compat.quantization.layers import (
    LAYERS,
    QuantizedLayer,
    about,
    name_of_kind,
    refuse_other_dtypes,
)
from octavo.compat.quantization.parts import close, refuse_hooks, reopen
from octavo.compat.quantization.stubs import (
    DeQuantStub,
    FloatFunctional,
    QFunctional,
    QuantStub,
)
from octavo.compat.quantization.takeover import Changed, become
from octavo.errors import CalibrationError, OctavoWarning
from octavo.graph.batches import Signature
from octavo.graph.graph import Graph, Node
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE
from octavo.graph.rewrite import rewrite
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.model.model import QuantizedModel
from octavo.quantization.plan import Plan
from octavo.version import __version__

_OF_TRAINING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
_ROUNDED = (QUANTIZE, DEQUANTIZE)


class DeQuantize(nn.Module):
    """What is left of a DeQuantStub: the graph does its work."""


_STAND_INS: dict[type[nn.Module], type[nn.Module]] = {
    QuantStub: Quantize,
    DeQuantStub: DeQuantize,
    FloatFunctional: QFunctional,
}


@dataclass
class Conversion:
    """What a converted model knows besides its tensors.

    Attributes:
        graph: the quantized graph; its constants are the tensors in the module tree.
        plan, signature: of the model.
        constants: constant -> its path in the tree, and its name there.
        scales: tensor with one scale of its own -> path, and names of scale and zero point.
    """

    graph: Graph
    plan: Plan
    signature: Signature
    constants: dict[str, tuple[str, str]]
    scales: dict[str, tuple[str, str, str]]
    cached: QuantizedModel | None = field(default=None, repr=False)

    def model(self, root: nn.Module) -> QuantizedModel:
        """The quantized model, of the tensors as they are now.

        Raises:
            CalibrationError: there was neither calibration nor a state dict.
        """
        if self.cached is None:
            graph = self.with_tensors(root)
            provenance = {
                "octavo": __version__,
                "torch": torch.__version__,
                "target": self.plan.target,
                "mode": self.plan.mode,
            }
            self.cached = QuantizedModel(graph, self.plan, self.signature, provenance)
        return self.cached

    def with_tensors(self, root: nn.Module) -> Graph:
        """The graph with the constants and the scales that the module tree holds.

        Raises:
            CalibrationError: a scale is not known.
        """
        constants = {
            name: held(root.get_submodule(path), leaf)
            for name, (path, leaf) in self.constants.items()
        }
        scales = {}
        for tensor, (path, scale, zero_point) in self.scales.items():
            owner = root.get_submodule(path)
            value = float(held(owner, scale))
            if value != value:
                raise CalibrationError(
                    f"the scale of {tensor!r} is not known: call the prepared model on calibration "
                    "data before convert, or load the state dict of a converted model"
                )
            scales[tensor] = (value, int(held(owner, zero_point)))
        graph = replace(self.graph, constants=constants)
        return rewrite(graph, lambda node: _with_scale(node, self.plan, scales))

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversion:
        return replace(self, cached=None)  # all but the tensors is data that nobody changes


class Converted(Changed):
    """Calls run the quantized graph."""

    _octavo: Conversion

    @property
    def octavo_model(self) -> QuantizedModel:
        """The same model as Octavo has it: with ``summary()``, ``save(path)``, ``lower(runtime)``.

        Raises:
            CalibrationError: there was neither calibration nor a state dict.
        """
        return self._octavo.model(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.octavo_model(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Set the flag; an int8 model computes the same with it.

        Warns where a dropout or batch norm stays as it is in evaluation.
        """
        if mode and any(isinstance(module, _OF_TRAINING) for module in self.modules()):
            warnings.warn(
                "a converted model has no training mode: dropout and batch norm stay as in "
                "evaluation; train what prepare_qat returns, before convert",
                OctavoWarning,
                stacklevel=2,
            )
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        refuse_other_dtypes(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._octavo.cached = None
        return self


def _forget(module: Any, keys: Any) -> None:
    module._octavo.cached = None


def convert_into(
    root: nn.Module,
    graph: Graph,
    plan: Plan,
    signature: Signature,
    stubs: Mapping[str, str],
) -> nn.Module:
    """Make a module a converted one, in place.

    Args:
        root: the float model.
        graph: the quantized graph.
        plan, signature: its own.
        stubs: tensor -> path of the QuantStub that reads it, which gets its scale.

    Raises:
        OctavoError: a part of the model has a hook, which would not be called any more.
    """
    refuse_hooks(root)
    reopen(root)
    layers = _layers(root, graph, plan)
    _strip(root, layers, {name.rpartition(".")[0] for name in graph.constants})
    for name, module in list(root.named_modules()):
        made = next((new for old, new in _STAND_INS.items() if isinstance(module, old)), None)
        if made is not None and name:
            put(root, name, made())
    homes = sorted(layers, key=len, reverse=True)
    constants = {}
    for name, tensor in graph.constants.items():
        path, _, leaf = name.rpartition(".")
        constants[name] = (_home(path, homes), leaf)
        hold(holder(root, constants[name][0]), leaf, tensor)
    scales = {}
    for tensor_name, (scale, zero_point) in _scales(graph, plan).items():
        path = _home(stubs.get(tensor_name, tensor_name), homes)
        place = scales[tensor_name] = (path, "output_scale", "output_zero_point")
        owner = holder(root, path)
        hold(owner, place[1], torch.tensor(scale))
        hold(owner, place[2], torch.tensor(zero_point))
    for layer, returned in layers.values():
        output = _leader(returned, plan)
        if output in scales and plan.tensors[returned].spec is not None:
            path, *names = scales[output]
            layer.output = (root.get_submodule(path), names[0], names[1])
    state = Conversion(replace(graph, constants={}), plan, signature, constants, scales)
    become(root, Converted, state).eval()
    close(root, hooks=True)
    root.register_load_state_dict_post_hook(_forget)
    return root


def _layers(root: nn.Module, graph: Graph, plan: Plan) -> dict[str, tuple[QuantizedLayer, str]]:
    """Path -> the quantized layer that now stands there, and the tensor that it returns."""
    layers: dict[str, tuple[QuantizedLayer, str]] = {}
    for name, planned in plan.tensors.items():
        if planned.op not in WEIGHT_LAYOUTS or planned.kind != "activation":
            continue
        node = graph.by_name.get(name)
        path = None if node is None else _path_of_layer(root, node.module)
        if node is None or path is None or not planned.on_integers or path in layers:
            continue
        module = root.get_submodule(path)
        output = planned.fused_into or name
        kind = name_of_kind(type(module).__name__, planned.runs, plan.tensors[output].op == "relu")
        weights = _weights(node, graph, plan)
        layers[path] = (QuantizedLayer(kind, about(module), weights), output)
    for path, (layer, _) in layers.items():
        put(root, path, layer)
    return layers


def _path_of_layer(root: nn.Module, path: str) -> str | None:
    """The outermost module around a node that stands for the layer."""
    parts = path.split(".") if path else []
    for end in range(1, len(parts) + 1):
        try:
            module = root.get_submodule(".".join(parts[:end]))
        except AttributeError:
            return None
        if isinstance(module, FusedModule) or (end == len(parts) and isinstance(module, LAYERS)):
            return ".".join(parts[:end])
    return None


def _weights(node: Node, graph: Graph, plan: Plan) -> dict[str, tuple[Any, list[int]]]:
    weights = {}
    for name in node.refs():
        source = name.removesuffix(".dequantized")
        planned = plan.quantized.get(source)
        if planned is not None and planned.kind == "weight" and planned.spec is not None:
            meta = graph.by_name[name].meta
            shape = [size or 0 for size in meta.shape] if meta else []
            weights[source.rpartition(".")[2]] = (planned.spec.scheme, shape)
    return weights


def _strip(root: nn.Module, layers: Mapping[str, Any], holders: set[str]) -> None:
    """Take the float tensors out; what will hold none, a folded batch norm, does nothing now."""
    for path, module in list(root.named_modules(remove_duplicate=False)):
        if path in layers or not strip(module) or path in holders or isinstance(module, LAYERS):
            continue
        if not module._modules:
            put(root, path, nn.Identity())


def _home(path: str, layers: list[str]) -> str:
    """The path of the quantized layer that a path lies in, else the path itself."""
    inside = (home for home in layers if path == home or path.startswith(f"{home}."))
    return next(inside, path)


def _scales(graph: Graph, plan: Plan) -> dict[str, tuple[float, int]]:
    """Tensor -> scale and zero point, of those with one scale that is their own."""
    scales = {}
    for node in graph.nodes:
        if node.op in _ROUNDED:
            given = arguments(node)
            leader = _leader(node.name.rpartition(".")[0], plan)
            scales[leader] = (given["scale"], given["zero_point"])
    return scales


def _leader(tensor: str, plan: Plan) -> str:
    return plan.tensors[tensor].shares or tensor


def _with_scale(node: Node, plan: Plan, scales: Mapping[str, tuple[float, int]]) -> Node:
    if node.op not in _ROUNDED:
        return node
    scale, zero_point = scales[_leader(node.name.rpartition(".")[0], plan)]
    return with_arguments(node, scale=scale, zero_point=zero_point)
