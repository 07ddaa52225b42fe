"""``octavo demo``. Tested in tests/cli/test_cli.py."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def demo(
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="DIR", callback=options.named, help="Folder for the results."
        ),
    ],
    mnist: Annotated[
        str | None,
        typer.Option(
            "--mnist",
            metavar="DIR",
            help="Folder with MNIST's four files, or an empty one: torchvision downloads them "
            "there; without it scikit-learn's digits are taken.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Epochs of training [8, MNIST: 1].")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="What the file will run on [this CPU].")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train a small network on handwritten digits, quantize it, and see what that did.

    Writes `model.octavo`, `comparison.json`, `report.html` and `training.png`, then loads the file
    in a fresh process and checks that its predictions are the same. For phones it writes
    `model.tflite` and `model.pte`, and runs them, where LiteRT and ExecuTorch are installed.

    **Example:** `octavo demo --out build/demo`
    """
    from octavo.cli.demo.demo import run_demo, silent

    screen = console()
    say = silent if as_json else lambda line: screen.print(line, highlight=False)
    result = run_demo(out, mnist=mnist, epochs=epochs, target=target, progress=not as_json, say=say)
    if as_json:
        print_json(result.to_dict())
        return
    screen.print(result.comparison)
    screen.print(result.comparison.verdict(), style="bold", highlight=False)
    screen.print(
        f"fresh process: {result.replay.samples} of {result.replay.samples} predictions the same\n"
        f"model.octavo, comparison.json, report.html and training.png are in {result.folder} "
        f"({result.seconds:.0f} s)",
        highlight=False,
    )
