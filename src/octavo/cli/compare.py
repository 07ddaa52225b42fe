"""``octavo compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.app import console, print_json, print_text
from octavo.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    BatchSize,
    Gray,
    ImageSize,
    JsonFlag,
    Mean,
    MetricOption,
    Std,
    Weights,
    image_options,
    metric_of,
    takes_pixels,
)


def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The .octavo files made from it.")
    ],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)],
    weights: Weights = None,
    metric: MetricOption = None,
    runtimes: Annotated[
        str, typer.Option("--runtimes", help="Runtimes of the files, separated by commas.")
    ] = "torch",
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of every contender [torch's own number]."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", min=1, help="How often each contender is timed [about ten seconds]."
        ),
    ] = None,
    cold_start: Annotated[
        bool,
        typer.Option("--cold-start", help="Load time and peak memory too, in new processes."),
    ] = False,
    batch_size: BatchSize = 64,
    image_size: ImageSize = 224,
    mean: Mean = None,
    std: Std = None,
    gray: Gray = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare fp32, bf16 and quantized files: size, accuracy and speed, side by side.

    **Example:** `octavo compare mymodels:build m.octavo --weights w.safetensors --data test.npz`
    """
    from octavo.cli.sources.data_source import load_data
    from octavo.cli.sources.model_source import load_model
    from octavo.graph.batches import Signature
    from octavo.measuring.comparison import compare as compare_models
    from octavo.model.model import load

    network = load_model(model, weights)
    names = [name.strip() for name in runtimes.split(",")]
    models = {file: load(file, runtime=names[0]) for file in files}
    first = models[files[0]]
    stems = [Path(file).stem for file in models]
    labels = stems if len(set(stems)) == len(stems) else list(models)
    images = image_options(image_size, mean, std, gray, raw=takes_pixels(first))
    result = compare_models(
        network,
        first if len(models) == 1 else dict(zip(labels, models.values(), strict=True)),
        load_data(data, Signature.of(network), batch_size, images),
        metric=metric_of(metric),
        runtimes=names,
        threads=threads,
        rounds=rounds,
        cold_starts=cold_start,
        progress=not (as_json or markdown),
    )
    if as_json:
        print_json(result.to_dict())
    elif markdown:
        print_text(result.to_markdown())
    else:
        screen = console()
        screen.print(result)
        screen.print(result.verdict(), style="bold", highlight=False)
