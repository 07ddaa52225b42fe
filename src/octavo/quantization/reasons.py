"""Why a tensor is as it is: decisions look at the kind of a reason, people read its words."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class ReasonKind(Enum):
    """What decided about a tensor."""

    RULE = "rule"  # a rule of the mapping keeps it float, or in bfloat16
    EFFORT = "effort"  # outputs are nearer to the float model's with it in float
    DEFAULT = "default"  # the target quantizes its operator only where a rule asks for it
    NO_KERNEL = "no kernel"  # its operator has no form in these integers
    TENSORS = "tensors"  # no kernel takes tensors of this dtype, shape or value
    RETURNS_FLOAT = "returns float"  # what a dynamic or weight-only kernel makes is float
    SURROUNDINGS = "surroundings"  # it does not stand between int8 layers
    UNREAD = "unread"  # nothing int8 reads it
    READ = "read"  # something int8 reads it
    WEIGHT = "weight"  # of a quantized layer
    FUSED = "fused"  # a kernel returns another tensor instead of it
    SHARED = "shared"  # it has the scale of another tensor
    NO_TENSOR = "no tensor"  # a size, or a list of tensors


_FLOAT = frozenset(
    {
        *(
            ReasonKind.RULE,
            ReasonKind.EFFORT,
            ReasonKind.DEFAULT,
            ReasonKind.NO_KERNEL,
            ReasonKind.TENSORS,
        ),
        *(ReasonKind.RETURNS_FLOAT, ReasonKind.SURROUNDINGS, ReasonKind.UNREAD),
    }
)


@dataclass(frozen=True)
class Reason:
    """Why a tensor is quantized or not. Prints as words.

    Attributes:
        kind: what decided.
        words: the same for people.

    Example:
        >>> print(Reason(ReasonKind.UNREAD, "leaves the model"))
        float: leaves the model
    """

    kind: ReasonKind
    words: str

    def __str__(self) -> str:
        return f"float: {self.words}" if self.kind in _FLOAT else self.words

    def and_also(self, words: str) -> Reason:
        """The same reason, and what more is to be said."""
        return replace(self, words=f"{self.words}; {words}")

    def to_dict(self) -> dict[str, str]:
        return {"kind": self.kind.value, "words": self.words}

    @classmethod
    def from_json(cls, data: Any) -> Reason:
        """What `to_dict` gave, or the text that plans of version 1 have.

        Raises:
            KeyError, TypeError, ValueError: it is neither.
        """
        if isinstance(data, str):
            return _read_text(data)
        if not isinstance(data["words"], str):
            raise TypeError(f"a reason's words are {data['words']!r}, not text")
        return cls(ReasonKind(data["kind"]), data["words"])


# How the texts begin that plans of version 1 have for reasons; the first that fits counts.
_TEXTS = (
    (r"float: (in bfloat16, )?the rule ", ReasonKind.RULE),
    (r"float: \S+ has no (quantized form|weights)", ReasonKind.NO_KERNEL),
    (r"float: \S+ is not quantized by default", ReasonKind.DEFAULT),
    (r"float: its (kernel quantizes|weights are dequantized)", ReasonKind.RETURNS_FLOAT),
    (r"float: (leaves the model|nothing int8 reads it)", ReasonKind.UNREAD),
    (
        r"float: (nothing after|its input is float|.*(s it in float| only fused))",
        ReasonKind.SURROUNDINGS,
    ),
    (r"float: ", ReasonKind.TENSORS),
    (r"weight of ", ReasonKind.WEIGHT),
    (r"fused into ", ReasonKind.FUSED),
    (r"shares the scale of ", ReasonKind.SHARED),
    (r"a size, or a list of tensors", ReasonKind.NO_TENSOR),
)


def _read_text(text: str) -> Reason:
    kinds = (kind for beginning, kind in _TEXTS if re.match(beginning, text))
    return Reason(next(kinds, ReasonKind.READ), text.removeprefix("float: "))
