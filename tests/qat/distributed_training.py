"""What one of several processes does in test_distributed: ``torchrun distributed_training.py OUT``.

Each trains and calibrates on its share of the data and writes what it found to OUT.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import octavo
from octavo import MinMax, QConfig, QSpec, Scheme
from octavo.errors import TrainingError
from octavo.qat import QATModel

STEPS = 3


def net() -> nn.Module:
    """The same in every process."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


def batches() -> list[Tensor]:
    """Of all processes together: the first has the lowest values, the last the highest, and each
    batch reaches further than the one before.
    """
    generator = torch.Generator().manual_seed(2)
    rows = torch.linspace(-3, 3, 8)[:, None, None, None]
    return [(1 + i) * (rows + torch.randn(8, 2, 5, 5, generator=generator)) for i in range(STEPS)]


def extrema_config() -> QConfig:
    """Ranges that do not depend on the order in which data is seen."""
    weight = Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True)
    return QConfig(QSpec(Scheme("uint8"), MinMax()), QSpec(weight, MinMax()))


def trained(qat: QATModel, data: list[Tensor], rate: float, parallel: bool) -> dict[str, Tensor]:
    """All of its tensors after a step on each batch."""
    model: nn.Module = DistributedDataParallel(qat) if parallel else qat
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for x in data:
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in qat.state_dict().items()}


def with_extrema(data: list[Tensor], parallel: bool) -> dict[str, Tensor]:
    """Nothing moves but ranges: at a rate of 0 the activations are those of all processes."""
    qat = octavo.prepare_qat(net(), batches()[0], extrema_config()).freeze_batch_norms()
    return trained(qat, data, 0.0, parallel)


def with_learned_scales(data: list[Tensor], parallel: bool) -> dict[str, Tensor]:
    qat = octavo.prepare_qat(
        net(),
        batches()[0],
        extrema_config(),
        calibration=data,
        learned_scales=True,
        distributed=parallel,
        progress=False,
    ).freeze_batch_norms()
    first = {f"first.{n}": p.detach().clone() for n, p in qat.named_parameters() if "scale" in n}
    return first | trained(qat, data, 0.01, parallel)


def with_batch_norms(data: list[Tensor], parallel: bool) -> dict[str, Tensor]:
    """The statistics after each step on a batch, and the model that is deployed in the end."""
    qat = octavo.prepare_qat(net(), batches()[0], extrema_config())
    found = {}
    for index, x in enumerate(data):
        state = trained(qat, [x], 0.01, parallel)
        found |= {f"{index}.{name}": state[name] for name in state if "running" in name}
    deployed = octavo.convert(qat).graph.constants
    return found | {name: tensor.clone().contiguous() for name, tensor in deployed.items()}


def calibrated(data: list[Tensor], parallel: bool) -> dict[str, Tensor]:
    """Scales, zero points and the means of what layers read."""
    graph = octavo.capture(net().eval(), batches()[0])
    plan = octavo.plan(graph, octavo.QConfigMapping().set_global(extrema_config()))
    found = octavo.calibrate(graph, plan, data, distributed=parallel, progress=False)
    scales = {f"{name}.scale": p.scale for name, p in found.qparams.items()}
    zeros = {f"{name}.zero_point": p.zero_point for name, p in found.qparams.items()}
    means = {f"{name}.mean": mean for name, mean in found.input_means.items()}
    every = scales | zeros | means | {"batches": torch.tensor(found.batches)}
    return {name: tensor.clone() for name, tensor in every.items()}


def refused(bad: bool) -> dict[str, Tensor]:
    """Whether training stops here, where the batch of one process has a NaN in it."""
    qat = octavo.prepare_qat(net(), batches()[0], extrema_config())
    qat(batches()[0])
    x = batches()[1].clone()
    if bad:
        x[0, 0, 0, 0] = math.nan
    try:
        qat(x)
    except TrainingError:
        return {"refused": torch.tensor(True)}
    return {"refused": torch.tensor(False)}


def main(out: Path) -> None:
    distributed.init_process_group("gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    mine = [x.chunk(count)[rank] for x in batches()]
    found = {
        "extrema": with_extrema(mine, True),
        "learned": with_learned_scales(mine, True),
        "norms": with_batch_norms(mine, True),
        "calibrated": calibrated(mine, True),
        "refused first": refused(rank == 0),
        "refused last": refused(rank == count - 1),
    }
    for name, tensors in found.items():
        save_file(tensors, out / f"{name}.{rank}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(Path(sys.argv[1]))
