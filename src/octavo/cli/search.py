"""``octavo search``."""

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
    Std,
    Target,
    Weights,
    image_options,
    metric_of,
    named,
)


def search(
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
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="What the metric may lose, in its own unit.")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            callback=named,
            help="Folder for best.octavo and the trials; a search that stopped goes on from there.",
        ),
    ],
    weights: Weights = None,
    metric: MetricOption = None,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="Look for the smallest model, not the fastest.")
    ] = False,
    four_bits: Annotated[
        bool, typer.Option("--four-bits", help="Try weights of four bits too.")
    ] = False,
    time_budget: Annotated[
        float | None,
        typer.Option(
            "--time-budget", metavar="SECONDS", help="Stop after this many seconds [no limit]."
        ),
    ] = None,
    target: Target = None,
    batch_size: BatchSize = 64,
    image_size: ImageSize = 224,
    mean: Mean = None,
    std: Std = None,
    gray: Gray = False,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", help="ray: run trials on a Ray cluster, or on one that is started here."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find the fastest or smallest model whose metric falls by no more than it may.

    Killed and started again with the same folder, it repeats no finished trial.

    **Example:** `octavo search mymodels:build --calibration x.npz --data y.npz --max-drop 1 -o s`
    """
    from octavo.cli.sources.data_source import load_data
    from octavo.cli.sources.model_source import load_model
    from octavo.graph.batches import Signature
    from octavo.runtimes.cpu import host_target
    from octavo.searching.search import search as search_for

    network = load_model(model, weights)
    signature = Signature.of(network)
    images = image_options(image_size, mean, std, gray)
    found = search_for(
        network,
        calibration=load_data(calibration, signature, batch_size, images),
        data=load_data(data, signature, batch_size, images),
        metric=metric_of(metric),
        max_drop=max_drop,
        objective="smallest" if smallest else "fastest",
        four_bits=four_bits,
        target=target or host_target(),
        time_budget=time_budget,
        checkpoint=out,
        engine=engine,
        progress=not as_json,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        console().print(found)
    if found.model is None:
        raise typer.Exit(1)
