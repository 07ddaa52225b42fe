"""`OneOperator`: a module that runs as a graph of one operator, by the kernels of the runtimes.

Tested in tests/model/nn/test_linear.py.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from octavo.errors import warn_user
from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.qdq import DYNAMIC
from octavo.model.fallbacks import WITH_KERNELS
from octavo.model.nn import compiled
from octavo.model.nn.description import Description
from octavo.model.nn.quantized_module import QuantizedModule
from octavo.model.packed_buffers import Buffers, let_go
from octavo.quantization.nonfinite_inputs import Watched, run_around
from octavo.runtimes import default_runtime, lower
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.native.products import Product

# One thread at a time makes a module ready: two that call a new one at once do it once.
_LOWERING = threading.RLock()
_MOST_COMPARED = 2**24  # weights: the oracle computes with all of them in float


class OneOperator(QuantizedModule):
    """A layer that is one operator of a graph: made ready for this device at its first call, and
    compared with the oracle then.
    """

    _ready: tuple[Callable[..., tuple[Any, ...]], Watched] | None = None
    _products: Mapping[str, Product] = {}  # of its weights, where it is ready and has such kernels
    _is_shared = False
    _of_versions: list[tuple[int, int]] | None = None  # that it was made ready of

    def __init__(self, description: Description, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(description, tensors)
        self.number = compiled.numbered(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.number = compiled.numbered(self)  # a copy is another layer

    @abstractmethod
    def graph(self) -> Graph:
        """The layer as a quantized graph, of the tensors as they are now."""

    def read_input(self, meta: TensorMeta) -> tuple[Ref, list[Node]]:
        """The graph's input as the operator reads it, and the node that rounds it if that is
        dynamic.
        """
        read, scheme = Ref("input"), self.activation
        if scheme is None:
            return read, []
        rounding = (scheme.qmin, scheme.qmax, scheme.symmetric, scheme.per_token)
        node = Node("input.dynamic", DYNAMIC, (read, *rounding), meta=meta)
        return Ref(node.name), [node]

    def results(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the graph makes of tensors; of a NaN or an infinity what the float layer would."""
        run, watched = self._made()
        if watched.are_fine(tensors):
            results = run(*tensors)
        else:
            results = run_around(self.graph(), watched, run, tensors)
        # Kernels leave gaps behind rows, and images with their channels last; others view them.
        return tuple(result.contiguous() for result in results)

    def product(self) -> Product | None:
        """The kernel that holds its weight, where there is one; it is made ready for that."""
        self._made()
        return self._products.get("weight")

    def is_stale(self) -> bool:
        """Whether another module's state dict was loaded into what they share."""
        return self._is_shared and self._versions() != self._of_versions

    def _made(self) -> tuple[Callable[..., tuple[Any, ...]], Watched]:
        if self.is_stale():
            self.forget()
        if self._ready is None:
            with _LOWERING:
                self._ready = self._ready or self._made_ready()
        return self._ready

    def _versions(self) -> list[tuple[int, int]]:
        """Which tensors it holds, and how often they were written to."""
        held = self.own_tensors().values()
        return [(id(t), 0 if t.is_inference() else t._version) for t in held]

    def adopt(self, other: OneOperator) -> bool:
        """Hold another module's weight, as they were tied in float; whether it fits."""
        name = "weight"
        if self.weights.get(name, None) is None or self.weights[name] != other.weights.get(name):
            return False
        tensors = other.own_tensors()
        self._buffers.update({part: tensors[part] for part in self.weights[name].names})
        self.keep()
        other.keep()
        return True

    @property
    def is_shared(self) -> bool:
        """Whether other modules may hold its tensors, which then are always the same objects."""
        return self._is_shared

    def keep(self) -> None:
        """Leave the tensors as they are, beside what a kernel packs: others hold them too."""
        self._is_shared = True

    def _made_ready(self) -> tuple[Callable[..., tuple[Any, ...]], Watched]:
        self._of_versions = self._versions() if self._is_shared else None
        graph = self.graph()
        compared = sum(t.numel() for t in graph.constants.values()) <= _MOST_COMPARED
        samples = [random_inputs(graph)] if compared and self.device.type == "cpu" else []
        runtime = default_runtime(self.device)
        lowered = lower(graph, runtime, self.device, samples=samples)
        if lowered.fallbacks and type(self).operator in WITH_KERNELS:
            warn_user(
                f"a {self._get_name()} runs in float on the {runtime} runtime: "
                f"{'; '.join(sorted(set(lowered.fallbacks.values())))}"
            )
        if not self._is_shared:
            let_go(self, lowered.prepacked)
        self._products = lowered.products
        return lowered.run, Watched.of(graph)

    def forget(self) -> None:
        super().forget()
        self._ready, self._products = None, {}

    def make_own(self) -> None:
        if isinstance(self._buffers, Buffers):
            self._buffers = self._buffers.copy()
