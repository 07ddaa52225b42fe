"""Training curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.reporting.plots.figure import legend, new_figure, panel, whole_numbers, words
from octavo.reporting.plots.palette import PAPER, Palette

if TYPE_CHECKING:
    from octavo.reporting.plots.figure import Figure


@dataclass
class History:
    """Accuracy and mean loss of each epoch.

    Attributes:
        train_accuracy, validation_accuracy: in percent.
        train_loss, validation_loss: the means.
    """

    train_accuracy: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)


def training(history: History, title: str = "", *, palette: Palette = PAPER) -> Figure:
    """Accuracy and loss of training and validation over the epochs.

    Args:
        history: of the training.
        title: above the figure.
        palette: the colours.

    Raises:
        MissingExtra: matplotlib is not installed.

    Example:
        >>> from octavo import plots
        >>> seen = plots.History([90.0, 95.0], [0.4, 0.2], [91.0, 94.0], [0.3, 0.2])
        >>> plots.training(seen, "Digits").savefig("curves.png")
    """
    figure = new_figure(10, 4.2)
    figure.suptitle(words(title), color=palette.ink)
    epochs = range(1, len(history.train_loss) + 1)
    accuracy = (history.train_accuracy, history.validation_accuracy)
    loss = (history.train_loss, history.validation_loss)
    panels = (
        ("Accuracy", "accuracy in %", "{:.1f} %", *accuracy),
        ("Loss", "cross-entropy", "{:.4f}", *loss),
    )
    for axes, (name, unit, form, train, validation) in zip(
        figure.subplots(1, 2), panels, strict=True
    ):
        panel(axes, palette, title=name, grid="both")
        axes.plot(
            epochs, train, "o-", color=palette.first, markersize=4, label="training (augmented)"
        )
        axes.plot(epochs, validation, "s-", color=palette.second, markersize=4, label="validation")
        axes.annotate(
            form.format(validation[-1]),
            (epochs[-1], validation[-1]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            color=palette.second,
        )
        axes.set(xlabel="epoch", ylabel=unit)
        axes.margins(y=0.12)
        whole_numbers(axes)
        legend(axes, palette, loc="center right")
    return figure
