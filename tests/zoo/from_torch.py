"""Networks written here, of torch's own layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import Call, Entry, images, padding_mask, tokens

WORDS, LENGTH, WIDTH, CLASSES = 100, 20, 32, 5


def _convs(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv:1505.04597): float32 ``[N, 3, S, S]`` -> ``[N, 5, S, S]``."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        before = (3, *widths)
        self.down = nn.ModuleList(map(_convs, before, widths))
        self.pool = nn.MaxPool2d(2)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1]
        )
        self.up = nn.ModuleList(_convs(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, convs in enumerate(self.down):
            x = convs(self.pool(x) if index else x)
            skips.append(x)
        for index in reversed(range(len(self.up))):
            x = self.up[index](torch.cat([skips[index], self.grow[index](x)], dim=1))
        scores: Tensor = self.head(x)
        return scores


class RecurrentClassifier(nn.Module):
    """int64 ``[N, T]`` -> class scores ``[N, 5]`` from the states after the last word."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.recurrent = kind(WIDTH, WIDTH, batch_first=True, **options)
        self.head = nn.Linear(WIDTH * (1 + self.recurrent.bidirectional), CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.recurrent(self.words(words))
        scores: Tensor = self.head(states[:, -1])
        return scores


class TransformerClassifier(nn.Module):
    """int64 ``[N, T]`` and where it is padding -> class scores ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, words: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.words(words) + self.places
        scores: Tensor = self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])
        return scores


def _words(batch: int) -> Call:
    return (tokens(batch, LENGTH, WORDS),)


def _fewer_words(batch: int) -> Call:
    return (tokens(batch, 12, WORDS),)


def _padded_words(batch: int) -> Call:
    return {"words": tokens(batch, LENGTH, WORDS), "padding": padding_mask(batch, LENGTH) == 0}


ENTRIES = (
    Entry("unet", "torch", UNet, images(32), images(48)),
    Entry(
        "lstm",
        "torch",
        lambda: RecurrentClassifier(nn.LSTM, num_layers=2),
        _words,
        _fewer_words,
    ),
    Entry(
        "bidirectional_gru",
        "torch",
        lambda: RecurrentClassifier(nn.GRU, bidirectional=True),
        _words,
        _fewer_words,
    ),
    Entry("transformer_encoder", "torch", TransformerClassifier, _words),
    Entry("transformer_encoder_padded", "torch", TransformerClassifier, _padded_words),
)
