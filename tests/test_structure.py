"""The rules of the house: arrows point one way, and DGL stays behind one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    p for package in ("compress_env", "compress_agents") for p in (ROOT / package).rglob("*.py")
)

AGENTS_ONLY = {
    "compress_agents", "stable_baselines3", "sb3_contrib", "cmaes", "ray", "torchrl", "tensorboard",
    "typer", "rich", "matplotlib",
}  # fmt: skip

LAYERS = (
    {"plan", "layer_graph"},
    {"pruning", "quantization", "complexity", "compression", "importance"},
    {"evaluation"},
    {"observations", "rewards", "actions"},
    {"task"},
    {"env"},
    {"registration"},
)
"""Modules of `compress_env` from the bottom to the top: none imports from a higher row."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def test_the_walk_sees_every_form_of_import(tmp_path: Path) -> None:
    assert "compress_env.dgl_import.dgl" in set(imported(ROOT / "compress_env" / "graphs.py"))
    networks = set(imported(ROOT / "compress_env" / "networks" / "__init__.py"))
    assert "compress_env.networks.vgg" in networks


@pytest.mark.parametrize("file", [f for f in FILES if "compress_env" in f.parts], ids=module_name)
def test_the_environment_knows_no_agent(file: Path) -> None:
    wrong = {name for name in imported(file) if name.split(".")[0] in AGENTS_ONLY}
    assert not wrong


def row(name: str) -> int | None:
    """The row of a module of `compress_env`, by the second part of its name."""
    parts = name.split(".")
    if parts[0] == "compress_env" and len(parts) > 1:
        for index, names in enumerate(LAYERS):
            if parts[1] in names:
                return index
    return None


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_arrows_point_one_way(file: Path) -> None:
    own = row(module_name(file))
    if own is not None:
        higher = {name for name in imported(file) if (row(name) or 0) > own}
        assert not higher


def test_dgl_is_imported_in_one_place_and_used_in_few() -> None:
    direct = {module_name(f) for f in FILES if any(n.split(".")[0] == "dgl" for n in imported(f))}
    assert direct <= {"compress_env.dgl_import"}
    users = {
        module_name(f)
        for f in FILES
        if any(name.startswith("compress_env.dgl_import") for name in imported(f))
    }
    inside = {name for name in users if name.startswith("compress_env")}
    assert inside == {"compress_env.graphs", "compress_env.spaces"}


def test_no_name_of_a_network_is_looked_at() -> None:
    """No branch on a network's name: only the registry and the data of weights hold them."""
    names = {"resnet20", "resnet56", "resnet110", "vgg16", "mobilenet_v2", "shufflenet_v1"}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not names & {c for c in constants if isinstance(c, str)}, file
