"""The documentation pages of the environment ids, from the registry.

Usage: python -m benchmarks.environment_pages [FOLDER]   (docs/environments by default)

Networks are built without values and traced without computing, so this takes seconds. A test
compares the committed pages with what this gives.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.tables import markdown_table
from compress_env.complexity import ComplexityModel
from compress_env.layer_graph import LayerGraph, trace
from compress_env.networks import NETWORKS, NetworkSpec
from compress_env.observations import layer as columns
from compress_env.registration import GENERAL_ID, environment_id

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "environments"

DATASETS = {"digits": (8, 10), "imagenet": (224, 1000)}
"""Side of the images and number of classes of the default data sets."""


@cache
def traced(spec: NetworkSpec, image_size: int, num_classes: int) -> LayerGraph:
    """The layer graph of a network without values."""
    with torch.device("meta"):
        network = spec.factory(num_classes)
    return trace(network, (3, image_size, image_size))


def millions(value: int) -> str:
    """A number of millions."""
    return f"{value / 1e6:,.2f} M"


def costs(spec: NetworkSpec) -> list[tuple[str, ...]]:
    """Dense figures for the default data set and the image size the network is made for."""
    side, classes = DATASETS[spec.default_dataset]
    rows: list[tuple[str, ...]] = []
    for size in dict.fromkeys((side, spec.image_size)):
        dense = ComplexityModel(traced(spec, size, classes)).dense
        rows.append(
            (
                f"{size}x{size}, {classes} classes",
                millions(dense.macs),
                millions(dense.params),
                f"{dense.bops / 1e9:,.2f} G",
                f"{dense.size_bits / 8 / 2**20:,.2f} MiB",
            )
        )
    return rows


def environment_page(name: str) -> str:
    """The page of one id."""
    spec = NETWORKS[name]
    graph = traced(spec, *DATASETS[spec.default_dataset])
    layers, groups = len(graph.layers), len(graph.groups)
    sizes = [group.size for group in graph.groups]
    shared = [group for group in graph.groups if len(group.layers) > 1]
    flow, coupling = graph.flow_edges.shape[1], graph.coupling_edges.shape[1]
    needs = {
        "digits": "The images and, where they are not embedded, a network trained on the first "
        "use need no download.",
        "imagenet": "`data_root` names a local copy of ImageNet, as `torchvision.datasets.ImageNet`"
        " wants it; the default weights are torchvision's, downloaded on the first use. Where "
        "torchvision has none, name a file: `weights=`.",
    }[spec.default_dataset]
    root = ', data_root="..."' if spec.default_dataset == "imagenet" else ""
    facts = markdown_table(
        ("", ""),
        [
            ("network", f"`{spec.name}`"),
            ("paper", spec.source),
            ("default data set", f"`{spec.default_dataset}`"),
            ("layers", str(layers)),
            ("coupling groups", f"{groups}, of {min(sizes)} to {max(sizes)} channels"),
            ("groups over several layers", str(len(shared))),
            ("action, `network` mode", f"`Box(-1, 1, ({groups + 2 * layers},), float32)`"),
            ("action, `layer` mode", f"`Box(-1, 1, (3,), float32)`, {layers} steps"),
            (
                "observation",
                f"{layers} nodes with {len(columns.NODE_COLUMNS)} features, {flow} flow and "
                f"{coupling} coupling edges, {len(columns.GLOBAL_COLUMNS)} globals",
            ),
        ],
    )
    figures = markdown_table(("images", "MACs", "parameters", "BOPs", "size"), costs(spec))
    return f"""# {environment_id(name)}

{facts}
The dense network:

{figures}
```python
import gymnasium as gym
import compress_env

env = gym.make("{environment_id(name)}"{root})
observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
```

{needs}

Arguments, action, reward and the end of an episode: the docstring of
`compress_env.JointPruneQuantEnv`. Node features and globals: [columns](columns.md).
"""


def columns_page() -> str:
    """The meaning of the observation's columns, from where they are defined."""
    body = ast.parse(inspect.getsource(columns)).body
    told = {}
    for first, second in pairwise(body):
        if isinstance(first, ast.Assign) and isinstance(second, ast.Expr):
            target, value = first.targets[0], second.value
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                told[target.id] = inspect.cleandoc(str(value.value))
    return f"""# Columns of the observation

## Node features

{told["NODE_COLUMNS"]}

In this order: {", ".join(f"`{name}`" for name in columns.NODE_COLUMNS)}.

## Globals

{told["GLOBAL_COLUMNS"]}
"""


def index_page() -> str:
    """The list of all ids."""
    rows = []
    for name, spec in NETWORKS.items():
        graph = traced(spec, *DATASETS[spec.default_dataset])
        size = f"{spec.image_size}x{spec.image_size}"
        title = environment_id(name)
        rows.append(
            (
                f"[{title}]({title}.md)",
                f"`{name}`",
                size,
                str(len(graph.layers)),
                str(len(graph.groups)),
                str(int(np.sum([group.size for group in graph.groups]))),
            )
        )
    table = markdown_table(
        ("id", "network", "made for", "layers", "coupling groups", "removable channels"), rows
    )
    return f"""# Environments

Made from the registry by `python -m benchmarks.environment_pages`.

`{GENERAL_ID}` takes any network:
`gym.make("{GENERAL_ID}", network="module.path:factory")`.
What the nodes and globals of an observation hold: [columns](columns.md).

{table}"""


def pages() -> dict[str, str]:
    """All pages by file name."""
    found = {f"{environment_id(name)}.md": environment_page(name) for name in NETWORKS}
    return {"README.md": index_page(), "columns.md": columns_page(), **found}


def main() -> None:
    """Write the pages."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
    print(f"{len(NETWORKS)} environments in {folder}")


if __name__ == "__main__":
    main()
