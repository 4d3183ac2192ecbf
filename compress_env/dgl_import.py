"""The one place that imports DGL: ``from compress_env.dgl_import import dgl``.

Two releases of DGL are supported, because no single one covers Python 3.10 to 3.12:

* dgl 1.1.3 (Python 3.10 and 3.11) imports as it is.
* dgl 2.1.0 (the only wheel for Python 3.12) loads its sampling library ``dgl.graphbolt`` on
  import. That library is compiled for one exact torch release and fails beside any other. Nothing
  here samples from graphs, so an empty module takes its place before the import. This release also
  needs ``pandas`` installed, for data sets that are not used here either.

DGL asks for a backend in ``~/.dgl`` unless the environment variable ``DGLBACKEND`` names one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import types
from typing import Any

__all__ = ["dgl"]

_GRAPHBOLT = "dgl.graphbolt"


def _needs_stand_in() -> bool:
    """True for dgl 2 and later, as long as nobody else has imported dgl in this process."""
    major = int(importlib.metadata.version("dgl").split(".")[0])
    return major >= 2 and "dgl" not in sys.modules


def _import_dgl() -> Any:
    os.environ.setdefault("DGLBACKEND", "pytorch")
    if _needs_stand_in():
        stand_in = types.ModuleType(_GRAPHBOLT, "Empty: see compress_env.dgl_import.")
        sys.modules.setdefault(_GRAPHBOLT, stand_in)
    module = importlib.import_module("dgl")
    importlib.import_module("dgl.nn")  # So that `dgl.nn` is there without a second import of dgl.
    return module


dgl: Any = _import_dgl()
