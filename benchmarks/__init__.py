"""Measurements of Octavo against its peers; see README.md in this folder.

``python -m benchmarks`` runs them all, ``python -m benchmarks.speed`` one of them.
"""

import importlib
import sys
from pathlib import Path

# torchvision's own operators do not load beside the CPU build of torch, and transformers imports
# torchvision where it is installed; the tests hold the cure.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
importlib.import_module("torchvision_shim")
