"""Altered artifacts: bytes flipped, cut and put in, and files whose checksum is right but whose
content is not; and the good files that are altered."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import octavo
from octavo.model import artifact, parts_file
from octavo.model.files import sealed

CODE = '__import__("pathlib").Path("canary").touch()'

Metadata = dict[str, str]
Tensors = dict[str, Tensor]


def read(path: Path) -> tuple[Metadata, Tensors]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path: Path, metadata: Metadata, tensors: Tensors) -> None:
    """A file with the right checksum."""
    keys = parts_file.KEYS if "parts" in metadata else artifact.sealed_keys(metadata)
    if set(keys) <= set(metadata):
        metadata = metadata | {"sha256": sealed.checksum(metadata, tensors, keys)}
    save_file(tensors, path, metadata)


def altered_bytes(content: bytes, count: int) -> Iterator[bytes]:
    """Flipped bits, cuts and insertions, most of them in the header."""
    dice = random.Random(1)
    header = 8 + int.from_bytes(content[:8], "little")
    for index in range(count):
        end = header if index % 3 else len(content)
        place = dice.randrange(end)
        kind = index % 4
        if kind == 0:
            yield content[:place]
        elif kind == 1:
            junk = dice.randbytes(dice.choice([1, 8, 1000]))
            yield content[:place] + junk + content[place:]
        elif kind == 2:
            yield content[:place] + content[place + dice.choice([1, 8, 1000]) :]
        else:
            flipped = content[place] ^ (1 << dice.randrange(8))
            yield content[:place] + bytes([flipped]) + content[place + 1 :]


# What stands anywhere in the JSON in place of what belongs there.
VALUES: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 2**70, -(2**63), 1e308, float("nan"), float("inf"), "",
    "x", CODE, "aten.relu.default", "os.system", [], [[]], {}, [0, 0], [-1, -1], [10**6, 10**6],
    {"ref": "x"}, {"ref": "nope"}, {"ref": 5}, {"ref": None}, [{"ref": "x"}], {"tuple": [1]},
    {"float": "nan"}, {"float": CODE}, {"dtype": "float32"}, {"dtype": "load"}, {"dtype": "int8"},
    {"dtype": "quint8"}, {"dtype": "complex64"}, {"layout": "sparse_coo"}, {"device": "cuda"},
    {"memory_format": "channels_last"}, {"dict": [["a", {"ref": "x"}]]}, {"record": [[CODE, 1]]},
    {"namedtuple": ["A", [[CODE, 1]]]}, {"eval": CODE}, [[[[[[[[[[1]]]]]]]]]],
]  # fmt: skip

OPERATORS = """
    aten.from_file.default aten.set_.source_Tensor aten.relu_.default aten.add.out os.system
    python.eval python.exec python.getattr builtins.eval torch.load aten.mul.left_t python.mul
    python.mod python.getitem aten.zeros.default aten.full.default aten.view.dtype aten.relu.default
    aten.repeat.default aten.embedding.default aten.index.Tensor aten.lstm.input aten.col2im.default
    aten.as_strided.default aten.scatter.value aten.unique_consecutive.default aten.cat.default
    aten.conv2d.default aten.conv2d.padding aten.linear.default aten.max_pool2d.default
    aten.mean.default aten.mean.dim aten.hardtanh.default aten.flatten.using_ints aten.split.Tensor
    aten.select.int aten.permute.default aten.mul.Tensor aten.reshape.default
    octavo.quantize.default octavo.dequantize.default octavo.dequantize.Tensor
    octavo.dequantize_channels.default octavo.dequantize_groups.default octavo.eval.default
""".split()

NAMES = [
    "", ".", "..", "a..b", "training", "forward", "plan", "graph", "_buffers", "__class__", "x",
    "relu", CODE, "a b", "../../canary", "\u202e", "x" * 2000,
]  # fmt: skip

TEXTS = [
    "", "null", "[]", "{}", "1", "NaN", '"x"', "[" * 100_000, "9" * 5000, "[][]", "\ud7ff",
    '{"names": ["x"], "required": Infinity}', '{"names": ["x"], "required": 1e400}',
    '{"names": 5, "required": 1}', '{"names": [], "required": "1"}',
    '{"names": ["x"], "required": -1}', '{"names": ["x"], "required": true}',
]  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a structure of JSON."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def altered_json(tree: Any, dice: random.Random) -> Any:
    """A structure with one thing lost, doubled, moved, renamed or replaced."""
    tree = copy.deepcopy(tree)
    *path, key = dice.choice(list(places(tree)))
    parent = tree
    for step in path:
        parent = parent[step]
    kind = dice.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 2 and isinstance(parent, dict):
        parent[dice.choice(["evil", "self", "__class__", "class", CODE])] = parent.pop(key)
    elif kind == 3:
        source = tree
        for step in dice.choice(list(places(tree))):
            source = source[step]
        parent[key] = copy.deepcopy(source)
    elif kind == 4 and type(parent[key]) in (int, float):
        value = parent[key]
        parent[key] = dice.choice([value + 1, -value, value * 1000, 0, str(value)])
    else:
        parent[key] = copy.deepcopy(dice.choice(VALUES))
    return tree


def altered_tensor(tensor: Tensor, dice: random.Random) -> Tensor:
    """Another dtype, shape or content."""
    dtypes = (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.int8)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.to(dice.choice(dtypes)),
        lambda t: t.reshape(-1).clone(),
        lambda t: t.unsqueeze(0).clone(),
        lambda t: t[:0].clone(),
        lambda t: torch.cat([t, t]),
        lambda t: t[:1].clone(),
        lambda t: torch.full_like(t, float("nan") if t.is_floating_point() else 127),
    ]
    return dice.choice(changes)(tensor)


def hostile(metadata: Metadata, tensors: Tensors, seed: int) -> tuple[Metadata, Tensors]:
    """An artifact whose checksum would be right."""
    dice = random.Random(seed)
    metadata, tensors = dict(metadata), dict(tensors)
    graph = json.loads(metadata["graph"])
    name = dice.choice(sorted(tensors))
    kind = seed % 8
    if kind < 3:
        for _ in range(dice.choice([1, 1, 2])):
            graph = altered_json(graph, dice)
        metadata["graph"] = json.dumps(graph)
    elif kind == 3:
        dice.choice(graph["nodes"])["op"] = dice.choice(OPERATORS)
        metadata["graph"] = json.dumps(graph)
    elif kind == 4:
        tensors[name] = altered_tensor(tensors[name], dice)
    elif kind == 5:
        renamed = dice.choice(NAMES)
        tensors[renamed] = tensors.pop(name)
        metadata["graph"] = metadata["graph"].replace(json.dumps(name), json.dumps(renamed))
    elif kind == 6:
        part = dice.choice(["plan", "signature", "provenance"])
        metadata[part] = json.dumps(altered_json(json.loads(metadata[part]), dice))
    else:
        metadata[dice.choice(sorted(metadata))] = dice.choice(TEXTS)
    return metadata, tensors


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, groups=2)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.conv(x))
        y = self.up(torch.cat([self.down(y), self.down(y)], 1)[:, :8].relu())
        return {"logits": self.head(y.mean((2, 3))), "parts": y[:, 1:3].split(1, 1)[0]}


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.table(x))
        y = y + self.attention(y, y, y, need_weights=False)[0]
        mask = (x > 3).unsqueeze(-1)
        return self.head(nn.functional.gelu((y * mask).sum(1) / mask.sum(1).clamp(min=1)))


class Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(16, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.gru(self.lstm(x)[0])
        return self.head(y[:, -1]), y.flip(1).cumsum(1)


# What is altered: a model, what it is called with, and how it is quantized.
BASES: dict[str, tuple[type[nn.Module], Callable[[], Tensor], str]] = {
    "images": (Images, lambda: torch.randn(2, 3, 8, 8), "static"),
    "text": (Text, lambda: torch.randint(0, 20, (2, 5)), "dynamic"),
    "series": (Series, lambda: torch.randn(2, 5, 6), "static"),
    "small weights": (Text, lambda: torch.randint(0, 20, (2, 5)), "weight_only"),
}


def _kept_input(path: Path) -> Tensor:
    return load_file(path)["x"]


KEPT = Path(__file__).parent / "model" / "files_of_version_1"
# Base, or file of an older version -> what it is called with.
EXAMPLES = {name: example for name, (_, example, _) in BASES.items()} | {
    path.stem: partial(_kept_input, path) for path in KEPT.glob("*.safetensors")
}


def write_bases(folder: Path) -> None:
    """A good file for each of them."""
    for path in KEPT.glob("*.octavo"):
        shutil.copy(path, folder)
    for name, (make, example, mode) in BASES.items():
        torch.manual_seed(0)
        model, x = make().eval(), example()
        octavo.quantize(model, calibration=[x], mode=mode, target="x86-avx2", progress=False).save(
            folder / f"{name}.octavo"
        )


def node(graph: dict[str, Any], op: str) -> dict[str, Any]:
    return next(node for node in graph["nodes"] if node["op"] == op)


QUANTIZE, CONV = "octavo.quantize.default", "aten.conv2d.default"

# Attacks that were thought of, each a change of the graph's JSON.
ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "reads a file": lambda g: node(g, CONV).update(
        op="aten.from_file.default", args=["/etc/passwd", False, 10], kwargs={}
    ),
    "calls the shell": lambda g: node(g, CONV).update(op="os.system", args=["touch canary"]),
    "code as a name": lambda g: node(g, CONV).update(name=CODE),
    "code as a keyword": lambda g: node(g, CONV)["kwargs"].update({CODE: 1}),
    "code closing a call": lambda g: node(g, CONV)["kwargs"].update({f"x=1), {CODE}, (y": 1}),
    "a keyword of Python": lambda g: node(g, CONV)["kwargs"].update({"class": 1}),
    "an argument given twice": lambda g: node(g, CONV)["kwargs"].update({"stride": [1, 1]}),
    "code as a field": lambda g: g.update(
        outputs={"namedtuple": ["A", [[f"a=({CODE})", {"ref": "x"}]]]}
    ),
    "a dtype as a number": lambda g: node(g, QUANTIZE)["args"].__setitem__(5, 10**6),
    "no groups": lambda g: node(g, CONV)["args"].extend([[1, 1], [1, 1], [1, 1], 0][-1:]),
    "a stride of zero": lambda g: node(g, CONV)["args"].__setitem__(3, [0, 0]),
    "a kernel past the end": lambda g: node(g, CONV)["args"].__setitem__(4, [-50, -50]),
    "a scale of zero": lambda g: node(g, QUANTIZE)["args"].__setitem__(1, 0.0),
    "a scale that is none": lambda g: node(g, QUANTIZE)["args"].__setitem__(1, {"float": "nan"}),
    "an endless scale": lambda g: node(g, QUANTIZE)["args"].__setitem__(1, {"float": "inf"}),
    "a huge zero point": lambda g: node(g, QUANTIZE)["args"].__setitem__(2, 2**62),
    "a cycle": lambda g: g["nodes"][0]["args"].__setitem__(0, {"ref": g["nodes"][-1]["name"]}),
    "backwards": lambda g: g["nodes"].reverse(),
    "every node twice": lambda g: g["nodes"].extend(copy.deepcopy(g["nodes"])),
    "a hundred thousand outputs": lambda g: g.update(outputs=[{"ref": "x"}] * 100_000),
    "a very deep output": lambda g: g.update(outputs="DEEP"),
    "a very deep argument": lambda g: node(g, CONV)["args"].__setitem__(0, deep(150)),
    "a batch of no size": lambda g: g["inputs"][0].__setitem__(3, [0, 3, 8, 8]),
    "a batch of great size": lambda g: g["inputs"][0].__setitem__(3, [2**40, 3, 8, 8]),
    "a declared shape that is not so": lambda g: node(g, CONV).update(
        meta=[[None, 2**20, 8, 8], "float32"]
    ),
}


# Of these, those whose numbers are like any others to the operators.
MERELY_ODD = {
    "a scale that is none",
    "an endless scale",
    "a huge zero point",
    "a batch of no size",
}


def deep(levels: int) -> Any:
    value: Any = {"ref": "x"}
    for _ in range(levels):
        value = [value]
    return value


def attack(metadata: Metadata, change: Callable[[dict[str, Any]], object]) -> Metadata:
    graph = json.loads(metadata["graph"])
    change(graph)
    return metadata | {"graph": json.dumps(graph).replace('"DEEP"', "[" * 90_000 + "]" * 90_000)}
