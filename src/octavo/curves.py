"""Training curves as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from octavo.atomic import replacing
from octavo.errors import MissingExtra

TRAIN, VALIDATION = "#4c72b0", "#dd8452"


@dataclass
class History:
    """Accuracy (percent) and mean loss of each epoch."""

    train_accuracy: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)


def require_matplotlib() -> None:
    """Say early that pictures cannot be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "draw the training curves") from error


def draw_history(history: History, path: str | Path, title: str) -> None:
    """Write accuracy and loss of training and validation over the epochs as a PNG file.

    Raises:
        MissingExtra: matplotlib is not installed.
        ArtifactError: the file cannot be written.
    """
    require_matplotlib()
    # Without pyplot: no window system, and nobody else's figures are touched.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title)
    epochs = range(1, len(history.train_loss) + 1)
    accuracy = (history.train_accuracy, history.validation_accuracy)
    loss = (history.train_loss, history.validation_loss)
    panels = (
        ("Accuracy", "accuracy in %", "{:.1f} %", *accuracy),
        ("Loss", "cross-entropy", "{:.4f}", *loss),
    )
    for axes, panel in zip(figure.subplots(1, 2), panels, strict=True):
        name, unit, form, train, validation = panel
        axes.plot(epochs, train, "o-", color=TRAIN, markersize=4, label="training (augmented)")
        axes.plot(epochs, validation, "s-", color=VALIDATION, markersize=4, label="validation")
        axes.annotate(
            form.format(validation[-1]),
            (epochs[-1], validation[-1]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            color=VALIDATION,
        )
        axes.set(title=name, xlabel="epoch", ylabel=unit)
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center right")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
