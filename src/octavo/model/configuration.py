"""The configuration of a model of transformers, which a file keeps as data.

Tested in tests/model/test_transformers.py.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from octavo.graph.batches import Signature


def configuration(signature: Signature) -> Any:
    """What ``config`` of the float model was.

    Of the class that transformers itself has for this kind of model; code that a file or a hub
    names is never run. A namespace with the same attributes where it has none, or is not installed.

    Raises:
        AttributeError: the model is none of transformers.
    """
    if signature.config is None:
        raise AttributeError("the float model has no config of transformers")
    data = copy.deepcopy(dict(signature.config))
    if find_spec("transformers") is not None:
        from transformers import CONFIG_MAPPING

        if data.get("model_type") in CONFIG_MAPPING:
            return CONFIG_MAPPING[data["model_type"]].from_dict(data)
    return SimpleNamespace(**data)
