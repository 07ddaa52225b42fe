"""What is known of a runtime, as one record, and the table of all.

The rest of Octavo asks the record, and knows no runtime by its name but the oracle's.

Tested in tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from octavo.arguments import meant
from octavo.errors import MissingExtra, RuntimeUnavailable
from octavo.graph.graph import Graph
from octavo.runtimes.lowered import Lowered
from octavo.runtimes.options import Options

if TYPE_CHECKING:
    from octavo.runtimes.onnx.dialect import Dialect

ORACLE = "reference"


@dataclass(frozen=True)
class OnnxReader:
    """How a runtime that reads ONNX files does so.

    Attributes:
        dialect: what it wants to read.
        load: the content of a file that was made of a graph, run as Octavo runs it.
        load_plainly: the same under the runtime's own settings, as others load it.
        settings: what ``load`` sets, in words: without it other numbers come out of some models.
        obstacle: why it cannot run a graph's file rightly on this CPU, as a clause; ``""`` where it
            can.
    """

    dialect: Dialect
    load: Callable[[bytes, Graph, Options], Lowered]
    load_plainly: Callable[[bytes, Graph], Lowered]
    settings: str
    obstacle: Callable[[Graph], str] = lambda graph: ""


@dataclass(frozen=True)
class Runtime:
    """A runtime: what makes a quantized graph ready for it, and what can be asked of it.

    A runtime's file ends in its record, ``RUNTIME``. Any other becomes known by an entry in
    `RUNTIMES`.

    Attributes:
        lower: from a graph in canonical QDQ form, the device that its tensors are on and the
            options that are asked for.
        options: those of `Options` that it has, besides the precision. One that has ``"threads"``
            has threads of its own, beside torch's.
        cpu_only: whether it runs nowhere else.
        bfloat16: whether it has kernels for it.
        islands: whether some layers may be in bfloat16 and others in float32.
        candidate: whether ``"fastest"`` tries it.
        package: imports the Python package that it needs, or raises `MissingExtra`.
        onnx: how it reads ONNX files, if it does.
        targets: those whose models it is for; ``None`` for all.
        sized: whether it makes a program for each size of its inputs, which takes long: others
            than the first one's are proved when they come.
        meaning: the graph that it computes in place of one which rounds as its kernels cannot, and
            by which its results are judged.
        kernels: other sets of kernels that may run its files, each a runtime of its own, which is
            called ``"name/set"`` and given to nobody who does not ask for it.

    Example:
        >>> from octavo.runtimes import RUNTIMES, Runtime
        >>> RUNTIMES["mine"] = Runtime(RUNTIMES["reference"].lower)
        >>> "mine" in RUNTIMES
        True
        >>> del RUNTIMES["mine"]
    """

    lower: Callable[[Graph, torch.device, Options], Lowered]
    options: tuple[str, ...] = ()
    cpu_only: bool = True
    bfloat16: bool = True
    islands: bool = True
    candidate: bool = True
    package: Callable[[], Any] | None = None
    onnx: OnnxReader | None = None
    targets: tuple[str, ...] | None = None
    sized: bool = False
    meaning: Callable[[Graph], Graph] = lambda graph: graph
    kernels: Mapping[str, Runtime] = field(default_factory=dict)


class _Runtimes(MutableMapping[str, Runtime]):
    """Records by name; Octavo's own are imported when they are first asked for."""

    def __init__(self, own: str) -> None:
        self._records: dict[str, Runtime | None] = dict.fromkeys(own.split())

    def __getitem__(self, name: str) -> Runtime:
        own, _, kernels = name.partition("/")
        record = self._records[own]
        if record is None:
            record = self._records[own] = import_module(f"octavo.runtimes.{own}").RUNTIME
        return record.kernels[kernels] if kernels else record

    def __setitem__(self, name: str, runtime: Runtime) -> None:
        self._records[name] = runtime

    def __delitem__(self, name: str) -> None:
        del self._records[name]

    def __contains__(self, name: object) -> bool:
        own, _, kernels = str(name).partition("/")
        # Nothing is imported for a runtime's own name.
        return own in self._records and (not kernels or kernels in self[own].kernels)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


# A name is that of the module (or folder) beside this one that has the record.
RUNTIMES = _Runtimes("reference torch inductor onnxruntime openvino executorch litert")


_ELSEWHERE = {
    **dict.fromkeys(("onnx", "ort"), "write 'onnxruntime'"),
    **dict.fromkeys(("cpu", "pytorch", "onednn", "x86", "eager"), "write 'torch'"),
    **dict.fromkeys(("compile", "aot"), "write 'inductor'"),
    **dict.fromkeys(("ov", "intel"), "write 'openvino'"),
    "tensorrt": "write an ONNX file for it, octavo.export_onnx(q, path), of target='tensorrt'",
}
"""What runtimes are called elsewhere, and what to write."""


def runtime_of(name: str, *others: str) -> Runtime:
    """The record of that name.

    Args:
        name: of the runtime.
        others: what else could have been asked for.

    Raises:
        RuntimeUnavailable: there is none.
        MissingExtra: a package that it cannot be imported without is not installed.
    """
    if name not in RUNTIMES:
        raise RuntimeUnavailable(
            f"there is no runtime {name!r}: {meant(name, (*RUNTIMES, *others), _ELSEWHERE)}"
        )
    return RUNTIMES[name]


def is_for(name: str, target: str) -> bool:
    """Whether a runtime is for models of a target; so is one whose package is missing."""
    try:
        targets = RUNTIMES[name].targets
    except MissingExtra:
        return True
    return targets is None or target in targets


def has_own_threads(name: str) -> bool:
    """Whether what runs under that name has threads beside torch's."""
    return name in RUNTIMES and "threads" in RUNTIMES[name].options


def check_device(runtime: str, device: torch.device) -> None:
    """Refuse models that are not on the CPU.

    Raises:
        RuntimeUnavailable: it is elsewhere.
    """
    if device.type != "cpu":
        raise RuntimeUnavailable(
            f"the {runtime} runtime runs on the CPU, the model is on {device}; "
            'use .lower("reference") there, or .to("cpu") first'
        )
