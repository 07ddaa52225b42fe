"""How much of a model became integers, and what became of weights that layers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn

_FEW = 0.5  # share of the weights from which on nothing is said


class Weights:
    """The weights of a float model, and which of them became integers.

    Args:
        root: the model, before any of its layers is replaced.
    """

    def __init__(self, root: nn.Module) -> None:
        self.sizes: dict[int, int] = {}
        self.owners: dict[int, dict[str, nn.Module]] = {}  # weight -> path -> layer
        self.integers: set[int] = set()  # layers
        for path, module in root.named_modules():
            for weight in _of(module):
                self.sizes[id(weight)] = weight.numel()
                self.owners.setdefault(id(weight), {})[path] = module

    def are_integers(self, layer: nn.Module) -> None:
        """This layer holds integers in place of its weights."""
        self.integers |= {id(module) for module in layer.modules()}

    def remarks(self) -> list[str]:
        """What is to be said of the result, a sentence each."""
        return [*self._untied(), *self._left()]

    def _untied(self) -> Iterator[str]:
        for weight, layers in self.owners.items():
            integer = [path for path, layer in layers.items() if id(layer) in self.integers]
            plain = [path for path, layer in layers.items() if id(layer) not in self.integers]
            if integer and plain:
                yield (
                    f"{integer[0]!r} shares its weight with {plain[0]!r}, which stays float: the "
                    f"model now holds it twice, and takes {self.sizes[weight] / 1e6:.2f} MB more; "
                    f"quantize {plain[0]!r} too (nn.Embedding takes "
                    f"float_qparams_weight_only_qconfig), or leave {integer[0]!r} float"
                )

    def _left(self) -> Iterator[str]:
        total = sum(self.sizes.values())
        left: Counter[str] = Counter()
        done = 0
        for weight, layers in self.owners.items():
            plain = [layer for layer in layers.values() if id(layer) not in self.integers]
            if plain:
                left[type(plain[0]).__name__] += self.sizes[weight]
            done += self.sizes[weight] * (len(plain) < len(layers))
        share = done / total if total else 1.0
        if share < _FEW:
            kinds = ", ".join(f"{k} {size / total:.0%}" for k, size in left.most_common(3))
            yield (
                f"only {share:.0%} of the weights are integers now; float: {kinds}. They are not "
                "linear or recurrent layers of torch.nn, or were not asked for: "
                "octavo.quantize captures the model and finds products of matrices however they "
                "are written"
            )


def _of(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in module.parameters(recurse=False) if tensor.dim() > 1]
