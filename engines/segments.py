"""A network cut at the ends of its blocks: where that can be, and the parts as models of their own.

A cut is a feature map that everything after it depends on alone, so that the map is all that a
later part needs of an earlier one. Weights are carried over byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from engines.batch import AXIS_NAME
from engines.errors import UnsupportedModel
from engines.onnx_model import Shape
from engines.pruning import drop_unneeded
from engines.shapes import infer_shapes

# What belongs to the block before it: it changes values or size, and weighs nothing.
_FINISHING = frozenset(
    {
        *("BatchNormalization", "Dropout", "Identity", "Pad", "MaxPool", "AveragePool"),
        *("Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Selu"),
        *("Sigmoid", "Softplus"),
    }
)


class Cut(NamedTuple):
    """The end of a block.

    Attributes
    ----------
    tensor
        Name of its feature map ``f32 [n, *shape]``.
    shape
        Channels, height and width.
    """

    tensor: str
    shape: tuple[int, int, int]

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return self.shape[0]


@dataclass(frozen=True)
class Blocks:
    """A network and the ends of its blocks.

    Attributes
    ----------
    model
        The network, with the maps in ``cuts`` named as they say.
    """

    model: onnx.ModelProto
    cuts: tuple[Cut, ...]

    def segment(self, start: int, stop: int | None) -> onnx.ModelProto:
        """Return blocks ``start + 1`` to ``stop`` as a network of their own.

        Parameters
        ----------
        start
            Blocks that came before: the part reads the map of the last of them, or for 0 what the
            whole network reads.
        stop
            The last block, whose map is the output; None goes on to the network's own outputs.
        """
        part = onnx.ModelProto()
        part.CopyFrom(self.model)
        graph = part.graph
        del graph.value_info[:]
        if stop is not None:
            del graph.output[:]
            add_output(part, self.cuts[stop - 1].tensor, self.cuts[stop - 1].shape)
        if start:
            _begin_at(graph, self.cuts[start - 1])
        drop_unneeded(graph)
        return part


def cut_blocks(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> Blocks:
    """Find the ends of a network's blocks, and name their maps ``block1``, ``block2`` and so on.

    A block ends at a feature map that all ways to the output go through, after the activation and
    the pooling that follow a convolution or a sum. The map that the classifier pools is the last.

    Parameters
    ----------
    inputs
        Shapes of the model's inputs for one sample.

    Raises
    ------
    UnsupportedModel
        When there is no such map, or a name is taken.
    """
    shapes = infer_shapes(model, inputs)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    cuts: list[Cut] = []
    for tensor, readers in _bottlenecks(model, set(inputs)):
        sizes = [size for size in shapes.get(tensor, ()) if isinstance(size, int)]
        finished = len(readers) > 1 or readers[0].op_type not in _FINISHING
        if finished and len(sizes) == 4:
            cuts.append(Cut(f"block{len(cuts) + 1}", (sizes[1], sizes[2], sizes[3])))
            _rename(copy.graph, tensor, cuts[-1].tensor)
    if not cuts:
        raise UnsupportedModel(
            "no place to cut it: expected feature maps [n, channels, height, width] that all ways "
            "to the output go through, as after each block of a convolutional or residual network. "
            "Networks of tokens, and those with ways around all blocks, are not supported."
        )
    return Blocks(copy, tuple(cuts))


def add_pooled(model: onnx.ModelProto, cut: Cut, name: str) -> None:
    """Add the mean of a feature map over its places, ``name f32 [n, channels]``, to the nodes."""
    pooled = f"{name}_map"
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", [cut.tensor], [pooled], f"{name}/pool"),
            helper.make_node("Flatten", [pooled], [name], f"{name}/flatten", axis=1),
        ]
    )


def add_output(model: onnx.ModelProto, name: str, shape: Sequence[int]) -> None:
    """Declare a tensor inside the graph as an output ``f32 [n, *shape]``."""
    model.graph.output.append(_float_tensor(name, shape))


def _bottlenecks(
    model: onnx.ModelProto, inputs: set[str]
) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
    """Yield each tensor that alone connects what was computed with what is not, and its readers."""
    nodes = model.graph.node
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    waiting = {name: len(readers.get(name, ())) for name in inputs}
    for info in model.graph.output:
        readers.setdefault(info.name, [])
    for node in nodes:
        depends = any(name in waiting for name in node.input)
        for name in node.input:
            if name in waiting:
                waiting[name] -= 1
        for name in node.output if depends else ():
            waiting[name] = len(readers.get(name, ()))
        alive = [name for name, count in waiting.items() if count]
        if depends and len(alive) == 1 and alive[0] in node.output:
            yield alive[0], readers[alive[0]]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    taken = {item for node in graph.node for item in (*node.input, *node.output)}
    if new in taken:
        raise UnsupportedModel(f"a tensor of it is named {new!r} already; export it without names.")
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if item == old else item for item in names]


def _begin_at(graph: onnx.GraphProto, start: Cut) -> None:
    """Make a cut the only input, and drop the node that wrote it."""
    kept = [node for node in graph.node if start.tensor not in node.output]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.input[:]
    graph.input.append(_float_tensor(start.tensor, start.shape))


def _float_tensor(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, (AXIS_NAME, *shape))
