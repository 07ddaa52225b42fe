"""Which modules are called in a run, what each reads and returns: so what stands behind what.

Tested in tests/flow/blockwise/test_finding_folds.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.model.nn import quantized_form
from octavo.model.nn.experts import Experts, linears_of
from octavo.model.nn.float_layers import tensors_of
from octavo.model.nn.linear import Linear

Key = tuple[int, int, int]


@dataclass(frozen=True)
class Event:
    """A call of a module: what it reads first, and what it returns."""

    module: nn.Module
    input: Tensor
    output: Tensor

    @property
    def input_key(self) -> Key:
        return _key(self.input)

    @property
    def output_key(self) -> Key:
        return _key(self.output)


def _key(x: Tensor) -> Key:
    """The same for a tensor and what is only another shape of it."""
    return x.data_ptr(), x.numel(), x.shape[-1] if x.dim() else 0


def watched(modules: Iterable[nn.Module], run: Callable[[], object]) -> list[Event]:
    """The calls of those modules that have parameters of their own and are called once, in the
    order in which they return. All tensors are kept while the events are.
    """
    events: list[Event] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        read, made = first_tensor((*args, *kwargs.values())), first_tensor(_leaves(result))
        if read is not None and made is not None:
            events.append(Event(module, read, made))

    own = [module for module in modules if any(True for _ in module.parameters(False))]
    handles = [module.register_forward_hook(look, with_kwargs=True) for module in own]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(event.module for event in events)
    return [event for event in events if counts[event.module] == 1]


def _leaves(result: Any) -> list[Any]:
    return pytree.tree_leaves(result)


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """The first of some values that is a tensor."""
    return next((x for x in values if isinstance(x, Tensor)), None)


def columns_of(event: Event) -> list[Tensor]:
    """The weights of a module that read its input, ``[out, in]``; a router has one too."""
    form = quantized_form(event.module)
    if form is Linear:
        return [tensors_of(event.module)["weight"]]
    if form is Experts:
        first = next(iter(linears_of(event.module).values()))
        return [tensors_of(expert)["weight"] for expert in first]
    weight = event.module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != event.input.shape[-1]:
        return []
    return [weight]
