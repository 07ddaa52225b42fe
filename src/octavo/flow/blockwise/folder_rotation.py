"""`octavo.Rotation` of a model of which memory holds one block at a time.

What is outside of the blocks is turned as a whole once, with blocks that return what they read, and
tried; from then on each part of it is turned whenever it is read. A block is turned when it is
read, and tried by itself: of what is turned it has to make what is turned.

Tested in tests/flow/blockwise/test_folder.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from octavo.errors import InputError
from octavo.flow.blockwise.blocks import Chain, without_cache
from octavo.flow.blockwise.events import watched
from octavo.flow.blockwise.folds import alike
from octavo.flow.blockwise.model_folds import first_floats
from octavo.flow.blockwise.rotating import (
    OTHERWISE,
    Stream,
    Turn,
    changes_results,
    modules_outside,
    turn_values,
    untied,
)
from octavo.flow.running import Run
from octavo.quantization.weights import Rotation


@dataclass(frozen=True)
class Turning:
    """A rotation on its way through the parts of a model.

    Attributes:
        model: of which some parts have values.
        method: the rotation.
        matrix: by which hidden states are turned.
        chain: the blocks, and what the first call gives them in the model as it was.
        outside: name of a tensor outside of the blocks -> what is done to it.
        notes: what is to be said of it, a sentence each.
    """

    model: nn.Module
    method: Rotation
    matrix: Tensor
    chain: Chain
    outside: Mapping[str, Turn]
    notes: list[str]

    @classmethod
    def of(cls, model: nn.Module, method: Rotation, run: Run, chain: Chain) -> Turning:
        """Turn what is outside of the blocks, which return what they read meanwhile.

        Args:
            model: all has values but its blocks.
            method: the rotation.
            run: calls the model.
            chain: the blocks, and what that call gives them.

        Raises:
            InputError: the model cannot be turned.
        """
        with torch.no_grad(), without_cache(model):
            exact, notes = first_floats(run(model)), untied(model)
            stream = Stream(chain.hidden[0].shape[-1])
            stream.add(watched(modules_outside(model, chain), lambda: run(model)))
            stream.check(model)
            matrix = method.matrix(stream.size).to(chain.hidden[0].device)
            turns = {id(tensor): turn for tensor, turn in stream.turns(matrix)}
            outside = {
                name: turns.pop(id(parameter))
                for name, parameter in model.named_parameters()
                if id(parameter) in turns
            }
            if turns:
                raise InputError(
                    f"a part of what a layer of this {type(model).__name__} holds would be "
                    f"turned: {OTHERWISE}"
                )
            turning = cls(model, method, matrix, chain, outside, notes)
            turning.turn(outside)
            if not alike(exact, first_floats(run(model)), next(model.parameters()).dtype):
                raise changes_results(model)
        return turning

    @torch.no_grad()
    def turn(self, names: Iterable[str]) -> None:
        """Turn tensors of these names, which were just read, that are outside of the blocks."""
        untied(self.model)
        for name in names:
            if name in self.outside:
                self.outside[name](self.model.get_parameter(name))

    @torch.no_grad()
    def turn_block(self, path: str) -> None:
        """Turn a block, which was just read.

        Raises:
            InputError: it makes something else of what is turned.
        """
        chain, matrix, x = self.chain, self.matrix, self.chain.hidden[0]
        stream = Stream(x.shape[-1])
        stream.add(watched(chain.blocks[path].modules(), partial(chain.run_once, path)))
        # It adds to what it reads. That is made as small as what is added, so that a fault shows.
        x = x * ((chain.run_once(path) - x).norm() / x.norm())
        exact = self._result(path, x).double() @ matrix
        turn_values(self.method, chain, path)
        stream.turn(matrix)
        turned = self._result(path, (x.double() @ matrix).to(x.dtype))
        if not alike(exact, turned, x.dtype):
            raise changes_results(self.model)

    def _result(self, path: str, x: Tensor) -> Tensor:
        return replace(self.chain, hidden=[x]).run_once(path)
