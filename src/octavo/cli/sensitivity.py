"""``octavo sensitivity``."""

from __future__ import annotations

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
    MetricOption,
    Mode,
    ModeOption,
    Std,
    Target,
    Weights,
    image_options,
    metric_of,
)


def sensitivity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        str, typer.Option("--data", metavar="DATA", help=f"The data to measure on. {DATA_HELP}")
    ],
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration", metavar="DATA", help="Calibration data, as octavo quantize takes it."
        ),
    ],
    weights: Weights = None,
    metric: MetricOption = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Estimate instead of measuring layer by layer: much faster."
        ),
    ] = False,
    mode: ModeOption = Mode.static,
    target: Target = None,
    batch_size: BatchSize = 64,
    image_size: ImageSize = 224,
    mean: Mean = None,
    std: Std = None,
    gray: Gray = False,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", help="ray: measure on a Ray cluster, or on one that is started here."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rank the layers by what quantizing each does to the output, the most sensitive first.

    Stopped with Ctrl-C, it shows what it has seen so far.

    **Example:** `octavo sensitivity mymodels:build --calibration x.npz --data test.npz`
    """
    from octavo.cli.sources.data_source import load_data
    from octavo.cli.sources.model_source import load_model
    from octavo.graph.batches import Signature
    from octavo.measuring.layers.sensitivity import sensitivity as sensitivity_of
    from octavo.runtimes.cpu import host_target

    network = load_model(model, weights)
    signature = Signature.of(network)
    images = image_options(image_size, mean, std, gray)
    found = sensitivity_of(
        network,
        calibration=load_data(calibration, signature, batch_size, images),
        data=load_data(data, signature, batch_size, images),
        metric=metric_of(metric),
        exact=not estimate,
        mode=mode.value,
        target=target or host_target(),
        engine=engine,
        progress=not as_json,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        console().print(found)
