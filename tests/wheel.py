"""Octavo as users get it: the wheel, in a virtual environment of its own, away from the checkout.

The wheel is made of the sdist, so that what this lacks is missed too.

What breaks without a word when files move is tried here: modules that are started by name, files
that a wheel has to hold, records that are found by name, and what counts as the user's own code.
``make wheel`` runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAM = """
import torch, octavo
from torch import nn
from octavo.cli.demo.demo import Net
from octavo.model.replay import replay_in_fresh_process
from octavo.runtimes import RUNTIMES
from octavo.numerics.native import library

torch.manual_seed(0)
net = Net().eval()
loader = [(torch.rand(8, 1, 28, 28), torch.arange(8)) for _ in range(3)]
q = octavo.quantize(net, calibration=loader)
q.save("model.octavo")
x = loader[0][0]
for name in RUNTIMES:
    if name not in ("reference", "inductor"):  # the latter compiles for a minute
        assert octavo.verify(q, [x], runtimes=[name]).passed, name
        assert octavo.load("model.octavo", runtime=name)(x).shape == (8, 10), name
octavo.export_onnx(q, "model.onnx")
html = octavo.report(net, q, loader, progress=False).to_html()
assert "<style" in html and "<script" in html
rows = octavo.bench("model.octavo", runtimes=["torch"], batches=[1], seconds=0.1).rows
assert not [row.error for row in rows if row.error], rows


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x  # the line to blame


try:
    octavo.capture(Branches(), (x,))
    raise SystemExit("that cannot be captured")
except octavo.OctavoError as error:
    assert "program.py:" in str(error), error
assert (library.library() is not None) == COMPILED, library.PATH
before = q(x)
assert replay_in_fresh_process("model.octavo", x, before).max_difference == 0
print("the wheel works:", octavo.__version__)
"""


def main() -> int:
    """Build, install, run; the exit status is that of the first that fails."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run(sys.executable, "-m", "venv", home / "build")
        builder = home / "build" / "bin" / "python"
        run(builder, "-m", "pip", "install", "--quiet", "hatchling")
        run(builder, "-m", "hatchling", "build", "-t", "sdist", "-d", home)
        (sdist,) = home.glob("octavo-*.tar.gz")
        run(builder, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", home, sdist)
        run(sys.executable, "-m", "venv", home / "venv")
        python = home / "venv" / "bin" / "python"
        (wheel,) = home.glob("octavo-*.whl")
        compiled = any(map(shutil.which, ("cc", "gcc", "clang")))
        assert wheel.name.endswith("-none-any.whl") != compiled, wheel.name
        install = (python, "-m", "pip", "install", "--quiet", "--quiet", "--no-compile")
        run(*install, f"{wheel}[all,litert,executorch]")  # byte code only of what is imported
        program = PROGRAM.replace("COMPILED", str(compiled))
        (home / "program.py").write_text(program, encoding="utf-8")
        run(python, "program.py", cwd=home)
        run(python, "-m", "octavo", "inspect", "model.octavo", cwd=home)
    return 0


def run(*command: object, cwd: Path = ROOT) -> None:
    """Run it to its end, or end with its exit status."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
