"""The quantized parts of a model that is the user's own class: regions, and modules of `octavo.nn`.

Tested in tests/model/test_parts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from octavo.arguments import NUMBER, optional
from octavo.errors import InputError
from octavo.graph.copying import copied
from octavo.model.model import QuantizedModel
from octavo.model.nn import QuantizedModule
from octavo.model.tree import put
from octavo.model.tunings import BUDGET_S

Model = TypeVar("Model", bound=nn.Module)

Part = QuantizedModel | QuantizedModule


def parts_of(model: nn.Module) -> dict[str, Part]:
    """The quantized parts of a model, by their paths; a shared one at its first.

    Example:
        >>> import octavo
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> list(parts_of(octavo.quantize(net, scope="modules")))
        ['0']
    """
    found: dict[str, Part] = {}
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module not in inside and isinstance(module, QuantizedModel | QuantizedModule):
            found[path] = module
            inside |= set(module.modules())
    return found


def regions_of(model: nn.Module) -> dict[str, QuantizedModel]:
    """The parts that are graphs, by their paths."""
    parts = parts_of(model)
    return {path: part for path, part in parts.items() if isinstance(part, QuantizedModel)}


def work_around(model: nn.Module) -> Mapping[str, int] | None:
    """The multiply-adds of what stays Python, by the paths of modules, as `Place.around` has them.

    ``None`` where some part was not there when they were counted.
    """
    parts = parts_of(model).values()
    places = [part.place if isinstance(part, QuantizedModel) else None for part in parts]
    counted = [None if place is None else place.around for place in places]
    return next((around for around in counted if None not in counted), None)


def lower_parts(
    model: Model,
    runtime: str,
    *,
    tune: bool = False,
    budget: float | None = BUDGET_S,
    data: Any = None,
    **options: Any,
) -> Model:
    """A copy of the model whose regions run on another runtime.

    Args:
        model: it is left as it was, but that its regions remember how they were tuned.
        runtime, tune, options: as for `QuantizedModel.lower`.
        budget: of tuning, for all regions together.
        data: only what a model of one graph takes.

    Raises:
        InputError: there is nothing to tune, data was given, or the budget is no number.
        OctavoError: as `QuantizedModel.lower`.
    """
    optional(NUMBER, budget=budget)
    regions = regions_of(model)
    if tune:
        if not regions:
            raise InputError(
                "there is nothing to tune: the model's quantized parts are modules, which have one "
                "way to run. Quantize it in regions for that, octavo.quantize(..., "
                'scope="regions")'
            )
        budget = None if budget is None else budget / len(regions)
        options |= {"tune": True, "budget": budget}
    if data is not None:
        raise InputError(
            "data is of the whole model, whose regions are tuned one by one: leave it out"
        )
    lowered = copied(model)
    for known, region in zip(regions.values(), regions_of(lowered).values(), strict=True):
        region.tunings = known.tunings  # what is found is remembered by both
        put(lowered, region, region.lower(runtime, **options))
    return lowered
