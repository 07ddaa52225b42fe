"""``octavo sensitivity``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import show


def sensitivity(
    model: options.Model,
    data: options.MeasuredData,
    calibration: options.Calibration,
    *,
    weights: options.Weights = None,
    metric: options.Metric = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Estimate instead of measuring layer by layer: much faster."
        ),
    ] = False,
    mode: options.ModeOption = options.Mode.static,
    study: options.Study,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Rank the layers by what quantizing each does to the output, the most sensitive first.

    Stopped with Ctrl-C, it shows what it has seen so far.

    **Example:** `octavo sensitivity mymodels:build --calibration x.npz --data test.npz`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.measuring.layers.sensitivity import sensitivity as sensitivity_of
    from octavo.runtimes.cpu import host_target

    network = load_model(model, weights)
    found = sensitivity_of(
        network,
        calibration=reading.load(calibration, network),
        data=reading.load(data, network),
        metric=options.metric_of(metric),
        exact=not estimate,
        mode=mode.value,
        scope=study.scope,
        target=study.target or host_target(),
        engine=study.engine,
        progress=not as_json,
    )
    show(found, as_json)
