"""A whole cascade as one ONNX graph.

::

    frames u8 [n, H, W, C] -> saver -> gate -> rows that are not sure
    If there are any: gather them -> next stage (and so on, one If within the other) -> scatter
    label i32 [n], confidence f32 [n], stage i8 [n]

A branch sees the tensors around it, so a stage reads what any earlier one left. Rows are numbered
within the stage before; their places in earlier stages are composed from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from engines.export_frames import add_preprocessing
from engines.export_gates import Decision, add_gate, add_last_answer
from engines.export_nodes import Nodes
from kernels.frames import Size
from runtime.preprocess import network_input
from runtime.schema import CascadeSpec, Preprocessing, StageInput, Threshold


@dataclass(frozen=True)
class Layout:
    """What is exported, and how its inputs and outputs look.

    Attributes
    ----------
    thresholds
        One per gate.
    size
        Height and width of the frames.
    batch
        A fixed number of frames; None leaves it open.
    wide_stage
        Put out ``stage`` as i32, since TensorRT has no plain 8-bit integers.
    """

    spec: CascadeSpec
    thresholds: tuple[Threshold, ...]
    size: Size
    batch: int | None = None
    wide_stage: bool = False


class _Answers(NamedTuple):
    """Names of tensors with a row for each of a stage's: label i64, confidence f32, stage i32."""

    label: str
    confidence: str
    stage: str


_PIXELS = "frames:pixels"
_KINDS: tuple[int, ...] = (TensorProto.INT64, TensorProto.FLOAT, TensorProto.INT32)


def cascade_graph(layout: Layout, parts: list[GraphProto], opset: int) -> GraphProto:
    """Return the graph of the cascade.

    Parameters
    ----------
    parts
        One graph per stage, all its names beginning with the stage's own and ``/``.
    """
    nodes = Nodes(opset)
    # To f32 at once, since TensorRT moves no u8 tensors around.
    nodes.add("Cast", _PIXELS, "frames", to=TensorProto.FLOAT)
    answers = _Assembly(layout, parts).add_stage(0, nodes)
    stage_kind = TensorProto.INT32 if layout.wide_stage else TensorProto.INT8
    nodes.add("Cast", "label", answers.label, to=TensorProto.INT32)
    nodes.add("Identity", "confidence", answers.confidence)
    nodes.add("Cast", "stage", answers.stage, to=stage_kind)
    rows = layout.batch or "n"
    kinds = {"label": TensorProto.INT32, "confidence": TensorProto.FLOAT, "stage": stage_kind}
    outputs = [helper.make_tensor_value_info(name, kind, [rows]) for name, kind in kinds.items()]
    shape = [rows, *layout.size, layout.spec.input.shape[2]]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, shape)
    return nodes.graph("cascade", outputs, [frames])


class _Assembly:
    """The graph as it grows, stage by stage.

    Names that are not a stage's own have a colon, which no stage's name may have.
    """

    def __init__(self, layout: Layout, parts: list[GraphProto]) -> None:
        self._layout = layout
        self._spec = layout.spec
        self._names = [stage.name for stage in layout.spec.stages]
        self._parts = parts
        # Per stage so far: its network inputs made from frames.
        self._prepared: list[dict[Preprocessing, str]] = []
        # Per gate so far: i64 [m], which rows of its stage go on.
        self._escalated: list[str] = []

    def add_stage(self, index: int, nodes: Nodes) -> _Answers:
        """Add a stage, its gate, and all stages after it."""
        stage = self._spec.stages[index]
        self._prepared.append({})
        for item in stage.inputs:
            own = nodes.within(f"input:{stage.name}/{item.tensor}/")
            nodes.add("Identity", f"{stage.name}/{item.tensor}", self._add_source(index, item, own))
        nodes.include(self._parts[index])
        logits = f"{stage.name}/{stage.logits}"
        own = nodes.within(f"answer:{stage.name}/")
        if index == len(self._parts) - 1:
            last = add_last_answer(own, self._add_combination(own, logits))
            return _Answers(*last, _add_number(own, index, last.label))
        decision = self._add_gate(index, own, logits)
        number = _add_number(own, index, decision.label)
        rows = _add_rows(nodes.within(f"escalate:{stage.name}/"), decision.kept)
        self._escalated.append(rows)
        return self._go_on(index, nodes, _Answers(decision.label, decision.confidence, number))

    def _add_gate(self, index: int, nodes: Nodes, logits: str) -> Decision:
        score = self._spec.gates[index].score
        return add_gate(
            nodes,
            logits,
            score,
            self._layout.thresholds[index],
            classes=len(self._spec.labels),
            tensor=f"{self._names[index]}/{score.output}" if score.output else None,
        )

    def _add_combination(self, nodes: Nodes, logits: str) -> str:
        """Add the weighted logits of an earlier stage to those of the last one, if it is so."""
        if self._spec.weighted is None:
            return logits
        producer, weight = self._spec.weighted
        stage = self._spec.stages[producer]
        earlier = nodes.within(f"combine:{stage.name}/")
        other = f"{stage.name}/{stage.logits}"
        gathered = self._add_gather(earlier, other, producer, len(self._parts) - 1)
        return earlier.add("Add", "sum", logits, earlier.add("Mul", "weighted", gathered, weight))

    def _go_on(self, index: int, nodes: Nodes, answers: _Answers) -> _Answers:
        """Add the branch that answers escalated rows anew, which runs where there are any."""
        name, rows = self._names[index], self._escalated[index]
        then, otherwise = nodes.branch(), nodes.branch()
        later = self.add_stage(index + 1, then)
        merged = _add_merge(then.within(f"merge:{name}/"), answers, later, rows)
        own = otherwise.within(f"keep:{name}/")
        kept = [own.add("Identity", f"{place}", item) for place, item in enumerate(answers)]
        own = nodes.within(f"escalate:{name}/")
        some = own.add("Greater", "some", own.add("Size", "count", rows), 0)
        then_graph = _branch(f"{name} escalates some", then, merged)
        return _Answers(
            *own.choose("answers", some, then_graph, _branch(f"{name} keeps all", otherwise, kept))
        )

    def _add_source(self, index: int, item: StageInput, nodes: Nodes) -> str:
        """Add what an input of a stage is, with the stage's own rows."""
        if item.source != "frames":
            producer = self._names.index(item.source.partition("/")[0])
            return self._add_gather(nodes, item.source, producer, index)
        wanted = self._spec.stages[index].preprocessing
        for earlier in reversed(range(index + 1)):
            if wanted in self._prepared[earlier]:
                return self._add_gather(nodes, self._prepared[earlier][wanted], earlier, index)
        ready = add_preprocessing(
            nodes,
            self._add_gather(nodes, _PIXELS, 0, index),
            self._layout.size,
            pixels=self._spec.input.pixels,
            network=network_input(wanted),
        )
        self._prepared[index][wanted] = ready
        return ready

    def _add_gather(self, nodes: Nodes, tensor: str, producer: int, index: int) -> str:
        """Add the rows of stage ``index`` of a tensor that has those of an earlier stage."""
        if producer == index:
            return tensor
        rows = self._escalated[producer]
        for gate in range(producer + 1, index):
            rows = nodes.add("Gather", f"rows.{gate}", rows, self._escalated[gate], axis=0)
        return nodes.add("Gather", "gathered", tensor, rows, axis=0)


def _add_number(nodes: Nodes, index: int, like: str) -> str:
    """Add the stage's number, i32 [n], once for each row."""
    number = nodes.add("Cast", "number", [index], to=TensorProto.INT32)
    return nodes.add("Expand", "numbers", number, nodes.add("Shape", "shape", like))


def _add_rows(nodes: Nodes, kept: str) -> str:
    """Add i64 [m], the rows that are not kept, ascending."""
    # Marked by numbers, since TensorRT's NonZero takes no booleans.
    marks = nodes.add("Cast", "marks", nodes.add("Not", "unsure", kept), to=TensorProto.FLOAT)
    return nodes.add("Reshape", "rows", nodes.add("NonZero", "places", marks), [-1])


def _add_merge(nodes: Nodes, answers: _Answers, later: _Answers, rows: str) -> list[str]:
    """Add answers in which escalated rows have those of the later stages."""
    column = nodes.add("Reshape", "column", rows, [-1, 1])
    return [
        nodes.add("ScatterND", f"{place}", own, column, new)
        for place, (own, new) in enumerate(zip(answers, later, strict=True))
    ]


def _branch(name: str, nodes: Nodes, outputs: list[str]) -> GraphProto:
    return nodes.graph(name, [_info(*item) for item in zip(outputs, _KINDS, strict=True)])


def _info(name: str, kind: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [None])
