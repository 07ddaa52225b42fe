"""`load`: a `QuantizedModel` out of a file.

Tested in tests/model/test_artifact.py.
"""

from __future__ import annotations

import os

from octavo.arguments import FILE, TEXT, expect, optional
from octavo.errors import ArtifactError, RuntimeUnavailable, first_line
from octavo.model import artifact
from octavo.model.model import QuantizedModel
from octavo.model.place import Place


def load(
    path: str | os.PathLike[str], runtime: str | None = None, *, check: bool = True
) -> QuantizedModel:
    """Load an artifact; the float model's code is not needed, and no code in the file is run.

    Args:
        path: a ``.octavo`` file.
        runtime, check: as for `QuantizedModel.lower`. ``None`` is how the model was tuned for this
            kind of CPU, where the file says so, else ``"torch"``.

    Raises:
        ArtifactError: the file is missing, damaged, hostile or of a newer version.
        RuntimeUnavailable: the runtime cannot run here.
        RuntimeDisagrees: it computes something else than the oracle.

    Example:
        >>> model = load("model.octavo")  # doctest: +SKIP
    """
    expect(FILE, path=path)
    optional(TEXT, runtime=runtime)
    return model_of(artifact.load(path), runtime, check, os.fspath(path))


def model_of(
    content: artifact.Artifact,
    runtime: str | None,
    check: bool,
    name: str,
    place: Place | None = None,
) -> QuantizedModel:
    """The model of what a file holds.

    Args:
        content: of the file, or of a part of it.
        runtime, check: as for `load`.
        name: of the file or the part, for messages.
        place: where a part stands in its model.

    Raises:
        ArtifactError: the graph cannot run.
        RuntimeUnavailable, RuntimeDisagrees: as `load`.
    """
    try:
        return QuantizedModel.of(content, runtime, check=check, place=place)
    except RuntimeUnavailable:
        raise
    except Exception as error:  # whatever an altered graph makes torch say
        raise ArtifactError(f"{name} holds a graph that cannot run: {first_line(error)}") from error
