"""`export_package`: a quantized model as a compiled library, and `load_package`, which runs it.

Inductor compiles the graph, lowered to torch's int8 kernels, ahead of time: loading the package
compiles nothing, and needs no compiler.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from octavo.arguments import FILE, PATH, expect
from octavo.errors import ArtifactError, ExportError, InputError, first_line
from octavo.graph.as_json import decode, decode_guards, decode_input, to_json
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.capture.torch_export import EXPORTING
from octavo.graph.graph import Graph, Input
from octavo.graph.quiet import quiet
from octavo.model.files.atomic import replacing
from octavo.model.kinds import require_quantized
from octavo.quantization.nonfinite_inputs import Watched, refuse_bad_samples
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.runtime import check_device
from octavo.runtimes.torch.int8 import lower_to

if TYPE_CHECKING:
    from octavo.model.model import QuantizedModel

# Keys of a package's metadata.
_CALL, _WATCHED, _TORCH = "octavo.call", "octavo.watched", "octavo.torch"
_ENDING = ".pt2"


def export_package(q: QuantizedModel, path: str | os.PathLike[str]) -> None:
    """Compile the model into a ``.pt2`` package of torch's AOTInductor: a shared library.

    It runs on the CPU, on machines with the same instructions as this one and with the same version
    of torch, for any batch size. Compiling takes a C++ compiler and half a minute or more.
    Convolutions in 1-d and 3-d, and transposed ones, run in float there.

    Args:
        q: the model.
        path: the file, which ends in ``.pt2``; it is there whole or not at all.

    Raises:
        ExportError: the file has another ending, or torch cannot compile the model.
        RuntimeUnavailable: the model is not on the CPU.
        ArtifactError: the file cannot be written.

    Example:
        >>> octavo.export_package(q, "model.pt2")
    """
    require_quantized(q, "export_package")
    expect(PATH, path=path)
    if Path(path).suffix != _ENDING:
        raise ExportError(f"{os.fspath(path)}: the name of a package ends in {_ENDING}")
    graph = q.graph
    check_device("package", q.device)
    run = lower_to(graph, "package").run
    call = to_json(replace(graph, nodes=(), constants={}))
    watched = Watched.of(graph)
    metadata = {
        _CALL: json.dumps(call),
        _WATCHED: json.dumps(list(vars(watched).values())),
        _TORCH: torch.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, f"model{_ENDING}")
        try:
            with quiet(), torch.no_grad():
                with EXPORTING:
                    program = torch.export.export(
                        _Flat(run),
                        random_inputs(graph),
                        dynamic_shapes=[tuple(map(_open_sizes, graph.inputs))],
                        strict=False,
                    )
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(compiled),
                    inductor_configs={"aot_inductor.metadata": metadata},
                )
        except Exception as error:  # the compiler's errors share no base
            raise ExportError(
                f"torch cannot compile the model into a package: {first_line(error)}; the runtimes "
                "'torch' and 'inductor' run it without one"
            ) from error
        with replacing(path) as temporary:
            shutil.copyfile(compiled, temporary)


def load_package(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """The function in a package: it is called as the float model was.

    It refuses inputs with NaN or an infinity in them (`InputError`), since a package cannot compute
    such samples without rounding, as a `QuantizedModel` does.

    Loading a package **runs the code in it**, a compiled library that can do anything you can: load
    only files that you made. `octavo.load` never loads one.

    Args:
        path: a ``.pt2`` file of `export_package`.

    Returns:
        The function.

    Raises:
        ArtifactError: the file is missing, no package of Octavo's, or of another version of torch.

    Example:
        >>> octavo.export_package(q, "model.pt2")
        >>> octavo.load_package("model.pt2")(images).shape
        torch.Size([64, 10])
    """
    expect(FILE, path=path)
    try:
        library = torch._inductor.aoti_load_package(os.fspath(path))
        metadata = library.loader.get_metadata()
        made_with, graph = metadata[_TORCH], _graph_of(json.loads(metadata[_CALL]))
        watched = Watched(*map(tuple, json.loads(metadata[_WATCHED])))
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} is not a package of octavo.export_package, or is damaged: "
            f"{first_line(error)}"
        ) from error
    if made_with != torch.__version__:
        raise ArtifactError(
            f"{os.fspath(path)} was made with torch {made_with}, this is {torch.__version__}: "
            "export it again from the .octavo file"
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = flatten_call(graph, args, kwargs)
        if not watched.are_fine(tensors):
            refuse_bad_samples(graph, watched, tensors)
        try:
            results = library(*(tensor.contiguous() for tensor in tensors))
        except RuntimeError as error:
            raise InputError(
                f"the package cannot run on these inputs: {first_line(error)}"
            ) from error
        return build_output(graph, results)

    return call


class _Flat(nn.Module):
    """A function of tensors as a module, which torch.export asks for."""

    def __init__(self, run: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        return self.run(*tensors)


def _open_sizes(entry: Input) -> dict[int, Any]:
    """The axes whose size is free: torch refuses a model that makes a constant of one."""
    return {axis: Dim.DYNAMIC for axis, size in enumerate(entry.meta.shape) if size is None}


def _graph_of(call: Any) -> Graph:
    """What is left of the graph: how it is called and what it returns."""
    inputs = [decode_input(*item) for item in call["inputs"]]
    arguments = {name: decode(tree) for name, tree in call["arguments"]}
    guards = decode_guards(call, inputs)
    return Graph(tuple(inputs), {}, (), arguments, decode(call["outputs"]), guards)
