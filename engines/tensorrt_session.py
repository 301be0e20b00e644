"""One TensorRT at work in the building process: its builder, its log, its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.build_messages import BuildRequest, PhaseFinished, PhaseStarted, Progress, StepDone
from engines.errors import EngineError
from engines.tensorrt_versions import TensorRT, load_tensorrt

if TYPE_CHECKING:
    import tensorrt as trt

Tell = Callable[[Progress], None]

# Without a driver, TensorRT-RTX adds this to errors of builds ahead of time, which need none.
_NO_DRIVER = "cudaError 35"


class Log:
    """What TensorRT logged: every error, and each warning once."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: dict[str, None] = {}

    def add(self, severity: str, message: str) -> None:
        """Take one message; ``severity`` is the name of TensorRT's."""
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self.errors.append(message.strip())
        elif severity == "WARNING":
            self.warnings[message.strip()] = None

    def last_error(self, *, ahead_of_time: bool) -> str:
        """Return TensorRT's last error."""
        relevant = [text for text in self.errors if not (ahead_of_time and _NO_DRIVER in text)]
        return (relevant or self.errors or ["it gave no reason"])[-1]


class Session(NamedTuple):
    """One TensorRT at work.

    Attributes
    ----------
    logger
        The only one of the process: TensorRT keeps the first it is given. It feeds ``log``.
    monitor
        Reports progress; None before version 10. Kept here, since TensorRT only borrows it.
    """

    tensorrt: TensorRT
    logger: trt.ILogger
    log: Log
    builder: trt.Builder
    monitor: trt.IProgressMonitor | None


def open_session(request: BuildRequest, tell: Tell) -> Session:
    """Start TensorRT.

    Raises
    ------
    EngineError
        When TensorRT is missing or does not start.
    """
    tensorrt = load_tensorrt(request.library)
    log = Log()
    logger = _make_logger(tensorrt.module, log)
    tensorrt.module.init_libnvinfer_plugins(logger, "")
    try:
        builder = tensorrt.module.Builder(logger)
    except (TypeError, RuntimeError) as error:
        reason = log.errors[-1] if log.errors else str(error)
        raise EngineError(
            f"{tensorrt.name} is installed but does not start: {reason}. "
            "Check the GPU and its driver: python -m runtime.doctor"
        ) from None
    has_monitor = hasattr(tensorrt.module, "IProgressMonitor")
    monitor = _make_monitor(tensorrt.module, tell) if has_monitor else None
    return Session(tensorrt, logger, log, builder, monitor)


def _make_logger(module: Any, log: Log) -> trt.ILogger:
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(severity.name, message)

    return Logger()


def _make_monitor(module: Any, tell: Tell) -> trt.IProgressMonitor:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tell(PhaseStarted(phase=phase_name, steps=num_steps))

        def phase_finish(self, phase_name: str) -> None:
            tell(PhaseFinished(phase=phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(StepDone(phase=phase_name, step=step))
            return True

    return Monitor()
