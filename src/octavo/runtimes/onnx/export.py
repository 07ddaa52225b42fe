"""A quantized graph as an ONNX model.

Tested in tests/runtimes/onnx/test_zoo.py.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import ExportError
from octavo.graph.graph import Graph, Node
from octavo.quantization.bfloat16 import in_float32
from octavo.runtimes.onnx.converters import CONVERTERS, LAZY
from octavo.runtimes.onnx.dialect import Dialect
from octavo.runtimes.onnx.guards import with_squeezing_guarded, write_guards
from octavo.runtimes.onnx.late_rounding import with_late_rounding
from octavo.runtimes.onnx.unsigned import with_unsigned_activations
from octavo.runtimes.onnx.writer import Writer
from octavo.version import __version__


def to_onnx(graph: Graph, dialect: Dialect | None = None, name: str = "octavo") -> Any:
    """An ``onnx.ModelProto`` of a quantized graph.

    Args:
        graph: in canonical QDQ form.
        dialect: what a runtime wants to read.
        name: of the model.

    Raises:
        ExportError: it has operators that have no ONNX form; all are named.
    """
    dialect = dialect or Dialect()
    graph = with_squeezing_guarded(in_float32(graph), dialect)
    if dialect.late_rounding:
        graph = with_late_rounding(graph)
    if dialect.unsigned:
        graph = with_unsigned_activations(graph, dialect.symmetric)
    missing = {node.op: node.name for node in graph.nodes if converter_of(node) is None}
    if missing:
        listed = ", ".join(f"{op} (first in {where!r})" for op, where in missing.items())
        raise ExportError(
            f"no ONNX form is known for {listed}; the runtimes 'torch' and 'reference' run it"
        )
    writer = Writer(graph, dialect, convert_lazily=_convert)
    write_guards(writer)
    for node in graph.nodes:
        if node.op not in LAZY:
            _convert(writer, node)
    return writer.model(name, {"octavo": __version__})


def converter_of(node: Node) -> Any:
    """The function that writes a node; ``None`` where there is none."""
    return CONVERTERS.get(node.op.split(".")[0], {}).get(node.short_op)


def _convert(writer: Writer, node: Node) -> None:
    with writer.writing(node) as finish:
        finish(converter_of(node)(writer, node))
