"""The peers that quantize with calibration data, each at each of its settings, in exact arithmetic
as far as it has that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import peers

Answer = Callable[[Tensor], Tensor]
# Of a network, batches of images, and whether it is a transformer.
Maker = Callable[[nn.Module, list[Tensor], bool], Answer]
FX, PT2E = "torch.ao FX, onednn", "torchao PT2E"
NNCF_FULL = "NNCF, full bias correction"


def _fx(net: nn.Module, calibration: list[Tensor], _: bool) -> Answer:
    return peers.fx(net, calibration, "onednn", reference=True)


def _pt2e(net: nn.Module, calibration: list[Tensor], _: bool) -> Answer:
    model = peers.pt2e(net, (calibration[0],), [(x,) for x in calibration], reference=True)
    return in_batches(model, len(calibration[0]))


def _onnxruntime(method: str) -> Maker:
    def make(net: nn.Module, calibration: list[Tensor], _: bool) -> Answer:
        batches = [(x,) for x in calibration]
        file = peers.onnxruntime_static_file(net, batches[0], batches, method)
        return in_batches(peers.session(file, exact=True), len(calibration[0]))

    return make


def _nncf(fast: bool) -> Maker:
    def make(net: nn.Module, calibration: list[Tensor], is_transformer: bool) -> Answer:
        batches = [(x,) for x in calibration]
        model = peers.nncf_model(
            net, batches[0], batches, transformer=is_transformer, fast_bias_correction=fast
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.xml"
            peers.openvino_file(model, file)
            return in_batches(peers.compiled_by_openvino(file, "f32"), len(calibration[0]))

    return make


PEERS: Mapping[str, Maker] = {
    FX: _fx,
    PT2E: _pt2e,
    "ONNX Runtime, MinMax": _onnxruntime("MinMax"),
    "ONNX Runtime, Percentile": _onnxruntime("Percentile"),
    "ONNX Runtime, Entropy": _onnxruntime("Entropy"),
    "NNCF": _nncf(True),
    NNCF_FULL: _nncf(False),
}


def in_batches(model: Callable[..., Tensor], size: int) -> Answer:
    """A model that takes so many images at a time, for any number of them."""

    def answer(images: Tensor) -> Tensor:
        results = []
        for batch in images.split(size):
            missing = size - len(batch)
            whole = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])
            results.append(torch.as_tensor(model(whole)).clone()[: len(batch)])
        return torch.cat(results)

    return answer
