"""Quantized layers in the places of float ones: shared layers once, tied weights together.

Tested in tests/flow/test_modules.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from octavo.model.nn import Linear, QuantizedModule, from_float, quantized_form
from octavo.model.nn.float_layers import is_computed
from octavo.model.nn.one_operator import OneOperator
from octavo.model.tree import put
from octavo.quantization.qconfig import QConfig
from octavo.quantization.weights import Rounded

# How a layer is quantized; or why it is not, ``""`` where nobody asks.
Decision = QConfig | str
Decide = Callable[[str, nn.Module], Decision]
Make = Callable[[nn.Module, QConfig, str], nn.Module]

_NOTHING: Mapping[str, Rounded] = {}
_NAMED = 3  # layers, of many that stay float for one reason
_FEW = 0.5  # share of the weights from which on nothing is said


@dataclass
class Replaced:
    """A model with quantized layers.

    Attributes:
        model: changed in place; the quantized layer itself where the model was one.
        modules: path -> the quantized layer there; the first path of one that is shared.
        left: path of a layer with weights that stays float -> why.
        obstacles: path of a layer that was asked for and cannot be had -> why.
        notes: what is to be said of layers that share a weight.
        sizes: path of a layer with weights -> its class, and how many values its weights have;
            what several share counts for the first.
    """

    model: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    obstacles: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[str, int]] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """What the user ought to know, a sentence each."""
        return [*self._hindered(), *self.notes, *self._share()]

    def _hindered(self) -> Iterator[str]:
        """A sentence for each obstacle, however many layers of a language model have it."""
        alike: dict[str, list[str]] = {}
        for path, obstacle in self.obstacles.items():
            alike.setdefault(obstacle, []).append(path)
        for obstacle, paths in alike.items():
            few = ", ".join(map(repr, paths[:_NAMED]))
            more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
            yield f"{few}{more} {'stays' if len(paths) == 1 else 'stay'} float: {obstacle}"

    def _share(self) -> Iterator[str]:
        total = sum(size for _, size in self.sizes.values())
        done = sum(size for path, (_, size) in self.sizes.items() if path in self.modules)
        if not self.modules or not total or done / total >= _FEW:
            return
        left: Counter[str] = Counter()
        for path, (kind, size) in self.sizes.items():
            left[kind] += size * (path not in self.modules)
        kinds = ", ".join(f"{k} {size / total:.0%}" for k, size in left.most_common(3) if size)
        told = f"only {done / total:.0%} of the weights are integers now; float: {kinds}"
        if all(path in self.modules or path in self.obstacles for path in self.sizes):
            yield told  # and why was said
        else:
            yield (
                f"{told}. They are no layers that octavo.nn has, or were not asked for: "
                "octavo.quantize captures the model and finds products of matrices however they "
                "are written"
            )


@dataclass
class Decided:
    """What is to become of the layers of a model, before anything is done to it.

    Attributes:
        layers: those that have weights, by their paths.
        qconfigs: path of a layer that becomes integers -> how.
        tied: the paths of layers that share a weight, for each weight that is shared.
        result: of what is left, and why.
    """

    layers: dict[str, nn.Module]
    qconfigs: dict[str, QConfig]
    tied: list[list[str]]
    result: Replaced

    @classmethod
    def of(cls, root: nn.Module, decide: Decide) -> Decided:
        """Decide on each layer; layers that are tied, and of which one becomes integers, all read
        the same integers where they can, else all stay float, since the weight would be held twice.

        Args:
            root: the model.
            decide: path and layer -> how it is quantized, or why not.
        """
        result = Replaced(root)
        layers = layers_of(root)
        _measure(layers, result)
        wanted = {path: _decision(path, layer, decide, result) for path, layer in layers.items()}
        decided: dict[str, QConfig] = {}
        for path, decision in wanted.items():
            if isinstance(decision, QConfig):
                decided[path] = decision
            else:
                result.left[path] = decision
        tied = _tied(layers)
        for paths in tied:
            _agree(paths, layers, wanted, decided, result)
        return cls(layers, decided, tied, result)

    def replace(
        self, target: str, make: Make = from_float, rounded: Mapping[str, Rounded] = _NOTHING
    ) -> Replaced:
        """Put quantized layers in the places of the float ones, in the model itself.

        Args:
            target: name of the target.
            make: layer, qconfig and target -> the quantized layer.
            rounded: path of a layer -> the integers of its weight, where they are not the nearest.
        """
        result, layers = self.result, self.layers
        for path, qconfig in self.qconfigs.items():
            module = make(layers[path], qconfig, target)
            for inner, part in module.named_modules(prefix=path):
                if inner in rounded and isinstance(part, QuantizedModule):
                    now = rounded[inner]
                    part.take_integers("weight", now.integers, now.qparams)
            result.modules[path] = module
        for paths in self.tied:
            own = [path for path in paths if path in self.qconfigs]
            _share([(result.modules[path], self.qconfigs[path]) for path in own])
        for path, module in result.modules.items():
            if path:
                put(result.model, layers[path], module)
            else:
                result.model = module
        return result


def replace_modules(
    root: nn.Module, decide: Decide, target: str, make: Make = from_float
) -> Replaced:
    """Put quantized layers in the places of float ones, see `Decided`.

    Args:
        root: changed in place.
        decide: path and layer -> how it is quantized, or why not.
        target: name of the target.
        make: layer, qconfig and target -> the quantized layer.
    """
    return Decided.of(root, decide).replace(target, make)


def layers_of(root: nn.Module) -> dict[str, nn.Module]:
    """Modules that have weights themselves, each at its first path; of one that can be replaced
    as a whole, such as attention, not its parts.
    """
    layers: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for path, module in root.named_modules():
        if module in inside or isinstance(module, QuantizedModule):
            inside |= set(module.modules())
        elif quantized_form(module) is not None or _weights(module):
            layers[path] = module
            if quantized_form(module) is not None or is_computed(module):
                inside |= set(module.modules())
    return layers


def _weights(layer: nn.Module) -> list[Tensor]:
    """Those of a layer; of one that is replaced as a whole those of its parts too."""
    whole = quantized_form(layer) is not None or is_computed(layer)
    return [tensor for tensor in layer.parameters(recurse=whole) if tensor.dim() > 1]


def _measure(layers: Mapping[str, nn.Module], result: Replaced) -> None:
    counted: set[int] = set()
    for path, layer in layers.items():
        own = {id(weight): weight.numel() for weight in _weights(layer)}
        size = sum(count for key, count in own.items() if key not in counted)
        result.sizes[path] = (type(layer).__name__, size)
        counted |= own.keys()


def _decision(path: str, layer: nn.Module, decide: Decide, result: Replaced) -> Decision:
    form = quantized_form(layer)
    decision = decide(path, layer)
    if form is None:
        return _NO_FORM
    obstacle = form.obstacle(layer, decision) if isinstance(decision, QConfig) else None
    if obstacle is None:
        return decision
    result.obstacles[path] = obstacle
    return obstacle


_NO_FORM = "octavo.nn has no such layer, or it has a forward of its own"


def _tied(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """The paths of layers that share a weight, for each weight that is shared."""
    owners: dict[int, list[str]] = {}
    for path, layer in layers.items():
        for weight in {id(weight) for weight in _weights(layer)}:
            owners.setdefault(weight, []).append(path)
    return [paths for paths in owners.values() if len(paths) > 1]


def _agree(
    paths: list[str],
    layers: Mapping[str, nn.Module],
    wanted: Mapping[str, Decision],
    decided: dict[str, QConfig],
    result: Replaced,
) -> None:
    """Let layers that share a weight read the same integers, or all stay float."""
    integer = [path for path in paths if path in decided]
    plain = [path for path in paths if path not in decided]
    if not integer or not plain:
        return
    qconfig = decided[integer[0]]
    size = max(weight.numel() for weight in _weights(layers[integer[0]]))
    follows = all(wanted[path] == "" and _may(layers[path], qconfig) for path in plain)
    shared = f"{integer[0]!r} shares its weight with {plain[0]!r}, which "
    if follows:
        result.notes.append(
            f"{shared}was not asked for: both read one table of integers now, since two tables "
            f"would take {size / 1e6:.2f} MB more; a rule that keeps {plain[0]!r} float (None) "
            "keeps both"
        )
        decided.update(dict.fromkeys(plain, qconfig))
        for path in plain:
            result.left.pop(path, None)
    else:
        result.notes.append(
            f"{shared}stays float: both do, since the weight would be held twice and take "
            f"{size / 1e6:.2f} MB more; quantize {plain[0]!r} too"
        )
        for path in integer:
            del decided[path]
            result.left[path] = f"it shares its weight with {plain[0]!r}, which stays float"


def _may(layer: nn.Module, qconfig: QConfig) -> bool:
    form = quantized_form(layer)
    return form is not None and form.obstacle(layer, qconfig) is None


def _share(modules: list[tuple[nn.Module, QConfig]]) -> None:
    """Let layers that shared a weight hold the same integers, if they are asked for the same.

    Those of a linear layer, which leave room for sums of pairs where that is needed.
    """
    alike = [(m, qconfig) for m, qconfig in modules if isinstance(m, OneOperator)]
    if not alike:
        return
    first, asked = min(alike, key=lambda item: not isinstance(item[0], Linear))
    for module, qconfig in alike:
        if module is not first and qconfig.weight == asked.weight:
            module.adopt(first)
