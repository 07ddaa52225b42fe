from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from octavo.cli.sources.model_source import load_model, read_state_dict
from octavo.errors import InputError

MODULE = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout())
ready = build()
def nothing():
    return None
def picky(size):
    return nn.Linear(size, size)
number = 7
"""


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A current folder with a module of models in it, and a state dict that fits them."""
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return nn.Sequential(nn.Linear(4, 3)).state_dict()


@pytest.mark.parametrize("name", ["build", "ready"])
def test_a_function_or_a_model(state: dict, name: str) -> None:
    model = load_model(f"my_models:{name}")
    assert [type(module).__name__ for module in model] == ["Linear", "Dropout"]
    assert not model.training
    assert not model[1].training


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("w.safetensors", None),
        ("w.pth", lambda state: state),
        ("w.pt", lambda state: {"state_dict": state, "epoch": 3}),
        ("w.pth", lambda state: {"model_state_dict": state, "loss": 0.5}),
        ("w.pth", lambda state: {f"module.{name}": value for name, value in state.items()}),
    ],
)
def test_weights(state: dict, file: str, wrap: object) -> None:
    if wrap is None:
        save_file(state, file)
    else:
        torch.save(wrap(state), file)
    model = load_model("my_models:build", file)
    assert torch.equal(model[0].weight, state["0.weight"])


def test_weights_that_do_not_fit(state: dict) -> None:
    save_file({"0.weight": torch.zeros(5, 4), "1.weight": torch.zeros(1)}, "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_model("my_models:build", "w.safetensors")
    assert str(caught.value) == (
        "w.safetensors does not fit Sequential: 1 missing (0.bias); 1 unknown (1.weight); "
        "1 of another shape (0.weight [5, 4] instead of [3, 4])"
    )


def test_code_in_a_checkpoint_does_not_run(state: dict, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "extra": Evil(tmp_path / "run")}, "w.pth")
    with pytest.raises(InputError, match=r"holds more than tensors.*nothing in it was run"):
        read_state_dict(Path("w.pth"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read the weights in w\.(pth|safetensors): ."),
        (b"", "w.* (damaged|cannot read the weights|header)|cannot read"),
        (b"x" * 99, "damaged|cannot read"),
    ],
)
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_files_that_cannot_be_read(
    state: dict, file: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model("my_models:build", file)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2)])
def test_a_checkpoint_without_a_state_dict(state: dict, content: object) -> None:
    torch.save(content, "w.pth")
    with pytest.raises(InputError, match=r"w\.pth holds a .*, not a state dict"):
        load_model("my_models:build", "w.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my_models:nothing", r"my_models:nothing\(\) returns a NoneType, not an nn.Module"),
        ("my_models:number", "my_models:number is a int, not a model or a function"),
        ("my_models:picky", r"my_models:picky\(\) failed: TypeError: .*'size'"),
        ("my_models.py", "neither a file of a known kind"),
        ("absent.pt2", "cannot read absent.pt2"),
    ],
)
def test_models_that_cannot_be_built(state: dict, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(source)


def test_a_pt2_file_has_its_weights_with_it(state: dict) -> None:
    with pytest.raises(InputError, match=r"leave --weights w\.pth out"):
        load_model("model.pt2", "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.ones(3)}, r"is not a state dict: it holds 1 as a name"),
        ({("a", 1): torch.ones(3), "b": torch.ones(2)}, r"it holds \('a', 1\) as a name"),
        ({"state_dict": {2: torch.ones(3)}}, "it holds 2 as a name"),
        ({"0.weight": 5, "0.bias": torch.ones(3)}, r"1 no tensors \(0\.weight is a int\)"),
        (
            {"0.weight": torch.ones(3, 4).to_sparse(), "0.bias": torch.ones(3)},
            r"w\.pth does not fit Sequential: .*0\.weight",
        ),
        (
            {"0.weight": torch.ones(3, 4, device="meta"), "0.bias": torch.ones(3)},
            r"w\.pth does not fit Sequential: .*0\.weight",
        ),
    ],
)
def test_state_dicts_of_another_kind(state: dict, content: object, message: str) -> None:
    torch.save(content, "w.pth")
    with pytest.raises(InputError, match=message) as caught:
        load_model("my_models:build", "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.pt2"])
def test_what_is_no_file_of_a_model(state: dict, name: str) -> None:
    arguments = (name,) if name.endswith(".pt2") else ("my_models:build", name)
    os.mkfifo(name)
    with pytest.raises(InputError, match=f"cannot read .*{name}.*it is a pipe or a device"):
        load_model(*arguments)
    Path(name).unlink()
    Path(name).mkdir()
    with pytest.raises(InputError, match=f"cannot read .*{name}.*it is a folder"):
        load_model(*arguments)
