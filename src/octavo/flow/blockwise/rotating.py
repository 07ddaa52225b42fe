"""`octavo.Rotation` at work: the hidden states of a model with RMS norms are turned.

What reads and what writes them is seen by running the blocks, and all is tried in the end.

Tested in tests/flow/blockwise/test_rotating.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError, InputError
from octavo.flow.blockwise.blocks import Chain, chains_of, recorded, without_cache
from octavo.flow.blockwise.events import Event, columns_of, watched
from octavo.flow.blockwise.finding_folds import rows_behind
from octavo.flow.blockwise.folds import alike
from octavo.flow.blockwise.model_folds import first_floats, shared_parameters
from octavo.flow.running import Calls, Run
from octavo.model.nn import quantized_form
from octavo.model.nn.experts import Experts, linears_of
from octavo.model.nn.float_layers import tensors_of
from octavo.model.nn.linear import Linear
from octavo.quantization.weights import Rotation, WeightMethod

OTHERWISE = "leave octavo.Rotation out of weights="
_AT_ONCE = 4096  # rows of a table, which are in float64 meanwhile

Turn = Callable[[Tensor], None]


def rotation_in(methods: Sequence[WeightMethod]) -> Rotation | None:
    """The rotation among methods, if there is one.

    Raises:
        InputError: it is not the first.
    """
    at = next((n for n, method in enumerate(methods) if isinstance(method, Rotation)), None)
    if at is None:
        return None
    if at:
        raise InputError("weights= has 'rotation' behind other methods: give it first")
    method = methods[at]
    assert isinstance(method, Rotation)
    return method


def rotate(model: nn.Module, methods: Sequence[WeightMethod], calls: Calls | None) -> list[str]:
    """Turn a model if one of the methods is a `Rotation`.

    Args:
        model: in float, changed in place.
        methods: as they were given.
        calls: of the model.

    Returns:
        What is to be said of it, a sentence each.

    Raises:
        CalibrationError: there is nothing to run the model on.
        InputError: it is not the first method, or the model cannot be turned.
    """
    method = rotation_in(methods)
    if method is None:
        return []
    if calls is None:
        raise CalibrationError(
            "'rotation' is tried on a batch, and there is none: give calibration= or example_inputs"
        )
    with torch.no_grad(), without_cache(model):
        return _rotate(model, method, calls.first[0])


def _rotate(model: nn.Module, method: Rotation, run: Run) -> list[str]:
    exact = first_floats(run(model))
    paths = [path for path, module in model.named_modules() if quantized_form(module) is Linear]
    chains = recorded(model, [run], chains_of(model, paths))
    if len(chains) != 1:
        raise InputError(
            f"this {type(model).__name__} has {len(chains)} lists of blocks that follow each "
            f"other, and a rotation is for models with one: {OTHERWISE}"
        )
    chain, notes = chains[0], untied(model)
    stream = Stream(chain.hidden[0].shape[-1])
    for path, block in chain.blocks.items():
        stream.add(watched(block.modules(), partial(chain.run_once, path)))
    stream.add(watched(modules_outside(model, chain), lambda: run(model)))
    stream.check(model)
    for path in chain.blocks:
        turn_values(method, chain, path)
    stream.turn(method.matrix(stream.size))
    if not alike(exact, first_floats(run(model)), next(model.parameters()).dtype):
        raise changes_results(model)
    return notes


def changes_results(model: nn.Module) -> InputError:
    """The error of a model that is another one when it is turned."""
    return InputError(
        f"a rotation changes what this {type(model).__name__} returns: something but RMS "
        f"norms, linear layers and tables reads or makes its hidden states; {OTHERWISE}"
    )


def modules_outside(model: nn.Module, chain: Chain) -> list[nn.Module]:
    """Those that are in no block."""
    inside = {module for block in chain.blocks.values() for module in block.modules()}
    return [module for module in model.modules() if module not in inside]


@dataclass
class Stream:
    """What stands around the hidden states.

    Attributes:
        size: of them.
        norms: the weights of norms, ``[size]``, and what is added to them before they multiply.
        readers: of each norm, the weights that read it, ``[out, size]``.
        writers: tensors of which the first axis is written to them.
        tables: tensors whose rows are hidden states.
    """

    size: int
    norms: list[tuple[Tensor, float]] = field(default_factory=list)
    readers: list[list[Tensor]] = field(default_factory=list)
    writers: list[Tensor] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        """Take what is seen in a run.

        Raises:
            InputError: there is a norm that is none of RMS.
        """
        reading: set[nn.Module] = set()
        for event in events:
            behind = [other for other in events if other.input_key == event.output_key]
            columns = [columns for other in behind for columns in columns_of(other)]
            own = dict(event.module.named_parameters(recurse=False))
            is_norm = own and all(p.shape == (self.size,) for p in own.values())
            if not is_norm or not columns:
                continue
            if list(own) != ["weight"]:
                raise InputError(
                    f"a rotation is for models with RMS norms, and this one has a "
                    f"{type(event.module).__name__} with {' and '.join(own)}: {OTHERWISE}"
                )
            self.norms.append((own["weight"], _offset(event)))
            self.readers.append(columns)
            reading |= {other.module for other in behind}
        for event in events:
            self.writers += _written(event, self.size, event.module in reading)
            if isinstance(event.module, nn.Embedding) and event.output.shape[-1] == self.size:
                self.tables.append(event.module.weight)

    def check(self, model: nn.Module) -> None:
        """Refuse a tensor that several layers of the model hold.

        Raises:
            InputError: there is one.
        """
        shared = shared_parameters(model)
        held = [*self.tables, *self.writers, *(c for group in self.readers for c in group)]
        if any(id(tensor) in shared for tensor in held):
            raise InputError(f"layers of this model share weights in its blocks: {OTHERWISE}")

    def turns(self, matrix: Tensor) -> Iterator[tuple[Tensor, Turn]]:
        """Each tensor, and what is done to it, in place."""
        for (weight, offset), readers in zip(self.norms, self.readers, strict=True):
            factors = weight.double() + offset
            for reader in readers:
                yield reader, partial(_turn_columns, matrix=matrix, factors=factors)
            yield weight, partial(_fill, value=1.0 - offset)
        for writer in self.writers:
            yield writer, partial(_turn_results, matrix=matrix)
        for table in self.tables:
            yield table, partial(_turn_columns, matrix=matrix)

    def turn(self, matrix: Tensor) -> None:
        """Turn all of them."""
        for tensor, turn in self.turns(matrix):
            turn(tensor)


def _offset(norm: Event) -> float:
    """What a norm adds to its weight: it gives nothing where that makes zero."""
    weight = norm.module.get_parameter("weight")
    before = weight.detach().clone()
    weight.zero_()
    result = first_floats(norm.module(norm.input))
    weight.copy_(before)
    return 1.0 if bool(result.any()) else 0.0


def _written(event: Event, size: int, is_reader: bool) -> Iterator[Tensor]:
    """The tensors of a module that make hidden states, by their first axis."""
    form = quantized_form(event.module)
    if form is Experts:
        for expert in list(linears_of(event.module).values())[1]:
            yield from tensors_of(expert).values()
    elif form is Linear and not is_reader:
        tensors = tensors_of(event.module)
        if len(tensors["weight"]) == size:
            yield from tensors.values()


def _turn_columns(tensor: Tensor, matrix: Tensor, factors: Tensor | None = None) -> None:
    matrix = matrix.to(tensor.device)
    for rows in tensor.split(_AT_ONCE):
        exact = rows.double() if factors is None else rows.double() * factors
        rows.copy_(exact @ matrix)


def _turn_results(tensor: Tensor, matrix: Tensor) -> None:
    tensor.copy_(matrix.to(tensor.device).t() @ tensor.double())


def _fill(tensor: Tensor, value: float) -> None:
    tensor.fill_(value)


def turn_values(method: Rotation, chain: Chain, path: str) -> None:
    """The values of each head of a block are turned, and the layer behind attention turns them
    back: R2.
    """
    block, run = chain.blocks[path], partial(chain.run_once, path)
    for attention in block.modules():
        size = getattr(attention, "head_dim", None)
        if not isinstance(size, int) or size < 2:
            continue
        events = watched(block.modules(), run)
        inside = set(attention.modules())
        for event in (e for e in events if e.module in inside):
            if quantized_form(event.module) is Linear:
                _turn_heads(rows_behind(events, event, run), event, size, method)


def _turn_heads(
    found: tuple[nn.Module, Tensor] | None, reader: Event, size: int, method: Rotation
) -> None:
    if found is None:
        return
    maker, made_by = found
    columns = tensors_of(reader.module)["weight"]
    if columns.shape[1] % size:
        return
    heads = made_by.reshape(-1, size)
    firsts = heads[:, :1]
    if bool((firsts < 0).any()) or not torch.equal(heads - firsts, _steps(heads)):
        return
    matrix = method.matrix(size).to(columns.device)
    turned = (columns.double().reshape(len(columns), -1, size) @ matrix).reshape(columns.shape)
    columns.copy_(turned)
    for tensor in tensors_of(maker).values():
        for first in firsts.unique().tolist():
            rows = tensor[first : first + size]
            rows.copy_(matrix.t() @ rows.double())


def _steps(heads: Tensor) -> Tensor:
    return torch.arange(heads.shape[1], device=heads.device).expand_as(heads)


def untied(model: nn.Module) -> list[str]:
    """Give linear layers that share a weight with a table one of their own.

    Returns:
        What is to be said of it, a sentence each.
    """
    modules = dict(model.named_modules())
    tables = {id(m.weight): path for path, m in modules.items() if isinstance(m, nn.Embedding)}
    notes = []
    for path, module in modules.items():
        if quantized_form(module) is not Linear or id(module.weight) not in tables:
            continue
        weight = module.get_parameter("weight")
        notes.append(
            f"{path!r} has a weight of its own now, which it shared with {tables[id(weight)]!r}: "
            f"the last norm's weights went into it, and it takes {weight.nbytes / 1e6:.2f} MB more"
        )
        module.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        config = getattr(model, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False  # type: ignore[union-attr]
    return notes
