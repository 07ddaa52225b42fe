"""``octavo debug``."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def debug(
    model: options.Model,
    file: options.FileOfModel,
    data: options.Data,
    *,
    weights: options.Weights = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Number of batches to look at [all]."),
    ] = None,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Show what rounding does to each layer, by itself and with all before it, and what to do.

    **Example:** `octavo debug mymodels:build m.octavo --weights w.safetensors --data test.npz`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.measuring.layers.layer_errors import layer_errors
    from octavo.measuring.layers.repair import repair_code, repairs
    from octavo.model.loading import load

    network = load_model(model, weights)
    q = load(file, runtime="reference")  # rounding is the file's, whatever this CPU runs in float
    batches = reading.load(data, network, raw=q.pixels is not None)
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
