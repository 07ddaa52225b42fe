"""Files of models with quantized parts: what comes back, what does not fit, what is hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hostile_files
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, InputError
from octavo.model import parts_file
from octavo.model.parts import parts_of


class Net(nn.Module):
    def __init__(self, width: int = 8, more: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 8))
        self.again = self.backbone
        self.embedding = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)
        self.tied = nn.Parameter(self.embedding.weight.detach().clone())
        self.embedding.weight = self.tied
        if more:
            self.more = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x) * self.scale
        if y.sum() > 1e9:
            return y
        return self.norm(y + self.embedding.weight[:1])


@pytest.fixture(params=["regions", "modules"])
def quantized(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    data = None if request.param == "modules" else [torch.randn(16, 6)]
    return octavo.quantize(
        Net().eval(), calibration=data, target=octavo.host_target(), scope=request.param
    )


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_saved_comes_back(quantized: nn.Module, tmp_path: Path, device: str) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    with torch.device(device):
        model = Net()
    loaded = octavo.load(path, into=model)
    assert loaded is model
    assert list(parts_of(loaded)) == list(parts_of(quantized))
    assert torch.equal(loaded(X), quantized(X))
    assert loaded.backbone is loaded.again
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert octavo.summary(loaded).to_dict() == octavo.summary(quantized).to_dict()
    again = tmp_path / "again.octavo"
    octavo.save(loaded, again)
    assert hostile_files.read(again)[0] == hostile_files.read(path)[0]


def test_tied_tensors_stay_tied_on_meta(quantized: nn.Module, tmp_path: Path) -> None:
    if "embedding" in parts_of(quantized):
        pytest.skip("the embedding is a part here")
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    with torch.device("meta"):
        model = Net()
    assert octavo.load(path, into=model).tied is model.embedding.weight


def test_without_a_model_the_error_says_what_to_type(quantized: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    with pytest.raises(ArtifactError, match=r"octavo.load\(path, into=model\)"):
        octavo.load(path)


def test_a_file_of_one_graph_needs_no_model(tmp_path: Path) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(octavo.quantize(nn.Linear(6, 8), X), path)
    with pytest.raises(ArtifactError, match=r"holds one graph, which needs no model"):
        octavo.load(path, into=Net())
    with pytest.raises(InputError, match="into is a dict: give the float model"):
        octavo.load(path, into={})
    assert octavo.load(path)(X).shape == (5, 8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Net(width=9), r"'backbone\.0\.weight' is .*\[8, 6\] in the file, and .*\[9, 6\]"),
        (lambda: Net(more=True), r"'more\.weight' is missing in the file"),
        (lambda: nn.Sequential(nn.Linear(6, 8)), r"the Sequential has no module 'backbone"),
        (lambda: Net().double(), r"'backbone\.0\.weight' is float32.*float64"),
    ],
)
def test_a_model_that_does_not_fit(model: Any, message: str, tmp_path: Path) -> None:
    q = octavo.quantize(Net().eval(), calibration=[X], scope="regions", only=["backbone"])
    path = tmp_path / "net.octavo"
    octavo.save(q, path)
    other = model()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ArtifactError, match=message):
        octavo.load(path, into=other)
    assert not parts_of(other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_model_that_is_quantized_already(quantized: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    with pytest.raises(ArtifactError, match="is quantized already, at 'backbone"):
        octavo.load(path, into=quantized)


def test_what_is_not_quantized_is_not_saved(tmp_path: Path) -> None:
    for function in (octavo.summary, lambda q: octavo.save(q, tmp_path / "x"), octavo.lower):
        with pytest.raises((InputError, TypeError)):
            function(Net())
    with pytest.raises(InputError, match=r"octavo\.save takes a quantized model"):
        octavo.save(Net(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def refused(path: Path, message: str = "") -> None:
    model = Net()
    with pytest.raises(ArtifactError, match=message):
        octavo.load(path, into=model)
    assert not parts_of(model)


def test_damaged_and_altered_files(quantized: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content)
    metadata, tensors = hostile_files.read(path)
    for changed in (
        metadata | {"parts": metadata["parts"].replace("0", "1", 1)},
        metadata | {"model": "Other"},
    ):
        save_file(tensors, path, changed)
        refused(path, "checksum")
    hostile_files.write(path, metadata | {"version": "4"}, tensors)
    refused(path, "it has version 4 of the format, this Octavo reads up to 3: upgrade octavo")
    with pytest.raises(ArtifactError):
        octavo.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: {},
        lambda parts: [],
        lambda parts: {"backbone": None},
        lambda parts: {"": next(iter(parts.values()))},
        lambda parts: {"nowhere": next(iter(parts.values()))},
        lambda parts: {p: d | {"kind": "code"} for p, d in parts.items()},
        lambda parts: {p: {"kind": d["kind"]} for p, d in parts.items()},
        lambda parts: {p: d | {"graph": {}, "module": {}} for p, d in parts.items()},
        lambda parts: {p: d | {"floats": {"weight": [3]}, "module": 3} for p, d in parts.items()},
        lambda parts: {p: d | {"calls": -1, "module": {"type": "os"}} for p, d in parts.items()},
    ],
)
def test_hostile_manifests_are_refused(quantized: nn.Module, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    metadata, tensors = hostile_files.read(path)
    parts = change(json.loads(metadata["parts"]))
    hostile_files.write(path, metadata | {"parts": json.dumps(parts)}, tensors)
    refused(path)


def test_other_tensors_are_refused(quantized: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    metadata, tensors = hostile_files.read(path)
    name = next(name for name in tensors if name.startswith("backbone") and "scale" in name)
    hostile_files.write(path, metadata, {n: t for n, t in tensors.items() if n != name})
    refused(path)
    hostile_files.write(path, metadata, tensors | {"more": torch.ones(3)})
    refused(path, r"'more' is float32\[3\] in the file, and missing")
    hostile_files.write(path, metadata, tensors | {"norm.weight": torch.ones(3)})
    refused(path, r"'norm\.weight' is float32\[3\] in the file, and float32\[8\]")


def test_a_region_that_cannot_run_leaves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.octavo"
    q = octavo.quantize(Net().eval(), torch.randn(16, 6), mode="dynamic", scope="regions")
    octavo.save(q, path)

    def fail(*args: object, **options: object) -> None:
        raise KeyError("what an altered graph makes torch say")

    monkeypatch.setattr("octavo.model.model.lower", fail)
    model = Net().eval()
    before = dict(model.named_modules())
    with pytest.raises(ArtifactError, match="its region 'backbone' holds a graph that cannot run"):
        octavo.load(path, into=model)
    assert dict(model.named_modules()) == before


def test_what_a_file_says_of_itself(quantized: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.octavo"
    octavo.save(quantized, path)
    content = parts_file.read(path)
    assert content.model == "Net"
    assert content.paths == list(parts_of(quantized))


class Tied(nn.Module):
    """A table that the head shares, and a loop that no graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(300, 32), nn.Linear(32, 300, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        while x.norm() < 100:
            x = x * 2
        result: Tensor = self.head(x)
        return result


def test_what_is_tied_is_in_the_file_once_and_stays_tied(tmp_path: Path) -> None:
    model, ids = Tied().eval(), torch.arange(8)[None]
    q = octavo.quantize(model, scope="modules", mode="weight_only")
    octavo.save(q, tmp_path / "tied.octavo")
    assert (tmp_path / "tied.octavo").stat().st_size < 1.3 * 300 * 32 + 4000
    with torch.device("meta"):
        empty = Tied().eval()
    loaded = octavo.load(tmp_path / "tied.octavo", into=empty)
    assert torch.equal(loaded(ids), q(ids))
    state = loaded.state_dict()
    assert state["head.weight"].data_ptr() == state["table.weight"].data_ptr()


class Encoder(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.linear = table, nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.linear(self.table(ids))
        return result


class SharedTable(nn.Module):
    """A table that the encoder and the code around it look into, as T5 has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 16)
        self.encoder = Encoder(self.table)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.encoder(ids)
        return result + self.table(ids) if result.sum() < 1e9 else result


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_module_that_a_region_shares_with_the_rest(tmp_path: Path, device: str) -> None:
    ids = torch.arange(10)[None]
    q = octavo.quantize(SharedTable().eval(), calibration=[ids], only=["encoder"])
    octavo.save(q, tmp_path / "net.octavo")
    with torch.device(device):
        model = SharedTable()
    loaded = octavo.load(tmp_path / "net.octavo", into=model)
    assert torch.equal(loaded(ids), q(ids))


class Unwritable(nn.Module):
    """Holds a buffer whose elements share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.register_buffer("mean", torch.full((1,), 0.5).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) - self.mean
        return y if y.sum() < 1e9 else x


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_that_cannot_be_written_are_renewed(tmp_path: Path, inference: bool) -> None:
    q = octavo.quantize(Unwritable().eval(), calibration=[X], scope="regions")
    octavo.save(q, tmp_path / "net.octavo")
    with torch.inference_mode(inference):
        model = Unwritable()
        model.mean = torch.zeros(1).expand(4)
    loaded = octavo.load(tmp_path / "net.octavo", into=model)
    with torch.no_grad():
        assert torch.equal(loaded(X), q(X))
