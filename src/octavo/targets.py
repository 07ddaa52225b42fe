"""Targets: what the place where a model will run can do, as data.

A target says which operators have an int8 kernel there, what can be fused, and which integers its
kernels compute rightly with. Planning reads these tables and branches on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from octavo.errors import PlanError
from octavo.observers import MinMax
from octavo.qconfig import QConfig, QSpec
from octavo.scheme import Scheme

# Roles of an operator that runs in int8.
WEIGHTED = "weighted"  # quantized input, constant quantized weight
COMPUTED = "computed"  # quantized inputs, an output scale of its own
SHARED = "shared"  # moves or picks integers: input and output have the same scale


@dataclass(frozen=True)
class Target:
    """A place to run: its default schemes, its int8 operators and its fusions.

    Attributes:
        name: what a user writes.
        about: one line for tables.
        qconfig: the default schemes and observers.
        roles: operator -> role; an operator that is not here stays float.
        fused_activations: operator before -> activations that its kernel applies itself.
        fused_addition: operators whose kernel adds another quantized tensor to its result.
        full_range: where kernels that sum pairs of u8 x s8 products in int16 limit ``qconfig`` to
            seven bits, the activation for tensors that no such kernel reads.
    """

    name: str
    about: str
    qconfig: QConfig
    roles: Mapping[str, str]
    fused_activations: Mapping[str, frozenset[str]]
    fused_addition: frozenset[str]
    full_range: QSpec | None = None


_ROLES = {
    "conv2d": WEIGHTED,
    "linear": WEIGHTED,
    "add": COMPUTED,
    "mul": COMPUTED,
    "relu": COMPUTED,
    "hardtanh": COMPUTED,
    "mean": COMPUTED,
    "avg_pool2d": COMPUTED,
    "adaptive_avg_pool2d": COMPUTED,
    "max_pool2d": SHARED,
    "reshape": SHARED,
    "flatten": SHARED,
    "squeeze": SHARED,
    "unsqueeze": SHARED,
    "transpose": SHARED,
    "permute": SHARED,
    "cat": SHARED,
    "slice": SHARED,
    "select": SHARED,
    "chunk": SHARED,
    "split": SHARED,
    "split_with_sizes": SHARED,
    "getitem": SHARED,
    "pixel_shuffle": SHARED,
    "channel_shuffle": SHARED,
}

_INT8_WEIGHT = QSpec(Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True), MinMax())

_X86 = Target(
    name="x86",
    about="x86 CPUs with VNNI, AVX-VNNI or AMX",
    qconfig=QConfig(activation=QSpec(Scheme("uint8"), MinMax()), weight=_INT8_WEIGHT),
    roles=_ROLES,
    fused_activations={
        "conv2d": frozenset({"relu", "hardtanh", "hardswish", "silu"}),
        "linear": frozenset({"relu", "hardtanh", "hardswish", "silu"}),
        "add": frozenset({"relu"}),
    },
    fused_addition=frozenset({"conv2d"}),
)

_X86_AVX2 = replace(
    _X86,
    name="x86-avx2",
    about="x86 CPUs without VNNI: 7-bit activations where u8 x s8 would saturate in int16",
    qconfig=QConfig(
        activation=QSpec(Scheme("uint8", reduce_range=True), MinMax()), weight=_INT8_WEIGHT
    ),
    full_range=QSpec(Scheme("uint8"), MinMax()),
)

TARGETS = {target.name: target for target in (_X86, _X86_AVX2)}


def target(name: str) -> Target:
    """The target of this name.

    Raises:
        PlanError: there is none.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise PlanError(f"unknown target {name!r}; one of {sorted(TARGETS)}") from None
