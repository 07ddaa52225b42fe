"""A model cut into blocks, wherever one value alone goes on.

Behind the sum that ends a residual block, or one half of a transformer's layer, nothing is read but
that sum: so these are blocks, and layers in a row are one each. Where values run past many layers
(U-Net), the model is cut behind each layer, and a block has several starts and ends.

Tested in tests/qat/test_reconstruction.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from octavo.graph.graph import Graph, Input, Ref

_MOST = 8  # layers of a block


@dataclass(frozen=True)
class Block:
    """What stands between values.

    Attributes:
        starts: those that it reads, which blocks before it make; inputs of the model come on top.
        ends: those that it makes: float tensors that are read behind it, or leave the model.
        layers: those in it whose weights are integers, in order.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The path that its layers have in common, or the first and the last of them."""
        if len(self.layers) == 1:
            return self.layers[0]
        parts = zip(*(layer.split(".") for layer in self.layers), strict=False)
        common = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, parts)]
        return ".".join(common) or f"{self.layers[0]} to {self.layers[-1]}"


def blocks_of(graph: Graph, layers: Collection[str]) -> list[Block]:
    """The blocks of a graph, in order.

    Args:
        graph: the canonical float graph.
        layers: the nodes whose weights are integers; what depends on none of them is in no block.
    """
    behind, last_read = _behind(graph, layers), _last_read(graph)
    crossing: list[str] = []
    single, several, stop = [], [], 0
    for at, node in enumerate(graph.nodes, 1):
        now = (*crossing, node.name)
        crossing = [name for name in now if name in behind and last_read.get(name, 0) > at]
        if node.name in behind and _is_float(graph, node.name):
            stop = at
        if node.name in crossing and all(_is_float(graph, name) for name in crossing):
            several.append(at)
            if len(crossing) == 1:
                single.append(at)
    blocks = []
    for piece in _pieces(graph, 0, [*single, stop], layers):
        many = len(_layers_in(graph, piece, layers)) > _MOST
        cuts = [at for at in several if many and piece.start < at < piece.stop]
        for part in _pieces(graph, piece.start, [*cuts, piece.stop], layers):
            blocks.append(_block(graph, part, behind, last_read, layers))
    return blocks


def part_of(graph: Graph, block: Block) -> Graph:
    """The graph from a block's starts to its ends: of the float graph, or of the quantized one.

    What is between the inputs of the model and the block, and depends on no layer, is in it too: a
    mask, say.
    """
    given = [Input(name, meta) for name in block.starts if (meta := graph.meta(name)) is not None]
    nodes = tuple(node for node in graph.nodes if node.name not in block.starts)
    ends = [Ref(name) for name in block.ends]
    inputs = (*graph.inputs, *given)
    part = replace(graph, inputs=inputs, nodes=nodes, outputs=ends, guards=()).pruned()
    read = {name for node in part.nodes for name in node.refs()}
    used = tuple(entry for entry in inputs if entry.name in read)
    return replace(part, inputs=used, arguments={entry.name: Ref(entry.name) for entry in used})


def _behind(graph: Graph, layers: Collection[str]) -> set[str]:
    """The values that depend on a layer."""
    behind: set[str] = set()
    for node in graph.nodes:
        if node.name in layers or not behind.isdisjoint(node.refs()):
            behind.add(node.name)
    return behind


def _last_read(graph: Graph) -> dict[str, int]:
    """Value -> the place of the last node that reads it, from 1 on."""
    return {name: at for at, node in enumerate(graph.nodes, 1) for name in node.refs()}


def _is_float(graph: Graph, name: str) -> bool:
    meta = graph.meta(name)
    return meta is not None and meta.dtype == "float32"


def _pieces(graph: Graph, start: int, cuts: Iterable[int], layers: Collection[str]) -> list[range]:
    """Nodes between cuts; those without a layer belong to the piece before them, or to the first
    that has one.
    """
    pieces: list[range] = []
    for cut in cuts:
        piece = range(start, cut)
        if not piece:
            continue
        if pieces and not _layers_in(graph, piece, layers):
            pieces[-1] = range(pieces[-1].start, cut)
        elif _layers_in(graph, piece, layers):
            pieces.append(piece)
        else:
            continue  # the next one begins where this does
        start = cut
    return pieces


def _layers_in(graph: Graph, piece: range, layers: Collection[str]) -> tuple[str, ...]:
    nodes = graph.nodes[piece.start : piece.stop]
    return tuple(node.name for node in nodes if node.name in layers)


def _block(
    graph: Graph,
    piece: range,
    behind: Collection[str],
    last_read: dict[str, int],
    layers: Collection[str],
) -> Block:
    nodes = graph.nodes[piece.start : piece.stop]
    made = {node.name for node in nodes}
    read: Sequence[str] = [name for node in nodes for name in node.refs()]
    return Block(
        tuple(name for name in dict.fromkeys(read) if name in behind and name not in made),
        tuple(
            node.name
            for node in nodes
            if node.name in behind
            and _is_float(graph, node.name)
            and (last_read.get(node.name, 0) > piece.stop or node.name in graph.leaving)
        ),
        _layers_in(graph, piece, layers),
    )
