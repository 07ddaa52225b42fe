"""``octavo compare``."""

from __future__ import annotations

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


def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The .octavo file made from it.")],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)],
    weights: Weights = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="top1, top5, or package.module:name of a function (outputs, labels) -> float "
            "[top1 where there are labels].",
        ),
    ] = None,
    runtimes: Annotated[
        str, typer.Option("--runtimes", help="Runtimes of the file, separated by commas.")
    ] = "torch",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of torch [as it is].")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="Turns of each contender [about ten seconds]."),
    ] = None,
    batch_size: BatchSize = 64,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare fp32, bf16 and int8: size, accuracy and speed, side by side.

    **Example:** `octavo compare mymodels:build m.octavo --weights w.safetensors --data test.npz`
    """
    from octavo.batches import Signature
    from octavo.compare import compare as compare_models
    from octavo.data_source import load_data
    from octavo.model import load
    from octavo.model_source import load_model
    from octavo.references import is_reference, resolve_reference

    network = load_model(model, weights)
    names = [name.strip() for name in runtimes.split(",")]
    result = compare_models(
        network,
        load(file, runtime=names[0]),
        load_data(data, Signature.of(network.forward), batch_size),
        metric=resolve_reference(metric) if metric and is_reference(metric) else metric,
        runtimes=names,
        threads=threads,
        rounds=rounds,
        progress=not (as_json or markdown),
    )
    if as_json:
        print_json(result.to_dict())
    elif markdown:
        typer.echo(result.to_markdown())
    else:
        screen = console()
        screen.print(result)
        screen.print(result.verdict(), style="bold", highlight=False)
