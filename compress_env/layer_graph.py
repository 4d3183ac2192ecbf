"""What is known of a network: its layers, the flow of data, and which channels belong together.

`trace` runs `torch.fx` over a network and follows every channel from the layer that makes it to the
layers that read it (`compress_env.channel_flow`). Channels that can only be removed together form
an *atom*; atoms made by the same layers form a *coupling group*. All later parts, from counting to
pruning to the observation, work from the arrays kept here and never look at the network's names.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx, nn

from compress_env.channel_flow import follow_channels
from compress_env.channel_modules import SelectChannels
from compress_env.channel_values import ChannelFlow
from compress_env.functionalize import check_same, functionalize
from compress_env.tracing import record_shapes, symbolic_trace

FROZEN = -1
"""Group index of the atoms that are never removed: inputs, outputs, what unknown operations read,
and one channel of every layer that could else be left without any."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv2d or Linear of the network.

    Attributes:
        name: dotted path of the module.
        kind: `"conv"`, `"depthwise"`, `"grouped"` or `"linear"`.
        in_channels: channels (or features) read in the dense network.
        out_channels: channels (or features) made in the dense network.
        kernel: height and width of the kernel; (1, 1) for a linear layer.
        stride: vertical and horizontal stride; (1, 1) for a linear layer.
        groups: groups of the convolution.
        positions: output positions for one image (height times width), summed over its calls.
        has_bias: whether there is a bias.
        input_nonnegative: whether the input is known to be at or above zero (it follows a ReLU).
        in_atoms: int64 (in_channels,), the atom of every input channel.
        out_atoms: int64 (out_channels,), the atom of every output channel.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    positions: int
    has_bias: bool
    input_nonnegative: bool
    in_atoms: np.ndarray
    out_atoms: np.ndarray

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the dense layer for one image."""
        return self.positions * self.weights

    @property
    def weights(self) -> int:
        """Number of weights of the dense layer, without the bias."""
        return (
            self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]
        )


@dataclass(frozen=True)
class CouplingGroup:
    """Channels of several layers that are removed together.

    Attributes:
        name: the first of its layers; a number follows where that name is already taken.
        size: number of atoms, the channels one can choose among.
        layers: indices of the layers that make these channels, in the order of the data flow.
    """

    name: str
    size: int
    layers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Layers, groups and channels of one network.

    Attributes:
        module: the traced network; operations that depend on channel counts are modules in it.
            It shares its parameters with the network it was traced from.
        layers: in the order of the data flow.
        groups: coupling groups that can be pruned.
        atom_group: int64 (atoms,), the group of every atom, or `FROZEN`.
        channels: every other module whose parameters or behaviour depend on channels, with the
            atoms of those channels: int64 (channels,).
        flow_edges: int64 (2, edges), from a layer to the layers that read its output.
        coupling_edges: int64 (2, edges), between the first layer of a group and the others.
        other_parameters: number of parameters that belong to no layer and follow no channel.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    groups: tuple[CouplingGroup, ...]
    atom_group: np.ndarray
    channels: Mapping[str, np.ndarray]
    flow_edges: np.ndarray
    coupling_edges: np.ndarray
    other_parameters: int
    input_shape: tuple[int, int, int]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        record_shapes(self.module, self.input_shape)  # which pickling a traced network loses

    @cached_property
    def group_atoms(self) -> tuple[np.ndarray, ...]:
        """For every group the indices of its atoms, in the order of its first layer's channels."""
        in_order = np.argsort(self.atom_group, kind="stable")[np.sum(self.atom_group == FROZEN) :]
        ends = np.cumsum([group.size for group in self.groups], dtype=np.int64)
        return tuple(np.split(in_order, ends)[: len(self.groups)])

    @cached_property
    def layer_index(self) -> Mapping[str, int]:
        """Index of a layer by its name."""
        return {layer.name: index for index, layer in enumerate(self.layers)}

    @cached_property
    def group_membership(self) -> np.ndarray:
        """Bool (groups, layers): whether a layer makes channels of a group."""
        membership = np.zeros((len(self.groups), len(self.layers)), dtype=bool)
        for index, group in enumerate(self.groups):
            membership[index, list(group.layers)] = True
        return membership

    @cached_property
    def last_layers(self) -> tuple[int, ...]:
        """Layers that no other layer reads: the ones whose outputs leave the network."""
        readers = set(self.flow_edges[0].tolist())
        return tuple(index for index in range(len(self.layers)) if index not in readers)

    @cached_property
    def first_layers(self) -> tuple[int, ...]:
        """Layers that read the network's input and no other layer."""
        read = set(self.flow_edges[1].tolist())
        return tuple(index for index in range(len(self.layers)) if index not in read)

    @cached_property
    def folds(self) -> Mapping[str, str]:
        """BatchNorm that can be folded into a layer, by the layer's name: its only reader."""
        layers = set(self.layer_index)
        calls = Counter(node.target for node in self.module.graph.nodes)
        found = {}
        for node in self.module.graph.nodes:
            if node.op != "call_module" or calls[node.target] > 1:
                continue
            source, norm = node.args[0], self.module.get_submodule(node.target)
            if (
                isinstance(norm, nn.modules.batchnorm._BatchNorm)
                and norm.running_mean is not None  # else it depends on the images, not to be folded
                and isinstance(source, fx.Node)
                and source.target in layers
                and calls[source.target] == 1
                and len(source.users) == 1
            ):
                found[str(source.target)] = str(node.target)
        return found

    @cached_property
    def atom_cell(self) -> np.ndarray:
        """int64 (atoms,): equal for atoms that lie in the same groups of all grouped convolutions.

        A grouped convolution stays one convolution only while its groups lose equally many.
        """
        cell = np.zeros(self.atom_group.size, dtype=np.int64)
        cells = 1
        for layer in self.layers:
            if layer.kind != "grouped":
                continue
            for channels in (layer.in_atoms, layer.out_atoms):
                atoms, position = np.unique(channels, return_index=True)
                place = position * layer.groups // channels.size
                _, number = np.unique(cell[atoms] * layer.groups + place, return_inverse=True)
                cell[atoms] = cells + number
                cells += atoms.size
        return cell

    @cached_property
    def group_multiples(self) -> np.ndarray:
        """int64 (groups,): kept counts are multiples of this where grouped convolutions want it."""
        multiples = []
        for atoms in self.group_atoms:
            sizes = np.unique(self.atom_cell[atoms], return_counts=True)[1]
            multiples.append(sizes.size if np.all(sizes == sizes[0]) else 1)
        return np.array(multiples, dtype=np.int64)


def trace(network: nn.Module, input_shape: Sequence[int] = (3, 32, 32)) -> LayerGraph:
    """Trace a network and find its layers and coupling groups.

    Args:
        network: any CNN that `torch.fx` can trace. It is put into evaluation mode.
        input_shape: channels, height and width of one input image.

    Returns:
        The layer graph.

    Raises:
        ValueError: the network cannot be traced (the message names the line), or it has no
            Conv2d or Linear, or two of its modules share a parameter, or the input shape does
            not fit it.
    """
    channels, height, width = (int(size) for size in input_shape)
    module = symbolic_trace(network.eval())
    functionalize(module)
    flow = follow_channels(module, (channels, height, width))
    check_same(network, module, (channels, height, width))
    if not flow.layers:
        raise ValueError("network: it has no Conv2d or Linear layer, so nothing to compress")
    _refuse_tied(module, [*flow.layers, *flow.channels])
    if flow.unknown:
        operations = ", ".join(f"{name} ({count}x)" for name, count in sorted(flow.unknown.items()))
        warnings.warn(
            f"channels are left whole where an operation mixes them or is not known: {operations}",
            stacklevel=2,
        )
    return _build(module, flow, (channels, height, width))


def _refuse_tied(module: fx.GraphModule, names: Sequence[str]) -> None:
    owners: dict[nn.Parameter, str] = {}
    for name in names:
        for key, parameter in module.get_submodule(name).named_parameters():
            other = owners.setdefault(parameter, name)
            if other != name:
                raise ValueError(
                    f"network: '{other}' and '{name}' share the parameter '{key}'; what is cut or "
                    "quantized for one would change the other: give each of them its own copy"
                )


def _build(
    module: fx.GraphModule, flow: ChannelFlow, input_shape: tuple[int, int, int]
) -> LayerGraph:
    atom_of_id, frozen = _atoms(flow)
    makers: list[list[int]] = [[] for _ in range(len(frozen))]
    layers = []
    for index, found in enumerate(flow.layers.values()):
        out_atoms = atom_of_id[found.out_ids]
        for atom in dict.fromkeys(out_atoms.tolist()):
            makers[atom].append(index)
        layers.append(
            Layer(
                name=found.name,
                kind=found.kind,
                in_channels=found.in_ids.size,
                out_channels=found.out_ids.size,
                kernel=found.kernel,
                stride=found.stride,
                groups=found.groups,
                positions=found.positions,
                has_bias=found.has_bias,
                input_nonnegative=found.input_nonnegative,
                in_atoms=atom_of_id[found.in_ids],
                out_atoms=out_atoms,
            )
        )
    needed = [atoms for layer in layers for atoms in (layer.in_atoms, layer.out_atoms)]
    for name, ids in flow.channels.items():
        chosen = module.get_submodule(name)
        picked = chosen.index.cpu().numpy() if isinstance(chosen, SelectChannels) else slice(None)
        needed.append(atom_of_id[ids][picked])
    members = _pin_last_channels(_members(makers, frozen), needed, frozen)
    groups, atom_group = _groups(members, len(makers), [layer.name for layer in layers])
    stars = [(group.layers[0], other) for group in groups for other in group.layers[1:]]
    coupling = sorted({*stars, *((b, a) for a, b in stars)})
    in_channels = {name: atom_of_id[ids] for name, ids in flow.channels.items()}
    counted = {parameter for name in (*flow.layers, *flow.channels) for parameter in
               module.get_submodule(name).parameters()}  # fmt: skip
    return LayerGraph(
        module=module,
        layers=tuple(layers),
        groups=groups,
        atom_group=atom_group,
        channels=in_channels,
        flow_edges=np.array(sorted(flow.edges), dtype=np.int64).reshape(-1, 2).T,
        coupling_edges=np.array(coupling, dtype=np.int64).reshape(-1, 2).T,
        other_parameters=sum(p.numel() for p in module.parameters() if p not in counted),
        input_shape=input_shape,
    )


def _atoms(flow: ChannelFlow) -> tuple[np.ndarray, np.ndarray]:
    """Join the ids that were found to be the same channel: atom of every id, and which are frozen.

    Atoms are numbered by the first id in them, so that their order is the order of the data flow.
    """
    pairs = np.concatenate(flow.same, axis=1) if flow.same else np.empty((2, 0), dtype=np.int64)
    links = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(flow.ids, flow.ids))
    count, label = connected_components(links, directed=False)
    _, first = np.unique(label, return_index=True)
    order = np.empty(count, dtype=np.int64)
    order[np.argsort(first)] = np.arange(count)
    atom_of_id = order[label].astype(np.int64)
    frozen = np.zeros(count, dtype=bool)
    if flow.frozen:
        frozen[atom_of_id[np.concatenate(flow.frozen)]] = True
    return atom_of_id, frozen


def _members(makers: list[list[int]], frozen: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Atoms that can go, by the layers that make them."""
    members: dict[tuple[int, ...], list[int]] = {}
    for atom, layers in enumerate(makers):
        if layers and not frozen[atom]:
            members.setdefault(tuple(sorted(layers)), []).append(atom)
    return members


def _pin_last_channels(
    members: dict[tuple[int, ...], list[int]], needed: list[np.ndarray], frozen: np.ndarray
) -> dict[tuple[int, ...], list[int]]:
    """Keep one atom of every set that could else lose all, though its groups keep one each.

    That happens where a split takes a part of several groups. An atom that is alone in its group
    stays as well.

    Args:
        members: atoms by group.
        needed: sets of atoms of which one must stay, such as the inputs of a layer.
        frozen: bool (atoms,), those that stay anyway.

    Returns:
        The groups of two and more atoms that are left.
    """
    group_of = np.full(frozen.size, FROZEN, dtype=np.int64)
    for index, atoms in enumerate(members.values()):
        group_of[atoms] = index
    sizes = np.array([len(atoms) for atoms in members.values()], dtype=np.int64)
    stays = group_of == FROZEN
    stays |= np.append(sizes, 0)[group_of] == 1
    for wanted in needed:
        if not wanted.size or stays[wanted].any():
            continue
        groups, counts = np.unique(group_of[np.unique(wanted)], return_counts=True)
        if not np.any(counts == sizes[groups]):
            stays[wanted[0]] = True
            sizes[group_of[wanted[0]]] -= 1
    left = {layers: [a for a in atoms if not stays[a]] for layers, atoms in members.items()}
    return {layers: atoms for layers, atoms in left.items() if len(atoms) > 1}


def _groups(
    members: dict[tuple[int, ...], list[int]], atoms_in_all: int, layer_names: list[str]
) -> tuple[tuple[CouplingGroup, ...], np.ndarray]:
    """Name the groups, in the order of the data flow."""
    atom_group = np.full(atoms_in_all, FROZEN, dtype=np.int64)
    groups: list[CouplingGroup] = []
    taken: dict[str, int] = {}
    for makers_of, atoms in sorted(members.items(), key=lambda item: item[1][0]):
        first = layer_names[makers_of[0]]
        taken[first] = taken.get(first, 0) + 1
        name = first if taken[first] == 1 else f"{first}#{taken[first]}"
        atom_group[atoms] = len(groups)
        groups.append(CouplingGroup(name, len(atoms), makers_of))
    return tuple(groups), atom_group
