"""Who takes part in `octavo.compare`: the float model in two precisions, and the others.

Tested in tests/measuring/test_comparison.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.arguments import expect, of
from octavo.errors import InputError
from octavo.graph.batches import Batch, with_floats
from octavo.graph.copying import copied
from octavo.graph.pixels import Pixels
from octavo.measuring.comparison_table import BASELINES
from octavo.measuring.metrics import Likeness, TaskMetric
from octavo.measuring.next_tokens import Divergence
from octavo.measuring.significance import PairedCounts
from octavo.model.kinds import require_quantized
from octavo.model.model import QuantizedModel
from octavo.model.parts import lower_parts, regions_of
from octavo.qat import QATModel


@dataclass
class Contender:
    """A model that takes part, and what is known of it so far; an ``error`` ends its part.

    Rows of one ``label`` are one model on several runtimes. ``is_alike``: its outputs have fp32's
    shapes; those of a detector have as many boxes as it finds.
    """

    name: str
    label: str
    runtime: str
    model: nn.Module
    task: TaskMetric
    dtype: torch.dtype | None = None
    pixels: Pixels | None = None
    error: str | None = None
    is_alike: bool = True
    likeness: Likeness = field(default_factory=Likeness)
    counts: PairedCounts = field(default_factory=PairedCounts)
    divergence: Divergence | None = None

    def call_on(self, batch: Batch) -> Callable[[], Any]:
        """A call of the model, its inputs already normalized and cast where it wants that."""
        batch = with_floats(batch, self.pixels)
        if self.dtype is not None:
            batch = Batch(*cast((batch.args, batch.kwargs), self.dtype))
        return lambda: batch.run_as_it_is(self.model)

    def outputs(self, batch: Batch) -> Any:
        """What it answers; that of a contender with its own dtype in float32."""
        outputs = self.call_on(batch.apart())()
        return outputs if self.dtype is None else cast(outputs, torch.float32)


def contenders_of(
    model: nn.Module,
    q: nn.Module | Mapping[str, nn.Module],
    runtimes: Sequence[str] | None,
    new_metric: Callable[[], TaskMetric],
) -> list[Contender]:
    """fp32 first, then bf16, then the others, the quantized ones in each runtime."""
    if not isinstance(q, Mapping):
        _check_quantized(q, model)
    others = dict(q) if isinstance(q, Mapping) else {"int8": q}
    _check_names(others)
    quantized = [other for other in others.values() if isinstance(other, QuantizedModel)]
    pixels = next(filter(None, (other.pixels for other in quantized)), None)
    fp32 = Contender("fp32", "fp32", "eager", model, new_metric(), pixels=pixels)
    half = Contender("bf16", "bf16", "eager", model, new_metric(), torch.bfloat16, pixels)
    try:
        _refuse_complex(model)
        half.model = copied(model).to(torch.bfloat16)
    except Exception as error:  # noqa: BLE001  whatever a module's own __deepcopy__ raises
        half.error = one_line(error)
    contenders = [fp32, half]
    for label, other in others.items():
        if not isinstance(other, QuantizedModel):
            contenders += _of_users_class(label, other, runtimes, new_metric, pixels)
            continue
        own = pixels if other.pixels is None else None
        names = list(dict.fromkeys(runtimes or [other.runtime]))
        for name in names:
            lowered = other if name == other.runtime else other.lower(name)
            title = label if len(names) == 1 else f"{label} {name}"
            runtime = lowered.lowered.runtime
            contenders.append(Contender(title, label, runtime, lowered, new_metric(), pixels=own))
    return contenders


def _of_users_class(
    label: str,
    other: nn.Module,
    runtimes: Sequence[str] | None,
    new_metric: Callable[[], TaskMetric],
    pixels: Pixels | None,
) -> list[Contender]:
    """A model as it is; one with regions on each of the runtimes that are asked for."""
    regions = regions_of(other)
    if not regions:
        return [Contender(label, label, "eager", other, new_metric(), pixels=pixels)]
    own = ", ".join(sorted({region.runtime for region in regions.values()}))
    names = list(dict.fromkeys(runtimes or [own]))
    contenders = []
    for name in names:
        lowered = other if name == own else lower_parts(other, name)
        title = label if len(names) == 1 else f"{label} {name}"
        contenders.append(Contender(title, label, name, lowered, new_metric(), pixels=pixels))
    return contenders


def _refuse_complex(model: nn.Module) -> None:
    """In bfloat16 they would lose their imaginary parts."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    name = next((name for name, tensor in tensors if tensor.is_complex()), None)
    if name is not None:
        raise TypeError(f"{name!r} holds complex numbers, of which there are none in bfloat16")


def _check_quantized(q: object, model: nn.Module) -> None:
    """Refuse a float model, which would stand in a row called int8."""
    if not isinstance(q, nn.Module) or isinstance(q, QATModel) or _forms(q) == _forms(model):
        require_quantized(q, "compare(model, q, data)")


def _forms(model: nn.Module) -> list[tuple[str, type, torch.dtype]]:
    return [(name, type(tensor), tensor.dtype) for name, tensor in model.named_parameters()]


_MODELS = of(nn.Module, way_out="give models, by the names of their rows")


def _check_names(others: Mapping[str, nn.Module]) -> None:
    """Refuse what would make two rows of one name, or none."""
    if not others:
        raise InputError("there is no model to compare with: give q, or a dict of names to models")
    for name, other in others.items():
        if name in BASELINES:
            raise InputError(f"a model cannot be called {name!r}: that is the float model's row")
        expect(_MODELS, **{repr(name): other})


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be fp32's row.

    Raises:
        InputError: it is not in float32, or not on the CPU.
    """
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    away = next((t.device for t in tensors if t.device.type != "cpu"), None)
    if away is not None:
        raise InputError(f"the model is on {away}; compare measures on the CPU: call model.cpu()")
    if tensors and not any(t.dtype is torch.float32 for t in tensors):
        raise InputError(f"the model is {tensors[0].dtype}; compare needs the float32 model")


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors of a tree in another dtype."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def one_line(error: Exception) -> str:
    """An error as a cell of a table."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}"
