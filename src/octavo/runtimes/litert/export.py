"""A quantized graph as a LiteRT model.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from octavo.errors import ExportError
from octavo.graph.fixed_sizes import with_fixed_sizes
from octavo.graph.graph import Graph, Input, Node, Ref
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE
from octavo.quantization.bfloat16 import in_float32
from octavo.runtimes.litert.arena import arena_bytes
from octavo.runtimes.litert.converters import converter_of, is_unwritten
from octavo.runtimes.litert.flatbuffer import TYPES
from octavo.runtimes.litert.metadata import NAME, Metadata
from octavo.runtimes.litert.on_integers import rounding_on_integers
from octavo.runtimes.litert.rounding import form_of
from octavo.runtimes.litert.signed import with_signed_activations
from octavo.runtimes.litert.values import Form, Made, Value
from octavo.runtimes.litert.writer import Writer
from octavo.version import __version__


@dataclass(frozen=True)
class Entry:
    """An input or output of a file.

    Attributes:
        name: in the signature.
        value: its tensor.
        rounded: whether that holds integers where the model itself takes or returns floats.
    """

    name: str
    value: Value
    rounded: bool = False

    def __str__(self) -> str:
        """Type and sizes, in the file's order of axes: ``"float32[1, 32, 32, 3]"``."""
        return f"{self.value.form.dtype}{list(self.value.shape)}"


@dataclass(frozen=True)
class Written:
    """A file's content, and what it is made of.

    Attributes:
        data: the content.
        inputs, outputs: in the graph's order.
        kernels: node of the graph -> the operators that it became, each with its numbers.
        arena: bytes that its values take while it runs.
        made: rounding of the graph -> the operators that give its integers.
    """

    data: bytes
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]
    kernels: Mapping[str, Sequence[str]]
    arena: int = 0
    made: Mapping[str, Sequence[Made]] = field(default_factory=dict)


def example_shapes(graph: Graph) -> list[tuple[int, ...]]:
    """The inputs' shapes in a file: one sample, and where sizes are open the example's."""
    return [
        tuple(1 if axis == entry.batch_axis else size for axis, size in enumerate(entry.sizes))
        for entry in graph.inputs
    ]


def to_tflite(
    graph: Graph,
    shapes: Sequence[Sequence[int]] | None = None,
    *,
    full_integer: bool = False,
    metadata: Metadata | None = None,
) -> Written:
    """The content of a .tflite file of a quantized graph.

    Args:
        graph: in canonical QDQ form.
        shapes: of the inputs; ``None`` for `example_shapes`.
        full_integer: whether the file takes and gives integers where the model rounds what it gets
            first and returns last, and no floats.
        metadata: what the file says of its ends.

    Raises:
        ExportError: an operator has no form in LiteRT, or the metadata does not fit.
    """
    sized = with_fixed_sizes(in_float32(graph), shapes or example_shapes(graph))
    sized = with_signed_activations(sized)
    missing = {
        node.op: node.name
        for node in sized.nodes
        if not is_unwritten(node) and converter_of(node) is None
    }
    if missing:
        listed = ", ".join(f"{op} (first in {where!r})" for op, where in missing.items())
        raise ExportError(f"no LiteRT form is known for {listed}; {_OTHERS}")
    writer = Writer(sized, _write, for_boards=full_integer)
    inputs = [_entry(writer, entry, full_integer) for entry in sized.inputs]
    for node in _needed(sized):
        _write(writer, node)
    outputs = _outputs(writer, full_integer)
    about = {"octavo": __version__.encode()}
    if metadata:
        metadata.check(sized.inputs[0].meta.dtype, inputs[0].value.shape, outputs[0].value.shape)
        about[NAME] = metadata.packed(*(_shapes(entries) for entries in (inputs, outputs)))
    data = writer.model.serialized(_numbered(inputs), _numbered(outputs), about)
    data = metadata.with_files(data) if metadata else data
    ends = [[entry.value.index for entry in entries] for entries in (inputs, outputs)]
    arena = arena_bytes(writer.model.lifetimes(*ends))
    return Written(data, tuple(inputs), tuple(outputs), writer.kernels, arena, writer.made)


def _named(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Entries, each under a name of its own."""
    named: dict[str, Entry] = {}
    for entry in entries:
        name = entry.name if entry.name not in named else f"{entry.name}.{len(named)}"
        named[name] = entry
    return named


def _numbered(entries: Sequence[Entry]) -> dict[str, int]:
    """The tensors of a signature."""
    return {name: entry.value.index for name, entry in _named(entries).items()}


def _shapes(entries: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    return {name: entry.value.shape for name, entry in _named(entries).items()}


_OTHERS = "octavo.export_onnx may have one, and the runtimes 'torch' and 'reference' run it"


def _needed(graph: Graph) -> list[Node]:
    """The nodes that have operators of their own."""
    return [node for node in graph.nodes if not is_unwritten(node)]


def _write(w: Writer, node: Node) -> None:
    if node.name in w.done:
        return
    rounding = rounding_on_integers(w.graph, node, w.for_boards)
    w.start(node.name, rounding)
    converter = converter_of(node)
    assert converter is not None
    try:
        w.finish(node, converter(w, node))
    except ExportError as error:
        raise ExportError(
            f"{node.name!r} ({node.op}) has no LiteRT form: {error}; {_OTHERS}"
        ) from error


def _entry(w: Writer, entry: Input, integer: bool) -> Entry:
    """An input; images have their channels last, as all files have them."""
    w.start(entry.name, None)
    readers = w.graph.users[entry.name]
    form, name = Form(entry.meta.dtype), entry.name
    if form.dtype not in TYPES:
        raise ExportError(f"the input {entry.name!r} is {form.dtype}, which LiteRT has not")
    if integer and readers and all(reader.op == QUANTIZE for reader in readers):
        form, name = form_of(readers[0]), readers[0].name
    value = w.entry(entry.name, entry.meta, form, is_image(w.graph, entry))
    w.keep(name, value)
    w.done |= {reader.name for reader in readers if name == reader.name}
    return Entry(entry.name, value, rounded=name != entry.name)


def _outputs(w: Writer, integer: bool) -> list[Entry]:
    made: dict[int, int] = {}
    entries = []
    for name in w.graph.output_names():
        w.start(name, None)
        producer = w.graph.by_name.get(name)
        by_integers = integer and producer is not None and producer.op == DEQUANTIZE
        source = producer.args[0] if by_integers and producer is not None else Ref(name)
        value = w.read_floats(source)
        if w.is_entry(value) or value.index in made:  # each result is a tensor of its own
            value = w.copied(value)
        made[value.index] = len(made)
        entries.append(Entry(_layer_of(w.graph, name), value, by_integers))
    return entries


def _layer_of(graph: Graph, name: str) -> str:
    """The layer that makes a result, in front of its rounding."""
    node = graph.by_name.get(name)
    while node is not None and node.op in (DEQUANTIZE, QUANTIZE):
        name = node.args[0].name
        node = graph.by_name.get(name)
    return name


_IMAGES = frozenset(
    """
    conv2d conv_transpose2d max_pool2d avg_pool2d adaptive_avg_pool2d upsample_nearest2d
    upsample_bilinear2d pixel_shuffle
    """.split()
)


def is_image(graph: Graph, entry: Input) -> bool:
    """Whether an input has channels that files have last: it reaches a layer of images as it is."""
    if len(entry.meta.shape) != 4:
        return False
    reached, looked = [entry.name], {entry.name}
    while reached:
        for reader in graph.users[reached.pop()]:
            if reader.short_op in _IMAGES:
                return True
            if reader.short_op in _AS_THEY_ARE and reader.name not in looked:
                looked.add(reader.name)
                reached.append(reader.name)
    return False


_AS_THEY_ARE = frozenset(
    "quantize dequantize fake_quantize_dynamic add sub mul div pad constant_pad_nd cat".split()
)
