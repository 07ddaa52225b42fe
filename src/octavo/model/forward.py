"""``forward`` of a quantized model: its signature is the float model's, and what is asked of it
besides the arguments that are captured.

Pipelines and the Trainer of transformers read the signature to know what to give, and give options
that say what shall be returned.

Tested in tests/model/test_transformers.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import Tensor

from octavo.graph.batches import Signature
from octavo.graph.calls import LABEL_ARGUMENTS
from octavo.graph.graph import Graph
from octavo.graph.losses import LOSSES, fitting_loss, with_loss
from octavo.graph.records import Record


class Signed:
    """A method that has, on an instance, the signature that the instance's ``arguments`` say."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return self._function if instance is None else _Bound(self._function, instance)


class _Bound:
    __slots__ = ("_function", "_instance")

    def __init__(self, function: Callable[..., Any], instance: Any) -> None:
        self._function, self._instance = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self._instance, *args, **kwargs)

    @property
    def __code__(self) -> CodeType:
        """Read by torch.export, for its messages."""
        code: CodeType = self._function.__code__
        return code

    @property
    def __signature__(self) -> inspect.Signature:
        arguments: inspect.Signature = self._instance.arguments
        return arguments


# Options of transformers, and the part of the result that is not there where one is False.
_PARTS = {
    "use_cache": "past_key_values",
    "output_hidden_states": "hidden_states",
    "output_attentions": "attentions",
}


@dataclass(frozen=True)
class Asked:
    """A call, told apart.

    Attributes:
        kwargs: arguments of the graph, and those that it does not have.
        labels: that the loss is made of.
        without: parts of the result that are not wanted.
    """

    kwargs: Mapping[str, Any]
    labels: Mapping[str, Any]
    without: frozenset[str]

    @classmethod
    def of(cls, kwargs: Mapping[str, Any], signature: Signature, graph: Graph) -> Asked:
        """What a call of a model asks for.

        Args:
            kwargs: as given.
            signature: of the model.
            graph: the model.
        """
        others = {n: value for n, value in kwargs.items() if n not in graph.arguments}
        labels = {n: v for n, v in others.items() if n in LABEL_ARGUMENTS and isinstance(v, Tensor)}
        loss = fitting_loss(signature.losses, labels)
        # Others are refused: the float model's loss would be of them too.
        labels = {} if loss is None else {name: labels[name] for name in loss.takes}
        met = {n for n, value in others.items() if _is_met(n, value, signature, graph.outputs)}
        rest = {n: v for n, v in kwargs.items() if n not in met and n not in labels}
        return cls(rest, labels, frozenset(_PARTS[n] for n in met if others[n] is False))

    def answered(self, outputs: Any, signature: Signature) -> Any:
        """The result as it was asked for, as a record."""
        outputs = with_loss(signature.losses, outputs, self.labels)
        return outputs.without(self.without) if self.without else outputs


def _is_met(name: str, value: Any, signature: Signature, outputs: Any) -> bool:
    """Whether an argument that was not captured asks for nothing that the result is not."""
    if value is None:
        return name in signature.names or name in LABEL_ARGUMENTS or name == "return_dict"
    if not isinstance(outputs, Record) or not isinstance(value, bool):
        return False
    return value if name == "return_dict" else (name in _PARTS and not value)


def arguments_of(signature: Signature, captured: Collection[str]) -> inspect.Signature:
    """The signature of the float model's ``forward``: optional arguments have ``None``.

    Args:
        signature: of the model.
        captured: the arguments that it was captured with.
    """
    return inspect.Signature(list(_parameters(signature, captured)))


def _parameters(signature: Signature, captured: Collection[str]) -> Iterator[inspect.Parameter]:
    labels = (name for loss in signature.losses for name in LOSSES[loss].takes)
    names = dict.fromkeys((*signature.names, *captured, *labels))
    for index, name in enumerate(names):
        default = inspect.Parameter.empty if index < signature.required else None
        yield inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
