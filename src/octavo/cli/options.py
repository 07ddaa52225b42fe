"""Arguments and options that several commands take, and what their text means."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from torch import nn

    from octavo.cli.sources.image_folder import ImageOptions

DATA_HELP = (
    "A .npz or .safetensors file (arrays named as the model's arguments, or in their order; one "
    "named labels or y holds the labels), a .npy file of one array, a .csv table of numbers (a "
    "row a sample, a column each of its numbers or labels), a .parquet file or a Hugging Face data "
    "set that save_to_disk wrote (columns named as the model's arguments), a folder of images with "
    "a sub-folder for each class, or package.module:name of an iterable of batches or a function "
    "that returns one."
)


HUGGING_FACE = "hf:"  # before the path of a language model, where MODEL may be something else


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


class CacheForm(str, Enum):
    """What the keys and values of a language model are kept in."""

    float = "float"
    int8 = "int8"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:name of a model or a function that builds one (found from the current "
        "folder too), or a .pt2 file of torch.export.save. A .pt2 that holds more than tensors and "
        "a graph is refused; still, use only files that you trust, as torch's reader is made for "
        "those.",
    ),
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
File = Annotated[str, typer.Argument(metavar="FILE", help="A .octavo file.")]
FileOfModel = Annotated[str, typer.Argument(metavar="FILE", help="The .octavo file made from it.")]
Data = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)]
MeasuredData = Annotated[
    str, typer.Option("--data", metavar="DATA", help=f"The data to measure on. {DATA_HELP}")
]
SomeData = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help=f"Data to run the model on. {DATA_HELP}"),
]
Calibration = Annotated[
    str,
    typer.Option(
        "--calibration", metavar="DATA", help="Calibration data, as octavo quantize takes it."
    ),
]
Runtimes = Annotated[
    str | None,
    typer.Option("--runtimes", help="Runtimes, separated by commas [all that are installed]."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of every contender [torch's own number]."),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="What the file will run on: x86, x86-avx2, arm, onnxruntime, openvino, tensorrt, "
        "edge or executorch [this CPU].",
    ),
]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="What is quantized, and when its range is found.")
]
Scope = Annotated[
    str,
    typer.Option(
        "--scope",
        help="What becomes a graph: auto, model, regions (the largest parts that can) or "
        "modules (single layers; no graph).",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="top1, top5, or package.module:name of a function (outputs, labels) -> float "
        "[top1 where there are labels].",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option("--engine", help="ray: run on a Ray cluster, or on one that is started here."),
]
LanguageModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder in Hugging Face's layout, quantized or float, or a GGUF file: a causal "
        "language model with its tokenizer. No code of it is run, and nothing is downloaded.",
    ),
]
KVCache = Annotated[
    CacheForm,
    typer.Option("--kv-cache", help="What the keys and values of past tokens are kept in."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@dataclass(frozen=True)
class Study:
    """What is tried with a model, for which CPU, and where: a group of options, see `spread`."""

    scope: Scope = "auto"
    target: Target = None
    engine: Engine = None


@dataclass(frozen=True)
class Reading:
    """How DATA is read: a group of options, see `spread`."""

    batch_size: Annotated[
        int,
        typer.Option("--batch-size", help="Samples in a batch, where DATA is a file or folder."),
    ] = 64
    image_size: Annotated[
        int,
        typer.Option(
            "--image-size",
            help="For a folder of images: their shorter side is resized to this, and their centre "
            "cut out.",
        ),
    ] = 224
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            metavar="NUMBERS",
            help="For a folder of images: the mean of their pixels, which are 0 to 1; for each "
            "channel, separated by commas, or one for all [ImageNet's].",
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            "--std",
            metavar="NUMBERS",
            help="For a folder of images: the standard deviation, as --mean [ImageNet's].",
        ),
    ] = None
    gray: Annotated[
        bool, typer.Option("--gray", help="For a folder of images: read them with one channel.")
    ] = False

    def load(self, source: str, model: nn.Module, *, raw: bool = False) -> Iterable[Any]:
        """Batches from a DATA argument.

        Args:
            source: the argument.
            model: the float or the quantized model that they are for.
            raw: whether the model takes pixels as they are, so that nothing is to be normalized.

        Raises:
            InputError: the numbers cannot be used, or the source.
        """
        from octavo.cli.sources.data_source import load_data
        from octavo.graph.batches import Signature
        from octavo.model.model import QuantizedModel

        signature = model.signature if isinstance(model, QuantizedModel) else Signature.of(model)
        return load_data(source, signature, self.batch_size, self.images(raw))

    def images(self, raw: bool) -> ImageOptions:
        """What the options about images mean together."""
        from octavo.cli.sources.image_folder import ImageOptions
        from octavo.errors import InputError

        if raw and (self.mean is not None or self.std is not None):
            raise InputError(
                "--mean and --std are for models that take floats; this one takes pixels and "
                "normalizes them itself: leave them out"
            )
        mean, std = numbers_of("--mean", self.mean), numbers_of("--std", self.std)
        return ImageOptions(self.image_size, mean, std, self.gray, raw)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: a group of options becomes an option for each of its fields.

    Args:
        command: a function some of whose parameters are dataclasses of options.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {
        p.name: p.annotation for p in parameters if is_dataclass(p.annotation)
    }

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    options = [option for parameter in parameters for option in _options(parameter)]
    vars(called)["__signature__"] = inspect.Signature(options)
    return called


def _options(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """A parameter itself, or one for each field of its group."""
    group = parameter.annotation
    if not is_dataclass(group):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    kinds = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield parameter.replace(
            name=field.name,
            kind=inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=kinds[field.name],
        )


def names_of(text: str | None) -> list[str] | None:
    """The names in a text such as ``"torch,openvino"``."""
    return None if text is None else [name.strip() for name in text.split(",")]


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


def lines_of(option: str, path: str) -> list[str]:
    """The lines of a text file that hold something.

    Raises:
        InputError: it cannot be read.
    """
    from pathlib import Path

    from octavo.errors import InputError

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} is {path!r}, which cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
