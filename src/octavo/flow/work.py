"""How many multiply-adds each module does while its model runs in Python.

Counted by operators as PyTorch calls them, behind all of the model's own code: so what no graph
holds is counted by the same formulas as what graphs hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.flow.running import Run, run_all
from octavo.graph.soundness import schemas
from octavo.graph.soundness.products import MULTIPLY_ADDS, Count


@dataclass
class Work:
    """What a module does in some runs of its model.

    Attributes:
        own: multiply-adds outside of the modules in it.
        whole: with those of the modules in it.
        first: those of its first call.
    """

    own: int = 0
    whole: int = 0
    first: int | None = None

    def add(self, whole: int, inside: int) -> None:
        """Add a call."""
        self.own += whole - inside
        self.whole += whole
        self.first = whole if self.first is None else self.first

    def calls(self, runs: int) -> float | None:
        """How many calls of the first one's size a run makes; ``None`` where it has no size."""
        return self.whole / self.first / runs if self.first else None


def work_of(model: nn.Module, runs: Sequence[Run]) -> dict[nn.Module, Work]:
    """Run the model; what each of its modules that is called does in all runs together.

    Example:
        >>> from torch import ones
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> [work.own for work in work_of(net, [lambda model: model(ones(2, 3))]).values()]
        [24, 0, 0]
    """
    works: dict[nn.Module, Work] = {}
    counter = _Counter()  # type: ignore[no-untyped-call]
    pending: list[tuple[int, list[int]]] = []  # when a call began, and what modules in it did

    def enter(module: nn.Module, args: Any) -> None:
        pending.append((counter.done, []))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        start, inside = pending.pop()
        whole = counter.done - start
        works.setdefault(module, Work()).add(whole, sum(inside))
        if pending:
            pending[-1][1].append(whole)

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        with counter:
            run_all(model, runs)
    finally:
        for hook in hooks:
            hook.remove()
    return works


class _Counter(TorchDispatchMode):
    """Counts the multiply-adds of all operators that are called."""

    done = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = _COUNTS.get(func._schema.name.removeprefix("aten::"))
        if count is not None:
            self.done += count(schemas.bound(func, args, kwargs), result)
        return result


def _first_result(count: Count) -> Count:
    return lambda values, results: count(values, results[0])


def _recurrent_layer(values: Mapping[str, Any], results: Any) -> int:
    """One layer of one direction: at each step both of its matrices are read."""
    steps, batch = values["input"].shape[:2]
    return int(steps * batch * (values["weight0"].numel() + values["weight1"].numel()))


_ATTENTION = MULTIPLY_ADDS["scaled_dot_product_attention"]
_FOURIER = MULTIPLY_ADDS["fft_fft"]
# What becomes of operators below their names in a graph.
_COUNTS: dict[str, Count] = {
    **MULTIPLY_ADDS,
    "_scaled_dot_product_flash_attention_for_cpu": _first_result(_ATTENTION),
    "mkldnn_rnn_layer": _recurrent_layer,
    **dict.fromkeys(("_fft_c2c", "_fft_r2c", "_fft_c2r"), _FOURIER),
}
