"""Networks trained once, and kept: AdamW, a one-cycle learning rate, new views in each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.nets import SEED, seeded
from octavo.progress import track

CACHE = Path(__file__).parent / ".cache"
# Which of the things to train on, and chance -> inputs and what they shall give.
Views = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def trained(
    name: str,
    make: Callable[[], nn.Module],
    views: Views,
    count: int,
    *,
    recipe: int,
    epochs: int,
    learning_rate: float = 4e-3,
    batch: int = 128,
    loss: Loss = F.cross_entropy,
    in_bf16: bool = False,
    seed: int = SEED,
    cache: Path = CACHE,
) -> nn.Module:
    """The network of this name in evaluation mode: from the cache, or trained now.

    Args:
        name: of it, and of its file.
        make: a fresh one.
        views: of the things to train on, anew in each epoch.
        count: of these things.
        recipe: raise it when data, network or training change: the cache is then stale.
        epochs: of training.
        learning_rate: the largest.
        batch: things in a step.
        loss: what is made small.
        in_bf16: its layers, with channels last: four times as fast for convolutions by AMX.
        seed: of its weights at the start.
        cache: the folder of trained weights.
    """
    file = cache / f"{name.replace(' ', '-')}-recipe{recipe}-{epochs}.safetensors"
    net = seeded(make, seed)
    if file.exists():
        net.load_state_dict(load_file(file))
        return net.eval()
    started = time.perf_counter()
    net = net.to(memory_format=torch.channels_last if in_bf16 else torch.contiguous_format)
    _train(net, views, count, epochs, learning_rate, batch, loss, in_bf16)
    net = net.to(memory_format=torch.contiguous_format)
    print(f"trained {name} in {time.perf_counter() - started:.0f} s", flush=True)
    cache.mkdir(exist_ok=True)
    save_file(net.state_dict(), file)
    return net.eval()


def _train(
    net: nn.Module,
    views: Views,
    count: int,
    epochs: int,
    learning_rate: float,
    batch: int,
    loss: Loss,
    in_bf16: bool,
) -> None:
    chance = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=2e-2)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)  # for dropout
        for _ in track(range(epochs), "training"):
            order = torch.randperm(count, generator=chance)
            for chosen in order.split(batch)[: count // batch]:
                inputs, wanted = views(chosen, chance)
                with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                    answers = net(inputs)
                cost = loss(answers.float(), wanted)
                optimizer.zero_grad()
                cost.backward()
                optimizer.step()
                schedule.step()
