"""The five jobs of docs/side_by_side.md: ours run, and the table counts what stands there."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import built
from sweeping import swept
from torch import Tensor, nn

import octavo

PAGE = (Path(__file__).parents[1] / "docs" / "side_by_side.md").read_text(encoding="utf-8")
LIBRARIES = ("Octavo", "torchao", "quanto", "NNCF")


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU())
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images: Tensor) -> Tensor | None:
        scores = self.head(self.backbone(images))
        return scores[scores > 0] if scores.max() > 0 else None


def cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16 * 36, 5)).eval()


def texts(with_labels: bool = False) -> list[dict[str, Tensor]]:
    ids = torch.arange(32).reshape(2, 16)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for _ in range(2)]


def speech() -> nn.Module:
    return built(  # type: ignore[no-any-return]
        *("Wav2Vec2ForCTC",),
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        vocab_size=12,
    )


# Job -> the model and its batches.
JOBS: dict[str, Callable[[], tuple[nn.Module, list[Any]]]] = {
    "Text classifier": lambda: (built("BertForSequenceClassification"), texts()),
    "Language model": lambda: (built("LlamaForCausalLM", num_key_value_heads=2), texts()),
    "Detection": lambda: (Detector().eval(), [torch.rand(2, 3, 16, 16) for _ in range(2)]),
    "Speech": lambda: (speech(), [{"input_values": torch.randn(2, 800)} for _ in range(2)]),
    "CNN": lambda: (cnn(), [(torch.rand(2, 3, 8, 8), torch.arange(2)) for _ in range(2)]),
}


def code_of(job: str, library: str) -> str | None:
    section = PAGE.partition(f"## {job}\n")[2].partition("\n## ")[0]
    found = re.search(rf'```python title="{library}"\n(.*?)```', section, re.DOTALL)
    return None if found is None else found[1]


def concepts(code: str) -> set[str]:
    """Functions, classes, methods and keywords of libraries."""
    tree = ast.parse(code)
    modules = {
        n.asname or n.name for i in ast.walk(tree) if isinstance(i, ast.Import) for n in i.names
    }
    names: set[str] = set()
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.keyword) and node.arg:
            names.add(f"{node.arg}=")
        elif isinstance(node, ast.Attribute) and node not in inner:
            names.add(
                ast.unparse(node) if ast.unparse(node).split(".")[0] in modules else node.attr
            )
    return names


def lines(code: str) -> int:
    """Blank ones do not count."""
    return sum(bool(line.strip()) for line in code.splitlines())


def cell(job: str, library: str) -> str:
    code = code_of(job, library)
    return "-" if code is None else f"{lines(code)} ({len(concepts(code))})"


def table() -> list[str]:
    return [f"| {job} | {' | '.join(cell(job, one) for one in LIBRARIES)} |" for job in JOBS]


@pytest.mark.parametrize("job", swept(JOBS, kept=set(JOBS) - {"Speech"}))
def test_ours_run(job: str) -> None:
    torch.manual_seed(0)
    model, loader = JOBS[job]()
    names: dict[str, Any] = {"model": model, "loader": loader}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)  # that there are regions
        exec(code_of(job, "Octavo") or "", names)  # noqa: S102  the page's own code
    share = octavo.summary(names["q"]).share
    assert share is None or share > 0.5
    first = loader[0]
    args = first if isinstance(first, tuple) else (first,)
    with torch.no_grad():
        answer = names["q"](**first) if isinstance(first, dict) else names["q"](args[0])
        assert answer is not None


def test_the_table_counts_what_stands_below_it() -> None:
    for row in table():
        assert row in PAGE


@pytest.mark.parametrize("job", JOBS)
def test_none_is_longer_than_the_shortest_peer(job: str) -> None:
    own = code_of(job, "Octavo") or ""
    peers = [code for one in LIBRARIES[1:] if (code := code_of(job, one)) is not None]
    assert lines(own) <= min(map(lines, peers))
    assert len(concepts(own)) <= min(len(concepts(code)) for code in peers)
