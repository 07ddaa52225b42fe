"""``octavo quantize``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.app import (
    DATA_HELP,
    MODEL_HELP,
    BatchSize,
    JsonFlag,
    Weights,
    console,
    print_json,
)


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    calibration: Annotated[
        str, typer.Option("--calibration", metavar="DATA", help=f"Calibration data. {DATA_HELP}")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")
    ],
    weights: Weights = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="What the file shall run on: x86 or x86-avx2 [this CPU]."),
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option("--batches", min=1, help="Calibrate with the first so many batches [all]."),
    ] = None,
    batch_size: BatchSize = 64,
    as_json: JsonFlag = False,
) -> None:
    """Quantize a model with calibration data and write it as one file.

    **Examples:**

    `octavo quantize mymodels:build --weights w.safetensors --calibration x.npz -o m.octavo`

    `octavo quantize model.pt2 --calibration mydata:batches --batches 100 -o m.octavo`
    """
    from octavo.atomic import require_writable
    from octavo.batches import Signature
    from octavo.data_source import load_data
    from octavo.model_source import load_model
    from octavo.quantize import quantize as quantize_model
    from octavo.runtimes.cpu import host_target

    network = load_model(model, weights)
    require_writable(Path(output).parent)
    data = load_data(calibration, Signature.of(network.forward), batch_size)
    q = quantize_model(
        network,
        calibration=data if batches is None else islice(data, batches),
        target=target or host_target(),
        progress=not as_json,
    )
    q.save(output)
    size = Path(output).stat().st_size
    if as_json:
        print_json(
            {"file": output, "size_bytes": size, "target": q.target, **q.summary().to_dict()}
        )
        return
    screen = console()
    screen.print(q.summary())
    screen.print(f"target {q.target}; {output} has {size / 1e6:.2f} MB", highlight=False)
