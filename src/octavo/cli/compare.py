"""``octavo compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json, print_text


def compare(
    model: options.Model,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The .octavo files made from it.")
    ],
    data: options.Data,
    *,
    weights: options.Weights = None,
    metric: options.Metric = None,
    runtimes: Annotated[
        str, typer.Option("--runtimes", help="Runtimes of the files, separated by commas.")
    ] = "torch",
    threads: options.Threads = None,
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
    reading: options.Reading,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare fp32, bf16 and quantized files: size, accuracy and speed, side by side.

    **Example:** `octavo compare mymodels:build m.octavo --weights w.safetensors --data test.npz`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.measuring.comparison import compare as compare_models
    from octavo.model.verbs import load_beside

    network = load_model(model, weights)
    names = [name.strip() for name in runtimes.split(",")]
    models = {file: load_beside(file, network, names[0]) for file in files}
    first = models[files[0]]
    stems = [Path(file).stem for file in models]
    labels = stems if len(set(stems)) == len(stems) else list(models)
    result = compare_models(
        network,
        first if len(models) == 1 else dict(zip(labels, models.values(), strict=True)),
        reading.load(data, network, raw=getattr(first, "pixels", None) is not None),
        metric=options.metric_of(metric),
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
