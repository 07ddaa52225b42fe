"""``octavo bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def bench(
    file: options.File,
    *,
    batches: Annotated[
        str, typer.Option("--batches", help="Batch sizes, separated by commas.")
    ] = "1,8,32",
    runtimes: options.Runtimes = None,
    threads: options.Threads = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Seconds of timing for each batch size.")
    ] = 10.0,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="For a file of a model with parts: package.module:name of the float model.",
        ),
    ] = None,
    data: options.SomeData = None,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Time a file on every runtime, beside fp32 and bf16: latency, throughput, memory, load time.

    Of a model with parts, the first batch of --data is timed.

    **Example:** `octavo bench m.octavo --batches 1,16`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.errors import InputError
    from octavo.graph.batches import Signature, split_batch
    from octavo.measuring.bench import bench as bench_file

    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError as error:
        raise InputError(f"--batches {batches!r}: give numbers, such as 1,8,32") from error
    names = options.names_of(runtimes)
    if data is not None and model is None:
        raise InputError(
            "--data is a call of the model that --model names, for a file of a model with parts: "
            "give that too, or leave --data out"
        )
    network, call = None if model is None else load_model(model, None), None
    if network is not None and data is not None:
        first = split_batch(next(iter(reading.load(data, network))), Signature.of(network))
        call = first.kwargs or first.args
    found = bench_file(
        file,
        batches=sizes,
        runtimes=names,
        threads=threads,
        seconds=seconds,
        progress=not as_json,
        model=network,
        example_inputs=call,
    )
    if as_json:
        print_json(found.to_dict())
        return
    screen = console()
    screen.print(found)
    for size in sorted({size for row in found.rows for size in row.latency_ms}):
        screen.print(f"fastest at batch {size}: {found.fastest(size)}", highlight=False)
