"""Networks that no graph can hold whole: they are quantized in regions, or module by module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from zoo.entry import Call, Entry, images, tokens

WORDS, LENGTH, WIDTH, CLASSES = 100, 20, 32, 5


class Packed(nn.Module):
    """int64 ``[N, T]`` and the lengths ``[N]`` -> scores ``[N, 5]``, from a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.words(words), lengths.tolist(), batch_first=True, enforce_sorted=False
        )
        scores: Tensor = self.head(self.recurrent(packed)[1][0][-1])
        return scores


class EarlyExit(nn.Module):
    """``[N, 3, S, S]`` -> scores ``[N, 5]``, by a deeper network where the first one is unsure."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.deeper = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.early, self.late = nn.Linear(16, CLASSES), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scores: Tensor = self.early(x.mean((2, 3)))
        if float(scores.softmax(-1).amax(-1).min()) > 0.999:
            return scores
        deeper: Tensor = self.late(self.deeper(x).mean((2, 3)))
        return deeper


class Denoiser(nn.Module):
    """``[N, 3, S, S]`` -> the same: two steps, each of which adds noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 1, 1), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 3, 3, 1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        for step in range(2):
            x = x - 0.3 * self.net(x) + 0.001 * (1 - step) * torch.randn_like(x)
        return x


class UntilStill(nn.Module):
    """float32 ``[N, 32]`` -> ``[N, 32]``: a layer is applied until nothing changes much."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Linear(64, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(20):
            after = 0.5 * self.step(x + state)
            if float((after - state).abs().max()) < 0.05:
                break
            state = after
        scores: Tensor = self.head(state)
        return scores


def _padded(batch: int) -> Call:
    return (tokens(batch, LENGTH, WORDS), LENGTH - torch.arange(batch).remainder(LENGTH // 2))


ENTRIES = (
    Entry("packed_lstm", "torch", Packed, _padded),
    Entry("early_exit", "torch", EarlyExit, images(32)),
    Entry("denoiser", "torch", Denoiser, images(16)),
    Entry("until_still", "torch", UntilStill, lambda batch: (torch.randn(batch, WIDTH),)),
)
