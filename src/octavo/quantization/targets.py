"""Targets: what the place where a model will run can do, as data.

A target says which operators have an int8 kernel there, what can be fused, and which integers its
kernels compute rightly with. Planning reads these tables and branches on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.arguments import INTEGER, TEXT, expect, meant
from octavo.errors import PlanError
from octavo.numerics.observers import (
    MSE,
    FixedRange,
    MinMax,
    MovingAverageMinMax,
    Observer,
    PairSum,
)
from octavo.numerics.scheme import Scheme
from octavo.quantization.fusions import CLIPS, ONEDNN, Fusion
from octavo.quantization.qconfig import QConfig, QSpec

MODES = ("static", "dynamic", "weight_only")

# Roles: what it means for an operator to be quantized.
WEIGHTED = "weighted"  # quantized input, constant quantized weights
LOOKUP = "lookup"  # a constant quantized table, read by index
PRODUCT = "product"  # of two activations: quantized inputs, wherever they come from
COMPUTED = "computed"  # quantized inputs, an output scale of its own
SHARED = "shared"  # moves or picks integers: input and output have the same scale

_LAYERS = """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
""".split()
_RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split()
_TABLES = "embedding embedding_bag".split()
_ARITHMETIC = """
    add sub mul mean relu hardtanh avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d
""".split()
_PRODUCTS = "matmul bmm scaled_dot_product_attention".split()
_FUNCTIONS = """
    hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu prelu elu softmax
""".split()
_NORMS = "batch_norm layer_norm group_norm instance_norm rms_norm".split()
_MOVES = """
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    amax upsample_nearest1d upsample_nearest2d upsample_nearest3d
    reshape flatten unflatten squeeze unsqueeze transpose permute t movedim swapaxes
    expand repeat flip roll narrow slice select chunk split split_with_sizes unbind getitem
    cat stack pad constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle
""".split()

ROLES: Mapping[str, str] = {
    **dict.fromkeys([*_LAYERS, *_RECURRENT], WEIGHTED),
    **dict.fromkeys(_TABLES, LOOKUP),
    **dict.fromkeys(_PRODUCTS, PRODUCT),
    **dict.fromkeys([*_ARITHMETIC, *_FUNCTIONS, *_NORMS], COMPUTED),
    **dict.fromkeys(_MOVES, SHARED),
}

# Functions whose results are never below zero.
FROM_ZERO = frozenset({"relu", "sigmoid", "hardsigmoid", "softmax"})

# What is quantized unless a rule says otherwise, by mode. A rule can ask for what else is in ROLES.
_DYNAMIC = frozenset([*_RECURRENT, "linear", *_TABLES])
_STATIC = frozenset([*_LAYERS, *_RECURRENT, *_ARITHMETIC, *_MOVES, *_TABLES])


@dataclass(frozen=True)
class Operands:
    """What a product of activations reads in int8 where a target's kernels want it of a kind.

    Attributes:
        scheme: of each that can be negative; what cannot has the default one, whose zero is 0 then.
        count: the first so many are read in int8, the others in float.
    """

    scheme: Scheme
    count: int


@dataclass(frozen=True)
class Target:
    """A place to run: its default schemes, its int8 operators and its fusions.

    Attributes:
        name: what a user writes.
        about: one line for tables.
        qconfigs: mode -> the default schemes and observers.
        operators: mode -> operators that are quantized by default. Others in `ROLES` are where a
            rule names them: int8 gains no speed with them there.
        fusions: operator -> what its kernel takes in behind it.
        weight_without_pairs: where kernels that sum pairs of u8 x s8 products in int16 limit the
            default weights, those of layers that sum none.
        fixed_outputs: operator -> the range that its result always has, as kernels there want it.
        operands: product of activations -> what it reads in int8, where not all as by default.
        integer_results: whether its static kernels return integers alone, so that a layer's result
            is rounded whoever reads it, the caller too.
        floats_beside: whether its kernels for integers read and return floats as well, so that
            what stands between them costs little in float.
    """

    name: str
    about: str
    qconfigs: Mapping[str, QConfig]
    operators: Mapping[str, frozenset[str]]
    fusions: Mapping[str, Fusion]
    weight_without_pairs: QSpec | None = None
    fixed_outputs: Mapping[str, QSpec] = field(default_factory=dict)
    operands: Mapping[str, Operands] = field(default_factory=dict)
    integer_results: bool = False
    floats_beside: bool = False

    @property
    def qconfig(self) -> QConfig:
        """The default for static quantization."""
        return self.default("static")

    def default(self, mode: str) -> QConfig:
        """The schemes and observers of a mode, unless rules say otherwise.

        Raises:
            PlanError: the target has none.
        """
        if mode not in self.qconfigs:
            known = ", ".join(map(repr, self.qconfigs))
            raise PlanError(f"the target {self.name!r} has no mode {mode!r}; it has {known}")
        return self.qconfigs[mode]


def _weight(per_channel: bool = True) -> QSpec:
    axis = 0 if per_channel else None
    return QSpec(Scheme("int8", symmetric=True, channel_axis=axis, narrow_range=True), MinMax())


def _qconfigs(activation: Scheme, weight: QSpec, per_token: bool = True) -> dict[str, QConfig]:
    """Dynamic ranges are of each token by default, so that no result depends on its neighbours."""
    return {
        "static": QConfig(QSpec(activation, MinMax()), weight),
        "dynamic": QConfig(QSpec(replace(activation, per_token=per_token)), weight),
        "weight_only": QConfig(None, weight),
    }


def _operators(*static: str) -> dict[str, frozenset[str]]:
    return {
        "static": _STATIC | frozenset(static),
        "dynamic": _DYNAMIC,
        "weight_only": _DYNAMIC,
    }


_CLIPPED = dict.fromkeys([*_LAYERS[:4], "add"], Fusion(CLIPS))

_X86 = Target(
    name="x86",
    about="x86 CPUs with VNNI, AVX-VNNI or AMX",
    qconfigs=_qconfigs(Scheme("uint8"), _weight()),
    operators=_operators("scaled_dot_product_attention"),
    fusions={**ONEDNN, "add": Fusion(frozenset({"relu"}))},
    floats_beside=True,
)

_X86_AVX2 = replace(
    _X86,
    name="x86-avx2",
    about="x86 CPUs without VNNI: weights whose pairs of products fit into int16",
    qconfigs={
        **_qconfigs(Scheme("uint8"), replace(_weight(), observer=PairSum())),
        "weight_only": QConfig(None, _weight()),
    },
    weight_without_pairs=_weight(),
)

_ARM = Target(
    name="arm",
    about="Arm CPUs, qnnpack's conventions: uint8 activations, one scale per weight",
    qconfigs=_qconfigs(Scheme("uint8"), _weight(per_channel=False)),
    operators=_operators("hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu"),
    fusions=_CLIPPED,
    integer_results=True,
)

_ONNXRUNTIME = Target(
    name="onnxruntime",
    about="ONNX Runtime: QDQ around what it has integer kernels for",
    # Its one kernel for dynamic layers finds one range for all rows, and is twice as fast as what
    # it makes of ranges of rows.
    qconfigs=_qconfigs(Scheme("uint8"), _weight(), per_token=False),
    # Rounded attention is a dozen operators there, of which one after the other takes longer than
    # its kernels for floats. What comes of a convolution is rounded there, or all of it is float.
    operators=_operators(
        *"matmul bmm softmax sigmoid tanh leaky_relu elu hardswish hardsigmoid silu".split()
    ),
    fusions=_CLIPPED,
)

_ACTIVATIONS = CLIPS | {"hardswish", "silu", "gelu", "leaky_relu"}

# Without zero points: with them OpenVINO computes a product of activations in float. And attention
# is one kernel where softmax stands between its products with nothing that rounds.
_SIGNED = Scheme("int8", symmetric=True)

_OPENVINO = Target(
    name="openvino",
    about="OpenVINO: QDQ before convolutions and matrix products, the rest is fused there",
    qconfigs=_qconfigs(Scheme("uint8"), _weight()),
    operators=_operators(*_PRODUCTS),
    fusions={
        **dict.fromkeys([*_LAYERS, "add"], Fusion(_ACTIVATIONS)),
        "conv2d": Fusion(_ACTIVATIONS, addition=True),
    },
    operands=dict.fromkeys(_PRODUCTS, Operands(_SIGNED, 2)),
)

_TENSORRT = Target(
    name="tensorrt",
    about="TensorRT: symmetric int8 activations, no zero points",
    qconfigs=_qconfigs(Scheme("int8", symmetric=True, narrow_range=True), _weight()),
    operators=_operators(*_PRODUCTS),
    fusions={**_CLIPPED, "conv2d": Fusion(CLIPS, addition=True)},
)

_ZERO_TO_ONE = QSpec(Scheme("int8"), FixedRange(0.0, 255 / 256))

_EDGE = Target(
    name="edge",
    about="microcontrollers and NPUs, TFLite's int8 conventions: no operator in float",
    qconfigs=_qconfigs(Scheme("int8"), _weight()),
    operators=_operators(*_PRODUCTS, *_FUNCTIONS, *_NORMS),
    fusions=_CLIPPED,
    integer_results=True,
    fixed_outputs={
        "softmax": _ZERO_TO_ONE,
        "sigmoid": _ZERO_TO_ONE,
        "tanh": QSpec(Scheme("int8"), FixedRange(-1.0, 127 / 128)),
    },
)

# Functions, and pooling by averages, are XNNPACK's in float alone.
_XNNPACK = "linear conv1d conv2d conv_transpose1d conv_transpose2d add sub mul mean relu hardtanh"

_EXECUTORCH = Target(
    name="executorch",
    about="phones, by ExecuTorch: what XNNPACK has integer kernels for",
    qconfigs=_qconfigs(Scheme("int8"), _weight()),
    operators={
        "static": frozenset([*_XNNPACK.split(), "adaptive_avg_pool2d", *_MOVES, *_TABLES]),
        "dynamic": frozenset(["linear", *_TABLES]),
        "weight_only": _DYNAMIC,
    },
    fusions={
        **dict.fromkeys([*_LAYERS[:3], *_LAYERS[4:6]], Fusion(CLIPS)),
        "add": Fusion(frozenset({"relu"})),
    },
    integer_results=True,
)

TARGETS = {
    target.name: target
    for target in (
        *(_X86, _X86_AVX2, _ARM, _ONNXRUNTIME, _OPENVINO, _TENSORRT, _EDGE),
        _EXECUTORCH,
    )
}


_CPU = "for the CPU at hand leave target= out, or write octavo.host_target()"
_GPU = (
    "Octavo's kernels are for CPUs; target='tensorrt' writes ONNX files for NVIDIA's GPUs, "
    "octavo.export_onnx(q, path)"
)
_ELSEWHERE = {
    **dict.fromkeys(("cpu", "host", "native", "auto", "x86_64", "amd64", "intel", "amd"), _CPU),
    **dict.fromkeys(("fbgemm", "onednn", "inductor", "torch"), "write 'x86'"),
    **dict.fromkeys(("cuda", "gpu", "nvidia"), _GPU),
    **dict.fromkeys(("qnnpack", "arm64", "aarch64", "android", "ios"), "write 'arm'"),
    **dict.fromkeys(("onnx", "ort"), "write 'onnxruntime'"),
}
"""What targets are called elsewhere, and what to write."""


def target(name: str) -> Target:
    """The target of this name.

    Args:
        name: one of `TARGETS`.

    Raises:
        PlanError: there is none.
    """
    expect(TEXT, target=name)
    try:
        return TARGETS[name]
    except KeyError:
        raise PlanError(
            f"unknown target {name!r}: {meant(name, sorted(TARGETS), _ELSEWHERE)}"
        ) from None


def static_qconfig(
    target_name: str = "x86", *, observer: Observer | None = None, weight_bits: int = 8
) -> QConfig:
    """The target's static default, with another observer for activations if given.

    Weights of fewer bits than eight save memory, in the file and in what is sent: the ``torch``
    runtime unpacks them when it is loaded, and runs them on its int8 kernels. Their ranges are
    those of least squared error; ``effort=`` knows what else helps there.

    Args:
        target_name: name of a `Target`.
        observer: of activations; the target's without.
        weight_bits: 2 to 8.

    Raises:
        PlanError: no such target, or other bits.

    Example:
        >>> static_qconfig("x86").activation.scheme.dtype
        'uint8'
        >>> static_qconfig("x86", observer=octavo.MSE()).activation.observer.name
        'mse'
        >>> str(static_qconfig(weight_bits=4).weight)
        'int4 per-channel symmetric'
    """
    default = target(target_name).qconfig
    weight = _of_bits(default.weight, weight_bits, MSE())
    if observer is None or default.activation is None:
        return replace(default, weight=weight)
    return QConfig(replace(default.activation, observer=observer), weight)


def qat_qconfig(
    target_name: str = "x86", *, weight_bits: int = 8, activation_bits: int = 8
) -> QConfig:
    """The target's static default for training: activations by a moving average of extrema.

    Fewer bits than eight save memory, in the file and in what is sent: the ``torch`` runtime
    unpacks such weights when it is loaded, and runs them on its int8 kernels.

    Args:
        target_name: name of a `Target`.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.

    Raises:
        PlanError: no such target, or other bits.

    Example:
        >>> str(qat_qconfig(weight_bits=4).weight)
        'int4 per-channel symmetric'
    """
    default = target(target_name).qconfig
    assert default.activation is not None
    _check_bits("activation_bits", activation_bits)
    scheme = default.activation.scheme
    if activation_bits < 8:
        scheme = replace(scheme, dtype=_narrower(scheme.dtype, activation_bits))
    weight = _of_bits(default.weight, weight_bits, MinMax())
    return QConfig(QSpec(scheme, MovingAverageMinMax()), weight)


def _of_bits(weight: QSpec, bits: int, observer: Observer) -> QSpec:
    """A weight of so many bits; pairs of products of fewer than eight fit into int16."""
    _check_bits("weight_bits", bits)
    if bits == 8:
        return weight
    scheme = replace(weight.scheme, dtype=_narrower(weight.scheme.dtype, bits))
    return QSpec(scheme, observer)


def _check_bits(what: str, bits: int) -> None:
    expect(INTEGER, **{what: bits})
    if bits not in range(2, 9):
        raise PlanError(f"{what} is {bits}; static integers and training take 2 to 8 bits")


def _narrower(dtype: str, bits: int) -> str:
    return f"{dtype.rstrip('0123456789')}{bits}"


def dynamic_qconfig(target_name: str = "x86", *, per_token: bool | None = None) -> QConfig:
    """The target's dynamic default: each call's own range.

    Args:
        target_name: name of a `Target`.
        per_token: one range for each row (all axes but the last), so that a sample's result does
            not depend on the others in its batch; or one for all rows. ``None`` is the target's
            default: for each row, but on ``"onnxruntime"``. Convolutions have one for all.

    Raises:
        PlanError: no such target.

    Example:
        >>> str(dynamic_qconfig().activation)
        'uint8 per-token affine, dynamic'
    """
    default = target(target_name).default("dynamic")
    assert default.activation is not None
    if per_token is None:
        return default
    scheme = replace(default.activation.scheme, per_token=per_token)
    return replace(default, activation=QSpec(scheme))


def weight_only_qconfig(
    bits: int = 8, *, group_size: int | None = None, symmetric: bool = True
) -> QConfig:
    """Weights in 8 or 4 bits, activations in float.

    Args:
        bits: 8 or 4.
        group_size: one scale for so many input channels, within each output channel; one for each
            output channel without.
        symmetric: zero point 0, else affine.

    Raises:
        PlanError: other bits, or a group size below 1.

    Example:
        >>> str(weight_only_qconfig(4, group_size=64, symmetric=False).weight)
        'uint4 per-group-of-64 affine'
    """
    expect(INTEGER, bits=bits)
    if bits not in (4, 8):
        raise PlanError(f"weight-only quantization takes 8 or 4 bits, not {bits}")
    scheme = Scheme(
        f"int{bits}" if symmetric else f"uint{bits}",
        symmetric=symmetric,
        channel_axis=0 if group_size is None else None,
        group_size=group_size,
        narrow_range=symmetric and bits == 8,
    )
    return QConfig(None, QSpec(scheme, MinMax()))
