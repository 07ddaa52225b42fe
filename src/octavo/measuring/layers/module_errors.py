"""What rounding does to the modules of `octavo.nn` in a model that runs in Python.

For each batch the float model is run, and each of its layers is asked beside the quantized module
that has its place, on the same arguments: the module's own error. Then the quantized model is run:
the same with the errors of all modules before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.arguments import BATCHES, FUNCTION, expect, optional
from octavo.errors import InputError
from octavo.flow.running import Call
from octavo.flow.watching import hooked_results
from octavo.graph.batches import Batch, Signature, split_batch
from octavo.graph.evaluation import evaluating
from octavo.measuring.layers.error_sums import LayerSums
from octavo.measuring.layers.error_table import LayerError, LayerErrors
from octavo.measuring.layers.weight_errors import weight_error
from octavo.measuring.modules import weight_name
from octavo.model.nn import QuantizedModule
from octavo.model.nn.float_layers import tensors_of
from octavo.numerics import octavo_operators
from octavo.progress import track

_CLOSE = 1e-2  # of its size: bfloat16 keeps as much


def module_errors(
    model: nn.Module,
    q: nn.Module,
    modules: Mapping[str, QuantizedModule],
    data: Iterable[Any],
    inputs: Callable[[Any], Any] | None,
    progress: bool,
) -> LayerErrors:
    """Those of the modules of a model.

    Args:
        model: the float model.
        q: the quantized one.
        modules: those of it to look at, by their paths.
        data, inputs, progress: as for `octavo.layer_errors`.

    Raises:
        InputError: no data, or ``q`` was not made of this model.
    """
    expect(BATCHES, data=data)
    optional(FUNCTION, inputs=inputs)
    layers = layers_of(model, modules)
    _check_floats(model, q)
    signature, sums, samples = Signature.of(model), _Sums(modules), 0
    with torch.no_grad(), evaluating(model), evaluating(q):
        for batch in track(data, "comparing layers", progress):
            call = split_batch(batch, signature, inputs)
            sums.update(model, layers, q, call)
            samples += call.size
    if not samples:
        raise InputError("layer_errors got no data; give at least one batch")
    rows = []
    for path, module in modules.items():
        rows += _of_weights(path, module, layers[path])
        if sums.of[path].own.count:
            rows.append(sums.of[path].row(path, "activation", module.operator, "float"))
    return LayerErrors(tuple(rows), samples)


class _Sums:
    """What was summed up of each module."""

    def __init__(self, modules: Mapping[str, QuantizedModule]) -> None:
        self.modules = modules
        self.of = {path: LayerSums() for path in modules}

    def update(
        self, model: nn.Module, layers: Mapping[str, nn.Module], q: nn.Module, call: Batch
    ) -> None:
        """Add a batch."""
        exact: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

        def beside(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            alone = self.modules[path](*args, **kwargs)
            exact[path].append((_floats(result), _floats(alone)))

        found: dict[str, list[Tensor]] = defaultdict(list)

        def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            found[path].append(_floats(result))

        with hooked_results(layers, beside):
            Call(call)(model)
        with hooked_results(self.modules, note):
            Call(call)(q)
        for path in self.modules:
            pairs, results = exact[path], found[path]
            shapes = [want.shape for want, _ in pairs]
            if shapes != [result.shape for result in results]:
                raise InputError(
                    f"the module {path!r} is called otherwise in the quantized model than in the "
                    "float one (what the model computes decides about its calls): octavo.compare "
                    "tells how far the outputs of the whole are apart"
                )
            for (want, alone), all_in in zip(pairs, results, strict=True):
                self.of[path].update(want, alone, all_in)


def layers_of(model: nn.Module, modules: Mapping[str, QuantizedModule]) -> dict[str, nn.Module]:
    """The float layers in whose places the modules stand."""
    known = dict(model.named_modules(remove_duplicate=False))
    layers = {}
    for path, module in modules.items():
        if path not in known:
            raise InputError(
                f"the model has no module {path!r}, which the quantized one has: was it made from "
                "another model?"
            )
        layers[path] = known[path]
        shapes = {name: tuple(t.shape) for name, t in known[path].state_dict().items()}
        for name, shape in module.float_shapes().items():
            if shapes.get(name) != shape:
                raise InputError(
                    f"the float model's {weight_name(path, name)!r} is "
                    f"{list(shapes[name]) if name in shapes else 'missing'}, the quantized one's "
                    f"{list(shape)}: give the model that was quantized"
                )
    return layers


def _check_floats(model: nn.Module, q: nn.Module) -> None:
    """Refuse a float model whose other parameters are not those of the quantized one."""
    floats = dict(model.named_parameters())
    for name, tensor in q.named_parameters():
        before = floats.get(name)
        if before is None or not tensor.numel():
            continue
        room = _CLOSE * float(tensor.detach().abs().max())
        alike = before.shape == tensor.shape and torch.allclose(
            before.detach().to(tensor), tensor, rtol=_CLOSE, atol=room
        )
        if not alike:
            raise InputError(
                f"the float model's {name!r} differs from the quantized one's: give the model that "
                "was quantized, with the weights that it had then. Of one whose scales were moved "
                "from layer to layer, octavo.compare tells how far the outputs are apart"
            )


def _floats(result: Any) -> Tensor:
    """The first tensor of floats that a module returns: its output, in front of any states."""
    leaves = pytree.tree_leaves(result)
    floats = (t for t in leaves if isinstance(t, Tensor) and t.is_floating_point())
    first = next(floats, None)
    return torch.empty(0) if first is None else first.detach()


def _of_weights(path: str, module: QuantizedModule, layer: nn.Module) -> list[LayerError]:
    floats, rounded, tensors = tensors_of(layer), module.dequantized(), module.own_tensors()
    rows = []
    for name, weight in module.weights.items():
        exact, near = floats[name].detach().float(), rounded[name]
        integers = weight.integers(tensors)
        scale, zero_point = (tensors[part] for part in weight.names[1:])
        rows.append(
            weight_error(
                weight_name(path, name),
                module.operator,
                weight.scheme,
                exact=exact.to(near.device),
                rounded=near,
                step=octavo_operators.dequantize(torch.ones_like(integers), scale, 0 * zero_point),
                shifted=octavo_operators.dequantize(integers, torch.ones_like(scale), zero_point),
            )
        )
    return rows
