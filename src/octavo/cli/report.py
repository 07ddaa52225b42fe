"""``octavo report``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def report(
    model: options.Model,
    file: options.FileOfModel,
    data: options.Data,
    *,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="HTML", help="The page to write.")
    ] = "report.html",
    weights: options.Weights = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA",
            help="Calibration data, as octavo quantize took it: the page then "
            "shows which layers hurt most.",
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search", metavar="JSON", help="A file of what octavo search --json printed."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Title of the page [FILE].")] = None,
    metric: options.Metric = None,
    limit: Annotated[
        int,
        typer.Option("--limit", min=1, help="Number of batches for layer errors and histograms."),
    ] = 8,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Write all that is known of a quantized model on one page of HTML, which needs no network.

    **Example:** `octavo report mymodels:build m.octavo --data test.npz -o report.html`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.measuring.layers import sensitivity
    from octavo.measuring.regions import graphs_in, plan_of
    from octavo.model.files.atomic import require_file
    from octavo.model.verbs import load_beside
    from octavo.reporting import report as report_on
    from octavo.searching import SearchResult

    require_file(out)
    network = load_model(model, weights)
    q = load_beside(file, network, "torch")
    pixels = getattr(q, "pixels", None) is not None
    batches = reading.load(data, network, raw=pixels)
    tried = None if search is None else SearchResult.read(search)
    ranked = None
    graphs = graphs_in(q)
    if calibration is not None and graphs:
        plan = plan_of(graphs)
        ranked = sensitivity(
            network,
            calibration=reading.load(calibration, network),
            data=reading.load(data, network) if pixels else batches,
            metric=options.metric_of(metric),
            mode=plan.mode,
            target=plan.target,
            scope="model" if "" in graphs else "regions",
            only=None if "" in graphs else list(graphs),
            progress=not as_json,
        )
    found = report_on(
        network,
        q,
        batches,
        title=title or file,
        sensitivity=ranked,
        search=tried,
        metric=options.metric_of(metric),
        batches=limit,
        labels=getattr(batches, "classes", None) or None,
        progress=not as_json,
    )
    found.to_html(out)
    if as_json:
        print_json({"file": out, **found.to_dict()})
        return
    console().print(found.decision.sentence, style="bold", highlight=False)
    console().print(found.verdict(), highlight=False)
    console().print(f"{out}: open it in a browser", highlight=False, soft_wrap=True)
