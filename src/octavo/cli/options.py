"""Options that several commands take, and what their text means."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from octavo.cli.sources.image_folder import ImageOptions
    from octavo.model.model import QuantizedModel

MODEL_HELP = (
    "package.module:name of a model or a function that builds one (found from the current folder "
    "too), or a .pt2 file of torch.export.save. A .pt2 that holds more than tensors and a graph is "
    "refused; still, use only files that you trust, as torch's reader is made for those."
)
DATA_HELP = (
    "A .npz or .safetensors file (arrays named as the model's arguments, or in their order; one "
    "named labels or y holds the labels), a folder of images with a sub-folder for each class, or "
    "package.module:name of an iterable of batches or a function that returns one."
)


def named(path: str) -> str:
    """Refuses an empty path, which would mean the current folder."""
    if not path:
        raise typer.BadParameter("it is empty; is a variable of your shell not set?")
    return path


class Mode(str, Enum):
    """As `octavo.quantize` takes them."""

    static = "static"
    dynamic = "dynamic"
    weight_only = "weight_only"


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="Samples in a batch, where DATA is a file or folder.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights for the model: .safetensors, or a .pth of torch.save (read without running "
        "code from it).",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="What the file will run on: x86, x86-avx2, arm, onnxruntime, openvino, tensorrt or "
        "edge [this CPU].",
    ),
]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="What is quantized, and when its range is found.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="top1, top5, or package.module:name of a function (outputs, labels) -> float "
        "[top1 where there are labels].",
    ),
]
ImageSize = Annotated[
    int,
    typer.Option(
        "--image-size",
        help="For a folder of images: their shorter side is resized to "
        "this, and their centre cut out.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="NUMBERS",
        help="For a folder of images: the mean of their pixels, which are "
        "0 to 1; for each channel, separated by commas, or one for all [ImageNet's].",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        metavar="NUMBERS",
        help="For a folder of images: the standard deviation, as --mean [ImageNet's].",
    ),
]
Gray = Annotated[
    bool, typer.Option("--gray", help="For a folder of images: read them with one channel.")
]


def metric_of(text: str | None) -> Any:
    """The function that the text names, else the text."""
    from octavo.cli.sources.references import is_reference, resolve_reference

    return resolve_reference(text) if text and is_reference(text) else text


def numbers_of(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of a text such as ``"0.5,1"``.

    Raises:
        InputError: something in it is not a number.
    """
    from octavo.errors import InputError

    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"{option} is {text!r}; give numbers, separated by commas") from None


def image_options(
    size: int, mean: str | None, std: str | None, gray: bool, *, raw: bool = False
) -> ImageOptions:
    """What ``--image-size``, ``--mean``, ``--std`` and ``--gray`` mean together.

    Args:
        size, mean, std, gray: the options.
        raw: whether the model takes pixels as they are, so that nothing is to be normalized.

    Raises:
        InputError: the numbers cannot be used.
    """
    from octavo.cli.sources.image_folder import ImageOptions
    from octavo.errors import InputError

    if raw and (mean is not None or std is not None):
        raise InputError(
            "--mean and --std are for models that take floats; this one takes pixels and "
            "normalizes them itself: leave them out"
        )
    return ImageOptions(size, numbers_of("--mean", mean), numbers_of("--std", std), gray, raw)


def takes_pixels(q: QuantizedModel) -> bool:
    """Whether a model normalizes its images itself."""
    return q.provenance.get("pixels") is not None
