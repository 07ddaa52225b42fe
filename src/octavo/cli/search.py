"""``octavo search``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import show, tell


def search(
    model: options.Model,
    data: options.MeasuredData,
    calibration: options.Calibration,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="What the metric may lose, in its own unit.")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            callback=options.named,
            help="Folder for best.octavo and the trials; a search that stopped goes on from there.",
        ),
    ],
    *,
    weights: options.Weights = None,
    metric: options.Metric = None,
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
    study: options.Study,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Find the fastest or smallest model whose metric falls by no more than it may.

    Killed and started again with the same folder, it repeats no finished trial.

    **Example:** `octavo search mymodels:build --calibration x.npz --data y.npz --max-drop 1 -o s`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.runtimes.cpu import host_target
    from octavo.searching.search import search as search_for

    network = load_model(model, weights)
    try:
        found = search_for(
            network,
            calibration=reading.load(calibration, network),
            data=reading.load(data, network),
            metric=options.metric_of(metric),
            max_drop=max_drop,
            objective="smallest" if smallest else "fastest",
            four_bits=four_bits,
            target=study.target or host_target(),
            time_budget=time_budget,
            scope=study.scope,
            checkpoint=out,
            engine=study.engine,
            progress=not as_json,
        )
    except KeyboardInterrupt:
        tell(f"interrupted: the same command goes on; what was tried is kept in {out}")
        raise typer.Exit(130) from None
    show(found, as_json)
    if found.model is None:
        raise typer.Exit(1)
