"""The one-file artifact: what is saved is what is loaded, and nothing else loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import hostile_files
import load_files
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError
from octavo.graph.graph import Graph, Ref
from octavo.graph.records import Record
from octavo.model import artifact
from octavo.model.files import sealed, tensor_file

TESTS = Path(__file__).parents[1]


class Branching(nn.Module):
    """What a graph of images holds: convolutions, a depthwise one, a sum, pooling, a cat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU6(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = nn.functional.max_pool2d(self.stem(x), 2)
        y = torch.relu(self.conv(y) + y)
        y = torch.cat([y, self.depthwise(y)], 1)
        logits = self.head(self.pool(y).flatten(1))
        return {"logits": logits, "best": [logits.amax(1), (logits.softmax(-1), None)]}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4, bias=False)

    def forward(self, left: Tensor, *, right: Tensor, flag: bool = True) -> tuple[Tensor, int]:
        return (self.a(left) * self.b(right)).relu(), left.shape[0]


def image(batch: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, 8, 8)}


def pair(batch: int) -> dict[str, Tensor]:
    return {"left": torch.randn(batch, 6), "right": torch.randn(batch, 3)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Tensor]]]] = {
    "branching": (Branching, image),
    "two inputs": (TwoInputs, pair),
    "one layer": (lambda: nn.Linear(6, 2), lambda n: {"input": torch.randn(n, 6)}),
}


def quantized(name: str) -> octavo.QuantizedModel:
    torch.manual_seed(0)
    make, batch = MODELS[name]
    model, data = make(), [batch(4) for _ in range(2)]
    target = octavo.host_target()
    return octavo.quantize(model, calibration=data, target=target, progress=False)


@pytest.fixture(scope="module")
def branching() -> octavo.QuantizedModel:
    return quantized("branching")


@pytest.fixture(scope="module")
def saved(branching: octavo.QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file."""
    path = tmp_path_factory.mktemp("saved") / "model.octavo"
    branching.save(path)
    return path


def same(one: Any, other: Any) -> bool:
    """Bit for bit, in any structure."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    path = tmp_path / "model.octavo"
    model.save(path)
    loaded = octavo.load(path)
    assert loaded.plan == model.plan
    assert loaded.signature == model.signature
    assert loaded.provenance == model.provenance
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.graph.nodes == model.graph.nodes
    assert loaded.graph.inputs == model.graph.inputs
    assert dict(loaded.graph.arguments) == dict(model.graph.arguments)
    for batch in (1, 2, 7):
        kwargs = MODELS[name][1](batch)
        assert same(loaded(**kwargs), model(**kwargs))
        reference = loaded.lower("reference")(**kwargs)
        assert same(reference, model.lower("reference")(**kwargs))


def test_a_loaded_model_is_saved_with_the_same_content(saved: Path, tmp_path: Path) -> None:
    octavo.load(saved).save(tmp_path / "again.octavo")
    again, original = hostile_files.read(tmp_path / "again.octavo"), hostile_files.read(saved)
    assert again[0] == original[0]
    assert same(again[1], original[1])


def test_any_layout_of_tensors_can_be_saved(tmp_path: Path) -> None:
    """Parts of one storage, transposed, empty, without dimensions, of any dtype."""
    base = torch.randn(4, 6)
    tensors = {
        "part": base[1:3],
        "transposed": base.t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5),
        "bool": torch.tensor([True, False]),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "complex": torch.randn(3).to(torch.complex64),
    }
    q = quantized("one layer")
    outputs = Record({name: Ref(name) for name in tensors})
    graph = Graph(q.graph.inputs, tensors, (), q.graph.arguments, outputs)
    path = tmp_path / "model.octavo"
    artifact.save(artifact.Artifact(graph, q.plan, q.signature, {"a": [1, None]}), path)
    back = artifact.load(path)
    assert same(back.graph.constants, tensors)
    assert back.graph.outputs == outputs
    assert back.provenance == {"a": [1, None]}


def test_the_file_is_a_safetensors_file_that_says_what_it_is(saved: Path) -> None:
    metadata, tensors = hostile_files.read(saved)
    assert (metadata["format"], metadata["version"]) == ("octavo", "2")
    assert tensors["stem.0.weight"].dtype == torch.int8
    assert tensors["stem.0.weight_scale"].shape == (8, 1, 1, 1)
    assert json.loads(metadata["signature"]) == {"names": ["x"], "required": 1, "losses": []}
    assert json.loads(metadata["provenance"])["calibration_batches"] == 2


FRESH = """
import sys
import octavo
from safetensors.torch import load_file, save_file
model = octavo.load(sys.argv[1])
inputs = load_file(sys.argv[2])
results = {}
for batch in ("2", "5"):
    results |= {f"logits{batch}": model(inputs[batch])["logits"].contiguous()}
save_file(results, sys.argv[3])
assert "test_artifact" not in sys.modules
"""


def test_a_fresh_process_needs_no_model_code(
    branching: octavo.QuantizedModel, saved: Path, tmp_path: Path
) -> None:
    inputs = {str(batch): torch.randn(batch, 3, 8, 8) for batch in (2, 5)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    command = [sys.executable, "-c", FRESH, str(saved), "inputs.safetensors", "results.safetensors"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    results = load_file(tmp_path / "results.safetensors")
    for batch, x in inputs.items():
        expected = branching(x)["logits"]
        torch.testing.assert_close(results[f"logits{batch}"], expected, rtol=1e-5, atol=1e-6)


# Files that are not ours


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        octavo.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.octavo", "there is no such file")
    refused(tmp_path, "it is a folder")
    path = tmp_path / "model.octavo"
    for content in (b"", b"\0" * 8, b"\xff" * 100, os.urandom(1000)):
        path.write_bytes(content)
        refused(path, "it is not an Octavo artifact, or is truncated")
    path.write_bytes(b"PK\3\4")
    refused(path, r"it may be of torch\.save: build the network")


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(3)}, path, metadata)
        refused(path, "it is a safetensors file, but not an Octavo artifact")
    save_file({"weight": torch.ones(3)}, path, {"format": "octavo"})
    refused(path, r"it lacks \['version', 'graph'")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "canary",)

    path = tmp_path / "model.octavo"
    torch.save({"weight": torch.ones(3), "canary": Canary()}, path)
    refused(path, "it is not an Octavo artifact")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("3", "it has version 3 of the format, this Octavo reads up to 2: upgrade octavo"),
        ("99", "it has version 99"),
        ("0", "it has version 0"),
        ("-1", "it has version -1"),
        ("1.5", "it has version 1.5"),
        ("\u00b2", "it has version"),
        ("", "it has version"),
    ],
)
def test_another_version(saved: Path, tmp_path: Path, version: str, message: str) -> None:
    metadata, tensors = hostile_files.read(saved)
    path = tmp_path / "model.octavo"
    hostile_files.write(path, metadata | {"version": version}, tensors)
    refused(path, message)


def test_any_alteration_breaks_the_checksum(saved: Path, tmp_path: Path) -> None:
    metadata, tensors = hostile_files.read(saved)
    path = tmp_path / "model.octavo"
    name = "head.2.weight_scale"
    changes = [
        (metadata, tensors | {name: tensors[name] * 1.001}),
        (metadata, tensors | {name: tensors[name].reshape(1, -1)}),
        (metadata, tensors | {"more": torch.ones(1)}),
        (metadata, {key: tensor for key, tensor in tensors.items() if key != name}),
        (metadata | {"graph": metadata["graph"] + " "}, tensors),
        (metadata | {"plan": metadata["plan"].replace("int8", "uint8", 1)}, tensors),
        (metadata | {"provenance": "{}"}, tensors),
        (metadata | {"sha256": "0" * 64}, tensors),
    ]
    for changed, values in changes:
        save_file(values, path, changed)
        refused(path, "its content does not match its checksum: it was damaged or altered")
    save_file(tensors, path, metadata)
    assert octavo.load(path).plan == octavo.load(saved).plan


@pytest.mark.parametrize("key", ["version", "graph", "plan", "signature", "provenance", "sha256"])
def test_a_missing_part_is_named(saved: Path, tmp_path: Path, key: str) -> None:
    metadata, tensors = hostile_files.read(saved)
    del metadata[key]
    path = tmp_path / "model.octavo"
    save_file(tensors, path, metadata)
    refused(path, rf"it lacks \['{key}'\]")


# Hostile files


def outcomes(folder: Path) -> dict[str, str]:
    """File -> how loading and running it ended, in a process that it may kill."""
    command = [sys.executable, str(TESTS / "load_files.py"), str(folder)]
    where = folder.parent / "cwd"
    where.mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=600)
    assert done.returncode == 0, f"killed by {done.stdout.splitlines()[-1:]}\n{done.stderr[-2000:]}"
    assert not list(where.iterdir()), "code in a file was run"
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def bad(found: dict[str, str]) -> dict[str, str]:
    return {name: how for name, how in found.items() if how not in ("error", "runs")}


def test_files_with_altered_bytes_are_errors(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for index, content in enumerate(hostile_files.altered_bytes(saved.read_bytes(), 160)):
        (folder / f"{index:03}").write_bytes(content)
    found = outcomes(folder)
    assert len(found) == 160
    assert not bad(found)
    # What lies between two tensors, or in the order of keys, may change without meaning anything.
    assert sum(how == "runs" for how in found.values()) <= 2


def test_hostile_files_are_errors_or_harmless(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    metadata, tensors = hostile_files.read(saved)
    hostile_files.write(folder / "000-unaltered", metadata, tensors)
    for seed in range(160):
        hostile_files.write(folder / f"{seed:03}", *hostile_files.hostile(metadata, tensors, seed))
    for name, change in hostile_files.ATTACKS.items():
        path = folder / f"attack-{name.replace(' ', '-')}"
        hostile_files.write(path, hostile_files.attack(metadata, change), tensors)
    found = outcomes(folder)
    assert len(found) == 161 + len(hostile_files.ATTACKS)
    assert found["000-unaltered"] == "runs"
    assert not bad(found)
    assert sum(how == "error" for how in found.values()) > 100
    ran = {name for name, how in found.items() if name.startswith("attack") and how == "runs"}
    assert ran <= {f"attack-{name.replace(' ', '-')}" for name in hostile_files.MERELY_ODD}


def test_hostile_files_of_other_models(tmp_path: Path) -> None:
    """``make fuzz`` runs more of them."""
    hostile_files.write_bases(tmp_path)
    found = fuzzing.run("hostile_loads.py", tmp_path, 0, 200)
    assert not found.wrong
    assert min(found.counts[how] for how in ("error", "runs")) > 25


def test_a_first_load_imports_no_compiler(saved: Path) -> None:
    """They take a second and 70 MB."""
    code = (
        "import sys, octavo; octavo.load(sys.argv[1])\n"
        "found = {'sympy', 'torch._dynamo', 'torch._inductor'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_harness_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise RuntimeError("not on purpose")

    monkeypatch.setattr(octavo, "load", fails)
    how = load_files.outcome(tmp_path, torch.zeros(1))
    assert how == "RuntimeError: not on purpose"
    assert bad({"file": how})


# Writing


def test_a_missing_folder_is_made(branching: octavo.QuantizedModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.octavo"
    branching.save(str(path))
    assert [file.name for file in path.parent.iterdir()] == ["model.octavo"]
    octavo.load(str(path))


def test_where_nothing_can_be_written(branching: octavo.QuantizedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "model.octavo", tmp_path / "folder"):
        with pytest.raises(ArtifactError, match="cannot write") as caught:
            branching.save(path)
        assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "a file, not a folder"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_is_read_only(branching: octavo.QuantizedModel, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match="Permission denied"):
            branching.save(tmp_path / "model.octavo")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), ArtifactError),
        (SafetensorError("I/O error: No space left on device"), ArtifactError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
@pytest.mark.parametrize("existing", [True, False])
def test_an_interrupted_save_leaves_what_was_there(
    branching: octavo.QuantizedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    expected: type[BaseException],
    existing: bool,
) -> None:
    path = tmp_path / "model.octavo"
    if existing:
        path.write_bytes(b"what was there")

    def interrupted(tensors: Any, temporary: Path, metadata: Any) -> None:
        Path(temporary).write_bytes(b"half of")
        raise error

    monkeypatch.setattr(sealed, "save_file", interrupted)
    with pytest.raises(expected):
        branching.save(path)
    assert [file.name for file in tmp_path.iterdir()] == (["model.octavo"] if existing else [])
    if existing:
        assert path.read_bytes() == b"what was there"


def test_an_existing_file_is_replaced(branching: octavo.QuantizedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.octavo"
    path.write_bytes(b"what was there")
    branching.save(path)
    octavo.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.octavo"]


def test_samples_are_in_the_file_where_the_user_says_so(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    data = torch.randn(5, 8)
    q = octavo.quantize(net, calibration=[data], target=octavo.host_target(), progress=False)
    q.save(tmp_path / "without.octavo")
    assert octavo.load(tmp_path / "without.octavo").samples is None
    q.save(tmp_path / "with.octavo", samples=True)
    loaded = octavo.load(tmp_path / "with.octavo")
    (kept,) = loaded.samples
    assert torch.equal(kept, data[:2])
    assert not [name for name in loaded.state_dict() if "samples" in name]
    assert torch.equal(loaded(data), q(data))
    loaded.save(tmp_path / "again.octavo", samples=True)
    (again,) = octavo.load(tmp_path / "again.octavo").samples
    assert torch.equal(again, kept)
    with pytest.raises(ArtifactError, match="no samples to write"):
        octavo.load(tmp_path / "without.octavo").save(tmp_path / "x.octavo", samples=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, meta: meta.update(samples='["y"]'), "malformed: 'samples of y'"),
        (lambda tensors, meta: meta.update(samples="[]"), "its samples are of"),
        (lambda tensors, meta: meta.update(samples="3"), "its samples 3 are malformed"),
        (
            lambda tensors, meta: tensors.update({"samples of input": torch.zeros(2, 7)}),
            r"samples of 'input' are float32\[2, 7\]; expected float32\[N, 8\]",
        ),
    ],
)
def test_damaged_samples(tmp_path, change, message):
    path = tmp_path / "m.octavo"
    net = torch.nn.Linear(8, 4)
    octavo.quantize(net, torch.randn(2, 8), progress=False).save(path, samples=True)
    metadata, tensors = tensor_file.read(path)
    change(tensors, metadata)
    hostile_files.write(path, metadata, tensors)
    with pytest.raises(ArtifactError, match=message):
        octavo.load(path)
