"""A float model beside the quantized one that was made of it, batch after batch.

Tested in tests/measuring/layers/test_layer_errors.py and
tests/measuring/layers/test_distributions.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from octavo.arguments import BATCHES, FUNCTION, expect, optional
from octavo.errors import InputError
from octavo.graph.batches import Batch, split_batch, with_floats
from octavo.graph.calls import flatten_call
from octavo.graph.capture.capture import capture
from octavo.graph.evaluation import evaluating
from octavo.model.kinds import require_float, require_quantized
from octavo.model.model import QuantizedModel
from octavo.model.origin import check_made_of
from octavo.progress import track

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not


class Beside(ABC):
    """What is measured of a float model and of the quantized one, on batches that both take.

    Attributes:
        function: the public function that measures.
        words: what goes on, beside the bar on a terminal.
        q: the quantized model.
        graph: the float model, captured on the first batch.
    """

    function: ClassVar[str]
    words: ClassVar[str]

    def __init__(self, model: nn.Module, q: QuantizedModel, first: Batch) -> None:
        self.q = q
        floats = with_floats(first, q.pixels)
        with evaluating(model):
            self.graph = capture(model, floats.args, floats.kwargs, progress=False)

    @classmethod
    def over(
        cls,
        model: nn.Module,
        q: QuantizedModel,
        data: Iterable[Any],
        inputs: Callable[[Any], Any] | None,
        progress: bool,
        **settings: Any,
    ) -> Self:
        """All batches, measured.

        Raises:
            InputError: an argument is of another kind, there is no data, or ``q`` was not made of
                this model.
        """
        require_float(model, cls.function)
        require_quantized(q, cls.function)
        expect(BATCHES, data=data)
        optional(FUNCTION, inputs=inputs)
        measured: Self | None = None
        for batch in track(data, cls.words, progress):
            call = split_batch(batch, q.signature, inputs)
            if measured is None:
                measured = cls(model, q, call, **settings)
            measured.update(call)
        if measured is None:
            raise InputError(f"{cls.function} got no data; give at least one batch")
        return measured

    @abstractmethod
    def update(self, call: Batch) -> None:
        """Add a batch."""

    def floats(self, call: Batch) -> list[Tensor]:
        """What the float model's graph takes of a batch."""
        floats = with_floats(call, self.q.pixels)
        return flatten_call(self.graph, floats.args, floats.kwargs)

    def check(self, missing: str | None) -> None:
        """Refuse a float model that the quantized one was not made of.

        Args:
            missing: what it lacks, in words, if anything.
        """
        if missing is not None:
            raise InputError(
                f"the model has no {missing}, which the quantized one has: was it made from "
                "another model?"
            )
        check_made_of(self.graph, self.q)
