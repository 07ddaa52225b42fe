"""What lowering gives: a function, and an account of how each part of the model runs in it.

Tested in tests/runtimes/test_agreement.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from octavo.runtimes.native.products import Product


@dataclass(frozen=True)
class Agreement:
    """A runtime's results against the oracle's, of the output that is farthest off.

    Attributes:
        sqnr_db: the oracle's signal over the difference; infinite where they are equal.
        bound_db: that of the oracle against itself with some integers a step off, less a margin;
            ``None`` where the results are so near that it was not needed.
        samples: how many were compared.
        agrees: whether every output is within its bound.
    """

    sqnr_db: float
    bound_db: float | None
    samples: int
    agrees: bool

    @property
    def distance(self) -> str:
        """How far off results are that do not agree, in words."""
        return (
            f"{self.sqnr_db:.1f} dB from the oracle's, where rounding explains "
            f"{self.bound_db:.1f} dB"
        )

    def __str__(self) -> str:
        near = "equal" if self.sqnr_db == math.inf else f"{self.sqnr_db:.1f} dB"
        derived = self.bound_db is not None and self.bound_db < math.inf  # not of class numbers
        bound = f", {self.bound_db:.1f} dB needed" if derived else ""
        return f"{near} on {self.samples} sample{'s' if self.samples > 1 else ''}{bound}"


@dataclass(frozen=True)
class Lowered:
    """A quantized graph made ready for one runtime.

    Attributes:
        run: from the graph's input tensors, in order, to its flat results.
        kernels: node of the graph -> the int8 kernel that runs it, alone or with its neighbours.
        fallbacks: node that reads integers but runs dequantized here -> why.
        note: what else there is to say, ``""`` for nothing.
        rounds: node whose kernel rounds what it reads, where the oracle does not -> the step, as a
            share of the largest value in each row.
        float_error: relative error of a float operator's result.
        precision: of what stays float, in words.
        agreement: how near this is to the oracle; ``None`` where it was not checked.
        prepacked: constant that a kernel holds in a form of its own -> what gives it back.
        runtime: its name, which lowering fills in.
        products: constant that a kernel holds -> that kernel, for who needs nothing of ``run`` but
            the product.
        compiled_for: from input tensors to those of their sizes that ``run`` compiles the model
            for; ``None`` where one program takes all.
        oracle: what ``run`` is judged by, where its kernels round as no graph says; ``None`` for
            the graph.
    """

    run: Callable[..., tuple[Any, ...]]
    kernels: Mapping[str, str]
    fallbacks: Mapping[str, str]
    note: str = ""
    rounds: Mapping[str, float] = field(default_factory=dict)
    float_error: float = 2.0**-18
    precision: str = "float32"
    agreement: Agreement | None = None
    prepacked: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    runtime: str = ""
    products: Mapping[str, Product] = field(default_factory=dict)
    compiled_for: Callable[[Sequence[Tensor]], tuple[int, ...]] | None = None
    oracle: Callable[..., tuple[Any, ...]] | None = None
