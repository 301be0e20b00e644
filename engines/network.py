"""The network that TensorRT reads from an ONNX file, held against what the bundle says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.build_messages import BuildRequest, Expected
from engines.errors import EngineError
from engines.tensorrt_session import Session
from runtime.plans import Tensor

if TYPE_CHECKING:
    import tensorrt as trt


def read_network(session: Session, request: BuildRequest) -> trt.INetworkDefinition:
    """Parse the ONNX file and check that the network is what the bundle says.

    Raises
    ------
    EngineError
        When TensorRT does not take a node (which one), or inputs or outputs differ.
    """
    tensorrt, flags = session.tensorrt, request.flags
    network = session.builder.create_network(tensorrt.network_flags(flags))
    parser = tensorrt.module.OnnxParser(network, session.logger)
    if not parser.parse_from_file(request.model):
        problems = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        reason = "; ".join(problems[:3]) or session.log.last_error(ahead_of_time=False)
        raise EngineError(f"{request.model}: {tensorrt.name} cannot read it: {reason}")
    if network.num_inputs == 0 or network.num_outputs == 0:
        # The parser takes an empty or foreign file for an empty network.
        raise EngineError(f"{request.model}: not an ONNX model, or an empty one.")
    found_inputs = [network.get_input(i) for i in range(network.num_inputs)]
    found_outputs = [network.get_output(i) for i in range(network.num_outputs)]
    _check_tensors(request.model, "input", found_inputs, request.inputs)
    _check_tensors(request.model, "output", found_outputs, request.outputs)
    if len(found_inputs) > len(request.inputs):
        raise EngineError(
            f"{request.model}: inputs are {_names(found_inputs)}, "
            f"the bundle feeds {', '.join(item.name for item in request.inputs)}."
        )
    return network


def tensors(
    network: trt.INetworkDefinition,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Describe the inputs and outputs of a network."""
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    outputs = (network.get_output(i) for i in range(network.num_outputs))
    return tuple(map(_describe_tensor, inputs)), tuple(map(_describe_tensor, outputs))


def _describe_tensor(tensor: trt.ITensor) -> Tensor:
    return Tensor(name=tensor.name, dtype=_dtype(tensor), shape=shape_of(tensor))


def shape_of(tensor: trt.ITensor) -> tuple[int, ...]:
    """Return the sizes of a tensor, -1 for the batch."""
    sizes = tensor.shape
    return tuple(sizes[axis] for axis in range(len(sizes)))


def _dtype(tensor: trt.ITensor) -> str:
    name: str = tensor.dtype.name
    return {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}.get(name, name.lower())


def _describe(error: Any) -> str:
    """Name the node of a parser's error; before version 10 only its number is known."""
    text = f"{error.code().name}: {error.desc()}"
    if error.node() < 0:
        return text
    name = f"node {error.node()}"
    if hasattr(error, "node_operator"):
        name += f" (operator {error.node_operator()}, name {error.node_name() or 'none'})"
    return f"{name}: {text}"


def _check_tensors(
    model: str, kind: str, found: list[trt.ITensor], expected: tuple[Expected, ...]
) -> None:
    by_name = {tensor.name: tensor for tensor in found}
    for item in expected:
        if item.name not in by_name:
            raise EngineError(
                f"{model}: {kind}s are {_names(found)}; the bundle names {item.name}."
            )
        _check_tensor(model, kind, by_name[item.name], item)


def _check_tensor(model: str, kind: str, tensor: trt.ITensor, expected: Expected) -> None:
    shape = shape_of(tensor)
    if shape[:1] != (-1,):
        raise EngineError(
            f"{model}: {kind} {tensor.name} has shape {list(shape)}; expected a dynamic batch axis "
            "first. Make the bundle anew from the ONNX file: python -m engines.bundle --help"
        )
    if expected.shape is None:
        fits = -1 not in shape[1:]
        wanted = "all sizes but the batch fixed"
    else:
        fits = shape[1:] == expected.shape
        wanted = f"[-1, {', '.join(map(str, expected.shape))}] as the bundle says"
    if not fits:
        raise EngineError(
            f"{model}: {kind} {tensor.name} has shape {list(shape)}; expected {wanted}."
        )
    if expected.shape is not None and _dtype(tensor) != "float32":
        raise EngineError(
            f"{model}: {kind} {tensor.name} is {_dtype(tensor)}; every form has float32 there."
        )


def _names(found: list[trt.ITensor]) -> str:
    return ", ".join(tensor.name for tensor in found)
