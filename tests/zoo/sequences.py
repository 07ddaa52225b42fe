"""Networks of recurrent layers and for speech, written here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.entry import Call, Entry, tokens

WORDS, LENGTH, WIDTH, CLASSES, BANDS = 100, 20, 32, 5, 40


class TimeMajor(nn.Module):
    """float32 ``[N, T, 32]`` and both states ``[N, 2, 32]`` -> scores ``[N, T, 5]`` and states.

    The LSTM itself wants time and layers first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(WIDTH, WIDTH, num_layers=2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        found, (h, c) = self.recurrent(x.transpose(0, 1), states)
        return self.head(found).transpose(0, 1), h.transpose(0, 1), c.transpose(0, 1)


class Tagger(nn.Module):
    """int64 ``[N, T]`` -> a class for each word ``[N, T, 5]``, by what stands around it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.head(self.recurrent(self.words(words))[0])
        return scores


class CellByCell(nn.Module):
    """float32 ``[N, T, 32]`` -> scores ``[N, 5]``: cells called step by step in Python."""

    def __init__(self, kind: type[nn.GRUCell] | type[nn.LSTMCell]) -> None:
        super().__init__()
        self.cell = kind(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        scores: Tensor = self.head(state if isinstance(state, Tensor) else state[0])
        return scores


class Translator(nn.Module):
    """Bahdanau et al. 2015 (arXiv:1409.0473): int64 ``[N, T]`` -> scores ``[N, 8, 100]``."""

    def __init__(self, steps: int = 8) -> None:
        super().__init__()
        self.steps = steps
        self.words = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.decoder = nn.GRUCell(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        memory, last = self.encoder(self.words(words))
        state, word = last[0], memory[:, 0]
        scores = []
        for _ in range(self.steps):
            weights = torch.bmm(memory, state[:, :, None]).softmax(1)
            context = (weights * memory).sum(1)
            state = self.decoder(torch.cat([word, context], dim=1), state)
            scores.append(self.head(state))
            word = state
        return torch.stack(scores, dim=1)


class Crnn(nn.Module):
    """Shi et al. 2015 (arXiv:1507.05717): lines ``[N, 1, 32, S]`` -> ``[N, S / 4, 100]``."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d((8, 1))),
        )
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.convs(x).squeeze(2).transpose(1, 2)
        scores: Tensor = self.head(self.recurrent(columns)[0])
        return scores


class DeepSpeech(nn.Module):
    """Amodei et al. 2015 (arXiv:1512.02595): spectra ``[N, T, 40]`` -> ``[N, T / 2, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, (11, 11), stride=(2, 2), padding=(5, 5))
        self.norm = nn.BatchNorm2d(8)
        self.recurrent = nn.GRU(8 * BANDS // 2, WIDTH, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardtanh(self.norm(self.conv(x[:, None])), 0, 20)
        letters: Tensor = self.head(self.recurrent(x.transpose(1, 2).flatten(2))[0])
        return letters.log_softmax(-1)


class Convolutions(nn.Module):
    """Bai et al. 2018 (arXiv:1803.01271): causal and dilated; ``[N, 40, T]`` -> ``[N, 5, T]``."""

    def __init__(self) -> None:
        super().__init__()
        self.reach = [2**level for level in range(4)]
        self.layers = nn.ModuleList(
            nn.Conv1d(WIDTH if level else BANDS, WIDTH, 3, dilation=reach)
            for level, reach in enumerate(self.reach)
        )
        self.head = nn.Conv1d(WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        for reach, layer in zip(self.reach, self.layers, strict=True):
            found = layer(nn.functional.pad(x, (2 * reach, 0))).relu()
            x = x + found if x.shape == found.shape else found
        scores: Tensor = self.head(x)
        return scores


class KeywordSpotter(nn.Module):
    """Zhang et al. 2017 (arXiv:1711.07128), DS-CNN: spectra ``[N, T, 10]`` -> ``[N, 12]``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False)]
        for _ in range(4):
            layers += [nn.BatchNorm2d(64), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)]
            layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(x[:, None]).mean((2, 3)))
        return scores


class _ConformerConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.deep = nn.Conv1d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        self.back = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.glu(self.wide(self.norm(x).transpose(1, 2)), dim=1)
        found: Tensor = self.back(nn.functional.silu(self.batch_norm(self.deep(x))))
        return found.transpose(1, 2)


def _feed_forward() -> nn.Sequential:
    wide = 4 * WIDTH
    return nn.Sequential(
        nn.LayerNorm(WIDTH), nn.Linear(WIDTH, wide), nn.SiLU(), nn.Linear(wide, WIDTH)
    )


class _ConformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _feed_forward(), _feed_forward()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.convolution = _ConformerConvolution()
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        read = self.norm(x)
        x = x + self.attention(read, read, read, need_weights=False)[0]
        x = x + self.convolution(x)
        result: Tensor = self.last(x + 0.5 * self.second(x))
        return result


class Conformer(nn.Module):
    """Gulati et al. 2020 (arXiv:2005.08100): spectra ``[N, T, 40]`` -> ``[N, about T / 4, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fewer = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
        )
        self.enter = nn.Linear(8 * 9, WIDTH)
        self.blocks = nn.Sequential(_ConformerBlock(), _ConformerBlock())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fewer(x[:, None]).transpose(1, 2).flatten(2)
        letters: Tensor = self.head(self.blocks(self.enter(x)))
        return letters.log_softmax(-1)


def _with_states(length: int) -> Callable[[int], Call]:
    def call(batch: int) -> Call:
        states = (torch.randn(batch, 2, WIDTH) for _ in range(2))
        return (torch.randn(batch, length, WIDTH), *states)

    return call


def _words(length: int) -> Callable[[int], Call]:
    return lambda batch: (tokens(batch, length, WORDS),)


def _floats(*shape: int) -> Callable[[int], Call]:
    return lambda batch: (torch.randn(batch, *shape),)


def _entry(
    name: str,
    make: Callable[[], nn.Module],
    example: Callable[[int], Call],
    another: Callable[[int], Call] | None = None,
) -> Entry:
    return Entry(name, "torch", make, example, another)


ENTRIES = (
    _entry("time_major_lstm_with_states", TimeMajor, _with_states(LENGTH), _with_states(12)),
    _entry("bidirectional_lstm_tagger", Tagger, _words(LENGTH), _words(12)),
    _entry("lstm_cells", lambda: CellByCell(nn.LSTMCell), _floats(6, WIDTH)),
    _entry("gru_cells", lambda: CellByCell(nn.GRUCell), _floats(6, WIDTH)),
    _entry("gru_with_attention", Translator, _words(LENGTH), _words(12)),
    _entry("crnn", Crnn, _floats(1, 32, 64), _floats(1, 32, 96)),
    _entry("deepspeech", DeepSpeech, _floats(64, BANDS), _floats(96, BANDS)),
    _entry("tcn", Convolutions, _floats(BANDS, 64), _floats(BANDS, 40)),
    _entry("keyword_spotter", KeywordSpotter, _floats(49, 10), _floats(30, 10)),
    _entry("conformer", Conformer, _floats(64, BANDS), _floats(96, BANDS)),
)
