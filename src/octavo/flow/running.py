"""Running a model in Python, on the batches of a user's data.

Tested in tests/flow/test_regions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from octavo.errors import CalibrationError
from octavo.graph.batches import (
    NO_EXAMPLE,
    Batch,
    Signature,
    arguments_in,
    example_call,
    peek,
    split_batch,
)

Run = Callable[[nn.Module], object]
"""Calls a model with a certain batch."""


def run_all(model: nn.Module, runs: Iterable[Run]) -> None:
    """Run the model on each batch."""
    with torch.no_grad():
        for run in runs:
            run(model)


@dataclass(frozen=True)
class Calls:
    """How a model is called.

    Attributes:
        first: on the first batches, again and again.
        all: on all of the data, once; ``None`` without data.
    """

    first: Sequence[Run]
    all: Iterable[Run] | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: Any,
        data: Iterable[Any] | None,
        inputs: Callable[[Any], Any] | None,
        run: Callable[[nn.Module, Any], object] | None,
    ) -> Calls:
        """From the arguments of `octavo.quantize`, none of the data used up.

        Raises:
            CalibrationError: there is nothing to run it on.
        """
        signature = Signature.of(model)

        def reading(batch: Any) -> Run:
            if run is not None:
                return lambda model: run(model, batch)
            return Call(split_batch(batch, signature, inputs))

        examples = [] if example_inputs is None else [Call(arguments_in(example_inputs))]
        if data is None:
            if not examples:
                raise CalibrationError(NO_EXAMPLE)
            return cls(examples, None)
        batches, data = peek(data, _FIRST)
        return cls([*examples, *map(reading, batches)], _Mapped(reading, data))


@dataclass(frozen=True)
class Source:
    """A float model, and the data that it is run and calibrated on, see `octavo.quantize`."""

    model: nn.Module
    example_inputs: Any
    calibration: Iterable[Any] | None
    inputs: Callable[[Any], Any] | None
    run: Callable[[nn.Module, Any], object] | None = None

    def calls(self) -> Calls:
        """How to run the model; nothing of the data is used up.

        Raises:
            CalibrationError: there is nothing to run it on.
        """
        return Calls.of(self.model, self.example_inputs, self.calibration, self.inputs, self.run)

    def example(self) -> tuple[Batch, Source]:
        """The call to capture the model with, and the source with all of its data.

        Raises:
            CalibrationError: there is none.
        """
        signature = Signature.of(self.model)
        example, data = example_call(self.example_inputs, self.calibration, signature, self.inputs)
        return example, replace(self, calibration=data)


@dataclass(frozen=True)
class Call:
    """A call of the model with the arguments of a batch."""

    batch: Batch

    def __call__(self, model: nn.Module) -> object:
        return self.batch.beside(model).run(model)


@dataclass(frozen=True)
class _Mapped:
    """A function of each item; as long as the items, where these have a length."""

    function: Callable[[Any], Run]
    items: Iterable[Any]

    def __iter__(self) -> Iterator[Run]:
        return map(self.function, self.items)

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]


_FIRST = 2  # batches that regions are found with
