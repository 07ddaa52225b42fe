"""The blocks of a model that follow each other, and what each is called with.

A transformer is a list of blocks of which each reads what the one before has returned. What a block
returns on all of the data is all that is kept, so that memory holds the activations of one block
and not those of the model.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from octavo.flow.running import Run


@dataclass
class Chain:
    """Blocks that follow each other.

    Attributes:
        path: of their list.
        blocks: by their paths, in order.
        hidden: what the first one reads, then the next, for each call of the model.
        others: for each block, and each call, its other arguments.
    """

    path: str
    blocks: dict[str, nn.Module]
    hidden: list[Tensor] = field(default_factory=list)
    others: dict[str, list[_Arguments]] = field(default_factory=dict)

    def at_first(self) -> Chain:
        """The same blocks, and what they get in the first call; it stays as it is."""
        others = {path: calls[:1] for path, calls in self.others.items()}
        return Chain(self.path, self.blocks, self.hidden[:1], others)

    def run(self, path: str) -> list[Tensor]:
        """What a block returns on all calls."""
        return [self.run_once(path, call) for call in range(len(self.hidden))]

    def run_once(self, path: str, call: int = 0) -> Tensor:
        """What a block returns on one of the calls, of what the chain has come to by then."""
        args, x = self.others[path][call], self.hidden[call]
        with torch.no_grad():
            result: Tensor = _first(self.blocks[path](*args.args_of(x), **args.kwargs_of(x)))
        return result


@dataclass(frozen=True)
class _Arguments:
    """Those of a call but for the tensor that the block before has returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: str | int  # of that tensor

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Arguments] | None:
        """The first tensor, and the rest; ``None`` where there is no tensor."""
        if args:
            if not isinstance(args[0], Tensor):
                return None
            return args[0], cls(args[1:], dict(kwargs), 0)
        name = next((key for key, value in kwargs.items() if isinstance(value, Tensor)), None)
        if name is None:
            return None
        rest = {key: value for key, value in kwargs.items() if key != name}
        return kwargs[name], cls((), rest, name)

    def args_of(self, x: Tensor) -> tuple[Any, ...]:
        return (x, *self.args) if self.place == 0 else ()

    def kwargs_of(self, x: Tensor) -> dict[str, Any]:
        return self.kwargs if self.place == 0 else {str(self.place): x, **self.kwargs}


def chains_of(model: nn.Module, paths: Iterable[str]) -> list[Chain]:
    """The lists of modules that have layers of these paths in them, the outermost ones."""
    paths, found = list(paths), dict[str, Chain]()
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{chain}.") for chain in found)
        if not isinstance(module, nn.ModuleList) or inside:
            continue
        blocks = {f"{path}.{name}".lstrip("."): block for name, block in module.named_children()}
        holding = [at for at in blocks if any(layer.startswith(f"{at}.") for layer in paths)]
        if len(holding) > 1 and len(holding) == len(blocks):
            found[path] = Chain(path, blocks)
    return list(found.values())


def recorded(model: nn.Module, runs: Iterable[Run], chains: Sequence[Chain]) -> list[Chain]:
    """Run the model on all data, and keep what the first block of each chain reads.

    Returns:
        The chains whose blocks do follow each other, each called once by each call of the model.
    """
    broken: set[str] = set()
    handles = [handle for chain in chains for handle in _watched(chain, broken)]
    count = 0
    try:
        with torch.no_grad(), without_cache(model):
            for run in runs:
                run(model)
                count += 1
                for chain in chains:
                    calls = [len(chain.others.get(path, ())) for path in chain.blocks]
                    if len(chain.hidden) != count or any(n != count for n in calls):
                        broken.add(chain.path)
    finally:
        for handle in handles:
            handle.remove()
    return [chain for chain in chains if chain.path not in broken]


def _watched(chain: Chain, broken: set[str]) -> Iterator[Any]:
    last: list[Tensor] = []  # what the block before has returned
    first = next(iter(chain.blocks))

    def before(path: str) -> Callable[..., None]:
        def look(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = _Arguments.of(args, kwargs)
            if read is None or (path != first and (not last or read[0] is not last[0])):
                broken.add(chain.path)
                return
            if path == first:
                chain.hidden.append(read[0])
            chain.others.setdefault(path, []).append(read[1])

        return look

    def behind(block: nn.Module, args: Any, result: Any) -> None:
        last[:] = [_first(result)]

    for path, block in chain.blocks.items():
        yield block.register_forward_pre_hook(before(path), with_kwargs=True)
        yield block.register_forward_hook(behind)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple | list) and result else result


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """A model of transformers keeps no keys and values meanwhile: each call is one of its own."""
    owners = {id(config): config for config in map(_config, model.modules()) if config is not None}
    old = {key: config.use_cache for key, config in owners.items()}
    for config in owners.values():
        config.use_cache = False
    try:
        yield
    finally:
        for key, config in owners.items():
            config.use_cache = old[key]


def _config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "use_cache", None), bool) else None
