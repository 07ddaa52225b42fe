"""Which search is it? All that its trials depend on, so that no other takes them for its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from types import CellType, CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.graph.batches import Signature, split_batch
from octavo.graph.graph import Graph
from octavo.measuring.machine import describe_machine
from octavo.version import __version__

_NEAR = 1.25  # the ratio of two root mean squares of data that is drawn anew at each pass


def circumstances() -> dict[str, Any]:
    """Versions, and what latencies depend on."""
    machine = describe_machine()
    return {
        "octavo": __version__,
        "torch": torch.__version__,
        "machine": f"{machine['cpu']}, {machine['isa']}, {torch.get_num_threads()} threads",
    }


def of_model(model: nn.Module) -> str:
    """A short hash of a model's parameters and buffers and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def of_graphs(graphs: Iterable[Graph]) -> str:
    """A short hash of what a model computes."""
    digest = hashlib.sha256()
    for graph in graphs:
        digest.update(repr((graph.nodes, graph.outputs)).encode())
    return digest.hexdigest()[:16]


def of_data(
    batches: Iterable[Any] | None, signature: Signature, inputs: Callable[[Any], Any] | None
) -> Any:
    """What samples there are, in whatever order, labels included.

    Data that is drawn or changed at random differs at each pass; of such data only the number of
    samples and their size can be told.
    """
    if batches is None:
        return None
    (count, digest, size), (_, again, _) = (
        _pass_over(batches, signature, inputs) for _ in range(2)
    )
    if digest == again:
        return f"{count} samples {digest:016x}"
    return [f"{count} samples, drawn anew at each pass", size]


def of_functions(**functions: Any) -> dict[str, str | None]:
    """Those that are given, in words; texts are names of our own functions."""
    return {
        name: function if isinstance(function, str) else of_function(function)
        for name, function in functions.items()
    }


def of_function(function: Callable[..., Any] | None) -> str | None:
    """A name, and a short hash of its code and of the numbers and texts that it uses."""
    if function is None:
        return None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    digest = hashlib.sha256(repr(list(_code_of(function))).encode())
    return f"{name} {digest.hexdigest()[:8]}"


def alike(one: Any, other: Any) -> bool:
    """Whether two entries are of the same search."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == 2:
        sizes = [one[1], other[1]]
        if not all(isinstance(size, float) and size > 0 for size in sizes):
            return bool(one == other)
        return bool(one[0] == other[0]) and abs(math.log(sizes[0] / sizes[1])) < math.log(_NEAR)
    return bool(one == other)


def _pass_over(
    batches: Iterable[Any], signature: Signature, inputs: Callable[[Any], Any] | None
) -> tuple[int, int, float]:
    """Number of samples, the sum of their hashes, and the root mean square of what is float."""
    count = digest = values = 0
    squares = 0.0
    for batch in batches:
        call = split_batch(batch, signature, inputs)
        leaves = pytree.tree_leaves((call.args, call.kwargs, call.labels))
        for sample in _samples(leaves):
            count += 1
            digest = (digest + int.from_bytes(hashlib.sha256(sample).digest()[:8], "big")) % 2**64
        for tensor in call.tensors:
            if tensor.is_floating_point():
                squares += float(tensor.float().square().sum())
                values += tensor.numel()
    return count, digest, math.sqrt(squares / values) if values else 0.0


def _samples(leaves: list[Any]) -> Iterator[bytes]:
    """The bytes of each sample of a batch; of the whole where its tensors have no common axis."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = repr([_plain(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]).encode()
    sizes = {tensor.shape[:1] for tensor in tensors}
    if len(sizes) != 1 or not tensors[0].dim():
        yield b"".join([*map(_bytes, tensors), others])
        return
    for rows in zip(*tensors, strict=True):
        yield b"".join([*map(_bytes, rows), others])


def _bytes(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    kind = f"{tensor.dtype}{list(tensor.shape)}".encode()
    return kind + values.view(torch.uint8).numpy().tobytes()


def _code_of(function: Any) -> Iterator[Any]:
    """Byte code and constants of a function, and of those inside it; closures and defaults."""
    inner = getattr(function, "func", None)  # of functools.partial
    if inner is not None:
        yield from _code_of(inner)
        yield _plain((function.args, sorted(function.keywords.items())))
        return
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:  # an object that is called
        code = getattr(type(function).__call__, "__code__", None)
    if isinstance(code, CodeType):
        yield from _parts_of(code)
    yield _plain(getattr(function, "__defaults__", None) or ())
    cells = getattr(function, "__closure__", None) or ()
    yield [_plain(_contents(cell)) for cell in cells]


def _contents(cell: CellType) -> Any:
    """Numbers and texts; what can change in place has changed when a search goes on."""
    try:
        value = cell.cell_contents
    except ValueError:  # it was deleted
        return None
    return value if isinstance(value, int | float | str) else type(value).__qualname__


def _parts_of(code: CodeType) -> Iterator[Any]:
    yield code.co_code.hex(), code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts_of(constant)
        else:
            yield _plain(constant)


def _plain(value: Any) -> Any:
    """What is the same in another process: no addresses of objects, no order of sets."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    return type(value).__qualname__
