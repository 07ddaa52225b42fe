"""LSTM, GRU, RNN and their cells: weights in integers, the input rounded at each call if dynamic.

Tensors go through the kernels of the runtimes, a cell as a layer of one step. Packed sequences go
through Octavo's own kernel; what it does not run, and what has a NaN in it, through torch's, with
weights that are floats for as long as the call takes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from octavo.errors import InputError, warn_user
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.model.nn.dequantizing import Dequantizing
from octavo.model.nn.one_operator import OneOperator
from octavo.model.nn.packed_sequences import PackedSequences
from octavo.model.packed_buffers import let_go
from octavo.numerics.sqnr import sqnr_db

_EXAMPLE = (2, 3)  # batch and steps on which a runtime is compared
_NEAR_DB = 25.0  # of a kernel that rounds states to 8 bits; one that is wrong is far below


class Recurrent(OneOperator, Dequantizing):
    """A recurrent layer or cell."""

    settings: ClassVar[tuple[str, ...]] = ("input_size", "hidden_size", "bias")

    input_size: int
    hidden_size: int
    nonlinearity: str
    _packed: tuple[PackedSequences | None] | None = None  # made at the first that comes

    @property
    def layer_operator(self) -> str:
        """Name of the operator of layers."""
        name = type(self).operator.removesuffix("_cell")
        return f"rnn_{self.nonlinearity}" if name.startswith("rnn") else name

    @property
    def state_shapes(self) -> list[tuple[int, int]]:
        """Of each state: how many there are for a sequence, and of how many channels."""
        own = self.description.settings
        count = own.get("num_layers", 1) * (1 + own.get("bidirectional", False))
        hidden = (count, self.hidden_size)
        if self.layer_operator != "lstm":
            return [hidden]
        return [(count, own.get("proj_size") or self.hidden_size), hidden]

    def graph(self) -> Graph:
        """Of sequences ``[batch, steps, input_size]`` and states ``[count, batch, channels]``."""
        batch, steps = _EXAMPLE
        sizes = TensorMeta((None, None, self.input_size), "float32")
        inputs = [Input("input", sizes, (batch, steps, self.input_size))]
        for index, (count, channels) in enumerate(self.state_shapes):
            meta = TensorMeta((count, None, channels), "float32")
            inputs.append(Input(f"state{index}", meta, (count, batch, channels)))
        nodes: list[Node] = []
        params: list[Ref] = []
        for name in self.parameter_shapes(self.description):
            readers = self.weights[name].readers() if name in self.weights else []
            nodes += readers
            params.append(Ref(readers[-1].name if readers else name))
        read, rounding = self.read_input(sizes)
        nodes += rounding
        own = self.description.settings
        layers, both = own.get("num_layers", 1), own.get("bidirectional", False)
        states: Any = [Ref(entry.name) for entry in inputs[1:]]
        args = (read, states if self.layer_operator == "lstm" else states[0], params)
        how = (own["bias"], layers, 0.0, False, both, True)
        nodes.append(Node("result", f"aten.{self.layer_operator}.input", (*args, *how)))
        width = self.state_shapes[0][1] * (1 + both)
        metas = [TensorMeta((None, None, width), "float32"), *(entry.meta for entry in inputs[1:])]
        results = [f"result{index}" for index in range(len(metas))]
        for index, (name, meta) in enumerate(zip(results, metas, strict=True)):
            nodes.append(Node(name, "python.getitem", (Ref("result"), index), meta=meta))
        arguments = {entry.name: Ref(entry.name) for entry in inputs}
        outputs = [Ref(name) for name in results]
        return Graph(tuple(inputs), self.own_tensors(), tuple(nodes), arguments, outputs)

    def floats_of(self, x: Tensor, ranks: tuple[int, ...], form: str) -> Tensor:
        """The values of an input, float32.

        Raises:
            InputError: they are no floats, or have other axes than an input of this form.
        """
        if not x.is_floating_point() or x.dim() not in ranks:
            raise InputError(
                f"a {self._get_name()} of {self.input_size} inputs takes floats {form}, not "
                f"{TensorMeta.of(x)}"
            )
        return x.to(torch.float32)

    def sequences(self, x: Tensor, states: Any) -> tuple[Tensor, ...]:
        """The graph's results for ``[batch, steps, input_size]``; states of zeros without any.

        Raises:
            InputError: the input or the states are of other sizes.
        """
        given = [states] if isinstance(states, Tensor) else states
        if given is None:
            given = [x.new_zeros(n, len(x), size) for n, size in self.state_shapes]
        self._check_states(given, [(n, len(x), size) for n, size in self.state_shapes], x)
        return self.results(x.contiguous(), *(state.float().contiguous() for state in given))

    def packed(self, x: PackedSequence, states: Any) -> Any:
        """What the float layer returns for packed sequences.

        Raises:
            InputError: the sequences or the states are of other sizes.
        """
        floats = self.floats_of(x.data, (2,), f"[values, {self.input_size}]")
        if self._packed is None:
            self._packed = self._made_ready_for_packed()
        kernel = self._packed[0]
        if kernel is None or not math.isfinite(floats.sum()):
            return self.torchs(x, states)
        batch = int(x.batch_sizes[0])
        given = [states] if isinstance(states, Tensor) else states
        shapes = [(n, batch, size) for n, size in self.state_shapes]
        if given is None:
            given = [floats.new_zeros(shape) for shape in shapes]
        self._check_states(given, shapes, floats)
        data, *ends = kernel(x._replace(data=floats), [state.float() for state in given])
        ends = [end.to(x.data.dtype) for end in ends]
        return x._replace(data=data.to(x.data.dtype)), ends[0] if len(ends) == 1 else tuple(ends)

    def _made_ready_for_packed(self) -> tuple[PackedSequences | None]:
        """With no kernel where there is none, or where it does not agree with torch's."""
        kernel = None if self._is_shared else PackedSequences.of(self, self.layer_operator)
        if kernel is None:
            return (None,)
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(6, self.input_size, generator=generator)
        sample = PackedSequence(data, torch.tensor([3, 2, 1]), None, None)
        states = [torch.zeros(n, 3, size) for n, size in self.state_shapes]
        wanted = self.torchs(sample, states[0] if len(states) == 1 else tuple(states))[0].data
        off = (wanted - kernel(sample, states)[0]).square().sum()
        agreement = sqnr_db(float(wanted.square().sum()), float(off))
        if agreement < _NEAR_DB:
            warn_user(
                f"a {self._get_name()} runs packed sequences in float: Octavo's own kernel is "
                f"{agreement:.0f} dB from torch's here"
            )
            return (None,)
        let_go(self, kernel.held)
        return (kernel,)

    def forget(self) -> None:
        super().forget()
        self._packed = None

    def _check_states(self, given: Any, shapes: list[tuple[int, int, int]], x: Tensor) -> None:
        """See that the input and the states have the sizes that they should have.

        Raises:
            InputError: they have not.
        """
        if x.shape[-1] != self.input_size or [tuple(state.shape) for state in given] != shapes:
            raise InputError(
                f"a {self._get_name()} of {self.input_size} inputs takes states {shapes} for an "
                f"input {list(x.shape)} [batch, steps, inputs], not "
                f"{[tuple(state.shape) for state in given]}"
            )

    def torchs(self, x: PackedSequence, states: Any) -> Any:
        """What the float layer makes of a packed sequence, of the rounded weights."""
        values = x.data
        floats = self.floats_of(values, (2,), f"[values, {self.input_size}]")
        packed = x._replace(data=self.rounded(floats))
        states = pytree.tree_map_only(Tensor, lambda state: state.to(torch.float32), states)
        result = self.float_layer()(packed, states)
        return pytree.tree_map_only(Tensor, lambda y: _like(y, values), result)


def _like(result: Tensor, values: Tensor) -> Tensor:
    """A result in the dtype of the input; the sizes of a packed sequence are integers."""
    return result.to(values.dtype) if result.is_floating_point() else result


class _Layer(Recurrent):
    """A layer of ``torch.nn``: sequences in, packed or not, results and states out."""

    settings: ClassVar[tuple[str, ...]] = (
        *Recurrent.settings,
        *("num_layers", "batch_first", "dropout", "bidirectional"),
    )

    batch_first: bool

    def compute(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            return self.packed(input, hx)
        batched, dtype = input.dim() == 3, input.dtype
        axes = "batch, steps" if self.batch_first else "steps, batch"
        x = self.floats_of(input, (2, 3), f"[{axes}, {self.input_size}]")
        x = x if batched else x.unsqueeze(0)
        if batched and not self.batch_first:
            x = x.transpose(0, 1)
        if not batched and hx is not None:
            hx = pytree.tree_map(lambda state: state.unsqueeze(1), hx)
        result, *states = self.sequences(x, hx)
        if not batched:
            result, states = result.squeeze(0), [state.squeeze(1) for state in states]
        elif not self.batch_first:
            result = result.transpose(0, 1).contiguous()
        ends = [state.to(dtype) for state in states]
        return result.to(dtype), ends[0] if len(ends) == 1 else tuple(ends)


class _Cell(Recurrent):
    """A cell of ``torch.nn``: a step in, the states behind it out."""

    def compute(self, input: Tensor, hx: Any = None) -> Any:
        batched = input.dim() == 2
        x = self.floats_of(input, (1, 2), f"[batch, {self.input_size}]")
        x = (x if batched else x.unsqueeze(0)).unsqueeze(1)
        if hx is not None:
            hx = pytree.tree_map(lambda h: h.unsqueeze(0) if batched else h.reshape(1, 1, -1), hx)
        _, *states = self.sequences(x, hx)
        ends = [state.squeeze(0).to(input.dtype) for state in states]
        ends = ends if batched else [end.squeeze(0) for end in ends]
        return ends[0] if len(ends) == 1 else tuple(ends)


class LSTM(_Layer, floats=nn.LSTM, operator="lstm"):
    """A quantized ``nn.LSTM``.

    Example:
        >>> import octavo
        >>> lstm = LSTM.from_float(nn.LSTM(8, 16), octavo.dynamic_qconfig())
        >>> lstm(torch.rand(5, 2, 8))[0].shape
        torch.Size([5, 2, 16])
    """

    settings = (*_Layer.settings, "proj_size")


class GRU(_Layer, floats=nn.GRU, operator="gru"):
    """A quantized ``nn.GRU``."""


class RNN(_Layer, floats=nn.RNN, operator="rnn_tanh"):
    """A quantized ``nn.RNN``."""

    settings = (*_Layer.settings, "nonlinearity")


class LSTMCell(_Cell, floats=nn.LSTMCell, operator="lstm_cell"):
    """A quantized ``nn.LSTMCell``."""


class GRUCell(_Cell, floats=nn.GRUCell, operator="gru_cell"):
    """A quantized ``nn.GRUCell``."""


class RNNCell(_Cell, floats=nn.RNNCell, operator="rnn_tanh_cell"):
    """A quantized ``nn.RNNCell``."""

    settings = (*Recurrent.settings, "nonlinearity")
