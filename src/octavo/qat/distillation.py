"""Learning from the float model: its scores say more than a label does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.errors import InputError
from octavo.graph.evaluation import evaluating


class DistillationLoss(nn.Module):
    """A loss towards the scores of a teacher, mixed with the usual one (Hinton et al. 2015,
    arXiv:1503.02531, section 2).

    ``(1 - weight) * loss(scores, labels) + weight * T^2 * KL(teacher / T || student / T)``

    Args:
        teacher: the float model; it is run in evaluation mode and without gradients.
        loss: from scores and labels.
        weight: of the teacher's part, 0 to 1.
        temperature: softens both distributions.

    Raises:
        InputError: a weight or a temperature out of range.

    Example:
        >>> from torch import nn, rand
        >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> x, labels = rand(8, 4), torch.zeros(8, dtype=torch.long)
        >>> DistillationLoss(teacher)(student(x), labels, x).backward()
    """

    def __init__(
        self,
        teacher: nn.Module,
        loss: nn.Module | None = None,
        *,
        weight: float = 0.5,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= weight <= 1.0:
            raise InputError(f"weight is {weight}; it is the teacher's part of the loss, 0 to 1")
        if not temperature > 0.0:
            raise InputError(f"temperature is {temperature}; it must be above 0, e.g. 2")
        self._teacher = (teacher,)  # in a tuple: its parameters are not this loss's own
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.weight, self.temperature = weight, temperature

    def forward(self, scores: Tensor, labels: Tensor, *inputs: object, **named: object) -> Tensor:
        """The loss.

        Args:
            scores: the student's, float ``[N, classes]`` (or with further axes behind).
            labels: what ``loss`` takes.
            inputs, named: the arguments that the student was called with.
        """
        teacher = self._teacher[0]
        with torch.no_grad(), evaluating(teacher):
            wanted = teacher(*inputs, **named)
        if not isinstance(wanted, Tensor) or wanted.shape != scores.shape:
            returned = list(wanted.shape) if isinstance(wanted, Tensor) else type(wanted).__name__
            raise InputError(
                f"the teacher gives {returned}, the student scores of shape {list(scores.shape)}: "
                "pass the same tensor from both"
            )
        cold = self.temperature
        towards = functional.kl_div(
            functional.log_softmax(scores / cold, 1),
            functional.log_softmax(wanted.to(scores.dtype) / cold, 1),
            reduction="none",
            log_target=True,
        )
        own: Tensor = self.loss(scores, labels)
        return (1 - self.weight) * own + self.weight * cold**2 * towards.sum(1).mean()
