"""``octavo debug``."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from octavo.cli.app import console, print_json
from octavo.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    BatchSize,
    Gray,
    ImageSize,
    JsonFlag,
    Mean,
    Std,
    Weights,
    image_options,
    takes_pixels,
)


def debug(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The .octavo file made from it.")],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)],
    weights: Weights = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Number of batches to look at [all]."),
    ] = None,
    batch_size: BatchSize = 64,
    image_size: ImageSize = 224,
    mean: Mean = None,
    std: Std = None,
    gray: Gray = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what rounding does to each layer, by itself and with all before it, and what to do.

    **Example:** `octavo debug mymodels:build m.octavo --weights w.safetensors --data test.npz`
    """
    from octavo.cli.sources.data_source import load_data
    from octavo.cli.sources.model_source import load_model
    from octavo.graph.batches import Signature
    from octavo.measuring.layers.layer_errors import layer_errors
    from octavo.measuring.layers.repair import repair_code, repairs
    from octavo.model.model import load

    network = load_model(model, weights)
    q = load(file, runtime="reference")  # rounding is the file's, whatever this CPU runs in float
    images = image_options(image_size, mean, std, gray, raw=takes_pixels(q))
    batches = load_data(data, Signature.of(network), batch_size, images)
    some = batches if limit is None else islice(batches, limit)
    errors = layer_errors(network, q, some, progress=not as_json)
    if as_json:
        print_json(errors.to_dict())
        return
    screen = console()
    screen.print(errors)
    worst = repairs(errors, q.plan)
    if worst:
        layers = ", ".join(f"{repair.layer} ({repair.reason})" for repair in worst)
        screen.print(
            f"Worst by themselves: {layers}. To keep them in float:\n\n"
            f"{repair_code(worst, q.plan)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
