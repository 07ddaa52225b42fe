"""The reference: a page for each group of public names, and one of all commands."""

from __future__ import annotations

import octavo

# Every public name stands in one group, which tests/test_website.py holds.
GROUPS: dict[str, tuple[str, str]] = {
    "quantize": ("Quantize", "quantize capture plan calibrate convert correct_biases"),
    "configure": (
        "Say what and where",
        "QConfig QConfigMapping QSpec Scheme QParams Plan Calibrated Calibration Pixels "
        "static_qconfig dynamic_qconfig weight_only_qconfig qat_qconfig host_target targets",
    ),
    "observers": (
        "Observers",
        "MinMax MovingAverageMinMax Percentile Histogram MSE Entropy FixedRange observers",
    ),
    "weights": (
        "Methods for weights",
        "WeightMethod BiasCorrection GPTQ AdaRound Reconstruction AWQ HQQ Clip SmoothQuant "
        "Rotation",
    ),
    "models": (
        "Quantized models and their files",
        "QuantizedModel save load lower summary artifact nn export_onnx export_package "
        "load_package export_tflite TfliteFile export_executorch ExecutorchFile",
    ),
    "measure": (
        "Measure",
        "compare Comparison layer_errors LayerErrors sensitivity Sensitivity distributions "
        "Distribution verify Parity bench Bench report Report plots",
    ),
    "search": ("Search", "search SearchResult"),
    "training": ("Train with rounding", "prepare_qat QATModel"),
    "language": (
        "Language models",
        "quantize_folder read_checkpoint write_checkpoint perplexity multiple_choice Question "
        "MultipleChoice",
    ),
    "errors": ("Errors", "OctavoError OctavoWarning"),
}
MODULES = ("targets", "observers", "artifact", "nn", "plots")
# What is public beside the names of `octavo` itself.
MORE = {
    "training": ("octavo.qat", "octavo.qat.lightning", "octavo.qat.transformers"),
    "errors": ("octavo.errors",),
}


def pages() -> dict[str, str]:
    """The pages, by their paths."""
    made = {f"reference/{name}.md": _page(name) for name in GROUPS}
    return made | {"reference/commands.md": commands()}


def _page(group: str) -> str:
    title, names = GROUPS[group]
    entries = [_entry(f"octavo.{name}") for name in names.split()]
    return "\n\n".join([f"# {title}", *entries, *map(_entry, MORE.get(group, ()))])


def _entry(path: str) -> str:
    return f"::: {path}"


def ungrouped() -> set[str]:
    """Public names that stand in no group, and names in groups that are not public."""
    grouped = {name for _, names in GROUPS.values() for name in names.split()}
    return grouped ^ {name for name in octavo.__all__ if name != "__version__"}


def commands() -> str:
    """What each command says of itself."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from octavo.cli import app

    parts = [
        "# Commands",
        "Where `octavo` is not on the path, `python -m octavo` is the same. Every command has "
        "`--json` for machines.",
    ]
    wide = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    for name in sorted(get_command(app).commands):  # type: ignore[attr-defined]
        told = CliRunner().invoke(app, [name, "--help"], env=wide, terminal_width=100)
        parts += [f"## octavo {name}", f"```text\n{told.output.strip()}\n```"]
    return "\n\n".join(parts)
