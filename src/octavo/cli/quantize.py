"""``octavo quantize``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json
from octavo.cli.language_folder import mapping_of_rules, quantize_language_model


def quantize(
    model: options.Model,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file to write; of hf:PATH the folder."
        ),
    ],
    *,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA",
            help="Calibration data; modes other than static use only its first batch; hf:PATH "
            f"takes a file of text. {options.DATA_HELP}",
        ),
    ] = None,
    weights: options.Weights = None,
    target: options.Target = None,
    mode: options.ModeOption = options.Mode.static,
    bits: Annotated[
        int, typer.Option("--bits", help="Bits of the weights in mode weight_only: 8 or 4.")
    ] = 8,
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size", help="Number of input channels that share a scale, with --bits."
        ),
    ] = None,
    scope: options.Scope = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Precision of what stays float: float32, bfloat16, or auto, "
            "which is bfloat16 on CPUs that have instructions for it.",
        ),
    ] = "float32",
    effort: Annotated[
        str,
        typer.Option(
            "--effort",
            help="With calibration data: fast, or balanced or best, which try methods one after "
            "the other and keep each that held-back calibration data say is nearer to float.",
        ),
    ] = "fast",
    input_scale: Annotated[
        float | None,
        typer.Option(
            "--input-scale",
            help="The model takes uint8 pixels x and computes (x * scale - "
            "mean) / std from them itself; this is the scale [1 / 255 if a mean or std is given].",
        ),
    ] = None,
    input_mean: Annotated[
        str | None,
        typer.Option(
            "--input-mean",
            metavar="NUMBERS",
            help="The mean, for each channel, separated by commas, or one for all [0].",
        ),
    ] = None,
    input_std: Annotated[
        str | None,
        typer.Option(
            "--input-std",
            metavar="NUMBERS",
            help="The std, for each channel, separated by commas, or one for all [1].",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="NAME=FORM",
            help="For hf:PATH: modules with this name in their paths become int8, int4 (in groups "
            "of --group-size) or stay float: --rule self_attn=int8. May be given several times.",
        ),
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option("--batches", min=1, help="Number of batches to calibrate with [all]."),
    ] = None,
    reading: options.Reading,
    as_json: options.Json = False,
) -> None:
    """Quantize a model with calibration data and write it as one file.

    A language model in Hugging Face's layout, or a GGUF file, is named hf:PATH. It needs no data,
    may be larger than memory, and becomes a folder in that layout, for `octavo generate`,
    `octavo serve` and transformers.

    **Examples:**

    `octavo quantize mymodels:build --weights w.safetensors --calibration x.npz -o m.octavo`

    `octavo quantize model.pt2 --calibration mydata:batches --batches 100 -o m.octavo`

    `octavo quantize model.pt2 --calibration x.npz --mode weight_only --bits 4 --group-size 64
    -o m.octavo`

    `octavo quantize model.pt2 --calibration x.npz --input-mean 0.485,0.456,0.406
    --input-std 0.229,0.224,0.225 -o m.octavo`

    `octavo quantize model.pt2 --calibration x.npz --effort balanced -o m.octavo`

    `octavo quantize hf:SmolLM2-135M --mode weight_only --bits 4 --group-size 32
    --rule self_attn=int8 -o smol-int4`
    """
    from octavo.cli.sources.model_source import load_model
    from octavo.errors import InputError
    from octavo.flow.quantize import quantize as quantize_model
    from octavo.model.files.atomic import require_file
    from octavo.model.verbs import save, summary
    from octavo.quantization.targets import weight_only_qconfig
    from octavo.runtimes.cpu import host_target

    weight_only = mode is options.Mode.weight_only
    if not weight_only and (bits != 8 or group_size is not None):
        raise InputError("--bits and --group-size are for --mode weight_only")
    if model.startswith(options.HUGGING_FACE):
        if not weight_only or weights is not None:
            raise InputError(
                f"{model} is quantized by its weights alone: give --mode weight_only, and no "
                "--weights"
            )
        unread = {
            "--target": target,
            "--scope": None if scope == "auto" else scope,
            "--precision": None if precision == "float32" else precision,
            "--effort": None if effort == "fast" else effort,
            "--input-scale": input_scale,
            "--input-mean": input_mean,
            "--input-std": input_std,
        }
        option = next((name for name, given in unread.items() if given is not None), None)
        if option is not None:
            raise InputError(f"{model} takes no {option}: leave it out")
        quantize_language_model(
            model,
            output,
            mapping_of_rules(bits, group_size, rule or []),
            as_json,
            calibration,
            batches,
        )
        return
    if rule:
        raise InputError("--rule is for language models: hf:PATH")
    if calibration is None:
        raise InputError(
            "--calibration: name some data, in a file or as mydata:batches: static quantization "
            "takes ranges from it, and every mode sees by a batch how the model is called"
        )
    network = load_model(model, weights)
    require_file(output)
    raw = any(option is not None for option in (input_scale, input_mean, input_std))
    data = reading.load(calibration, network, raw=raw)
    target = target or host_target()
    q = quantize_model(
        network,
        calibration=data if batches is None else islice(data, batches),
        mode=mode.value,
        qconfig=weight_only_qconfig(bits, group_size=group_size) if weight_only else None,
        target=target,
        precision=precision,
        input_scale=input_scale,
        input_mean=options.numbers_of("--input-mean", input_mean),
        input_std=options.numbers_of("--input-std", input_std),
        progress=not as_json,
        scope=scope,
        effort=effort,
    )
    save(q, output)
    size, told = Path(output).stat().st_size, summary(q)
    if as_json:
        print_json({"file": output, "size_bytes": size, "target": target, **told.to_dict()})
        return
    screen = console()
    screen.print(told)
    screen.print(f"target {target}; {output} has {size / 1e6:.2f} MB", highlight=False)
