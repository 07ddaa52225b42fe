"""``octavo debug``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from octavo.analysis.layer_errors import LayerError, LayerErrors
    from octavo.plan import Plan

_WORST = 3  # layers to think about first; more would be no advice


def debug(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The .octavo file made from it.")],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)],
    weights: Weights = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Look at the first so many batches [all]."),
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
    from octavo.analysis.layer_errors import layer_errors
    from octavo.batches import Signature
    from octavo.data_source import load_data
    from octavo.model import load
    from octavo.model_source import load_model

    network = load_model(model, weights)
    q = load(file, runtime="reference")  # rounding is the file's, whatever this CPU runs in float
    images = image_options(image_size, mean, std, gray, raw=takes_pixels(q))
    batches = load_data(data, Signature.of(network.forward), batch_size, images)
    some = batches if limit is None else islice(batches, limit)
    errors = layer_errors(network, q, some, progress=not as_json)
    if as_json:
        print_json(errors.to_dict())
        return
    screen = console()
    screen.print(errors)
    worst = _worst(errors, q.plan)
    if worst:
        screen.print(_advice(worst, q.plan), highlight=False, markup=False, soft_wrap=True)


def _worst(errors: LayerErrors, plan: Plan) -> list[LayerError]:
    """The worst that round by themselves: not inputs, nor what only moves integers about."""
    rows = errors.worst(len(errors.rows))
    own = (row for row in rows if plan.tensors[row.tensor].shares is None)
    return [row for row in own if plan.tensors[row.tensor].runs not in ("", "float")][:_WORST]


def _advice(worst: list[LayerError], plan: Plan) -> str:
    layers = ", ".join(f"{row.tensor} ({row.sqnr_db:.1f} dB)" for row in worst)
    rules = "\n".join(
        f'    .set_module_name("{name}", None)' for row in worst for name in _parts(row, plan)
    )
    return (
        f"Worst by themselves: {layers}. To keep them in float, give octavo.quantize\n\n"
        f"qconfig = (\n    octavo.QConfigMapping()\n{rules}\n)"
    )


def _parts(row: LayerError, plan: Plan) -> list[str]:
    """What its kernel computes: a rule for the activation alone would leave the layer in int8."""
    inner = [name for name, tensor in plan.tensors.items() if tensor.fused_into == row.tensor]
    return [*inner, row.tensor]
