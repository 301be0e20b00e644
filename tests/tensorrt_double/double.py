"""A TensorRT module whose objects are doubles, held member by member to the real classes.

A *behaviour* is a plain class that says what TensorRT's native code would have done; its members
have the names of the real ones. What code gets in its hands is a `Guarded` behaviour: a member that
the real class of this version lacks, a wrong argument, a property that cannot be set, or an
integer for an enumeration raises as it would there. All that is touched is recorded.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.tensorrt_double.signatures import Signature, parse


class Record:
    """What was touched, in order: calls with their arguments, and names that do not exist."""

    def __init__(self, path: Path | None = None, *, keep: bool = True) -> None:
        self.calls: list[dict[str, Any]] = []
        self.missing: list[str] = []
        self._path = path
        self._keep = keep

    def call(self, name: str, arguments: dict[str, Any]) -> None:
        """Record a call, or the setting of a property, unless calls are not to be kept."""
        if not self._keep:
            return
        event = {"call": name, **{key: plain(value) for key, value in arguments.items()}}
        self.calls.append(event)
        self._write(event)

    def miss(self, name: str) -> None:
        """Record that a name was asked for which this version lacks."""
        self.missing.append(name)
        self._write({"missing": name})

    def _write(self, event: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: enumerations by name, buffers by size, objects by class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    if hasattr(type(value), "__members__"):
        return f"{type(value).__name__}.{value.name}"
    if type(value).__name__.startswith("Dims") or isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{class_name(value)}>"


def class_name(value: Any) -> str:
    """Return the name of a value's real class."""
    if isinstance(value, Guarded):
        return object.__getattribute__(value, "_real").__name__
    return type(value).__name__


class Guarded:
    """A behaviour behind the interface of its real class."""

    def __init__(self, module: Module, real: type, behaviour: Any) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "_behaviour", behaviour)

    def __getattribute__(self, name: str) -> Any:
        """Return a member that the real class has."""
        module, real, behaviour = _parts(self)
        member = _real_member(module, real, name)
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        if not hasattr(behaviour, name):
            raise NotImplementedError(f"the double of {real.__name__} has no {name}")
        double = getattr(behaviour, name)
        if isinstance(member, property):
            return module.wrap(double)
        return _checked_call(module, f"{real.__name__}.{name}", parse(member.__doc__), double)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a property that the real class lets be set."""
        module, real, behaviour = _parts(self)
        member = _real_member(module, real, name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{real.__name__}.{name} cannot be set")
        (signature,) = parse(member.fset.__doc__)
        (parameter,) = signature.parameters
        signature = Signature((parameter._replace(name="value"),), signature.returns)
        _bind(module, f"{real.__name__}.{name}", [signature], (value,), {})
        setattr(behaviour, name, value)


class Enumeration:
    """An enumeration class; a member that this version lacks is recorded before it raises."""

    def __init__(self, module: Module, real: type) -> None:
        self._module, self._real = module, real

    def __getattr__(self, name: str) -> Any:
        """Return a member, or what else the class has."""
        return _real_member(self._module, self._real, name, bound=True)


class Module(types.ModuleType):
    """In place of ``tensorrt``, over the real bindings of one version.

    Parameters
    ----------
    behaviours
        By the name of the real class: what ``module.<class>(...)`` makes.
    functions
        By name: what the module's functions do.
    """

    def __init__(
        self,
        real: types.ModuleType,
        behaviours: dict[str, type],
        functions: dict[str, Callable[..., Any]],
        record: Record,
    ) -> None:
        super().__init__("tensorrt")
        self._real, self._behaviours, self._functions = real, behaviours, functions
        self.record = record

    def __getattr__(self, name: str) -> Any:
        """Return a class, enumeration or function of the module."""
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if not hasattr(self._real, name):
            self.record.miss(name)
            raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")
        real = getattr(self._real, name)
        if name in self._behaviours:
            signatures = parse(real.__init__.__doc__)
            return _checked_call(self, name, signatures, self._behaviours[name], real)
        if name in self._functions:
            signatures = parse(real.__doc__, has_self=False)
            return _checked_call(self, name, signatures, self._functions[name])
        if isinstance(real, type) and hasattr(real, "__members__"):
            return Enumeration(self, real)
        return real

    def real(self, name: str) -> Any:
        """Return the real class or enumeration, for behaviours."""
        return getattr(self._real, name)

    def wrap(self, value: Any) -> Any:
        """Guard a behaviour that native code would have returned; leave all else."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.wrap, value))
        native = getattr(type(value), "native", None)
        return value if native is None else Guarded(self, self.real(native), value)

    def fits(self, kind: str, value: Any) -> bool:
        """Return whether a value may be given for one of TensorRT's types."""
        if kind == "Dims":
            sized = isinstance(value, (tuple, list)) or class_name(value).startswith("Dims")
            return sized and all(type(item) is int for item in value)
        if kind in ("capsule", "CapsuleType"):
            return isinstance(value, self.real("ILogger"))
        real = getattr(self._real, kind)
        return class_name(value) == kind if isinstance(value, Guarded) else isinstance(value, real)


def unguarded(value: Any) -> Any:
    """Return the behaviour in a guarded object, for behaviours that are given one."""
    return object.__getattribute__(value, "_behaviour") if isinstance(value, Guarded) else value


def _parts(guarded: Guarded) -> tuple[Module, type, Any]:
    names = ("_module", "_real", "_behaviour")
    module, real, behaviour = (object.__getattribute__(guarded, name) for name in names)
    return module, real, behaviour


def _real_member(module: Module, real: type, name: str, *, bound: bool = False) -> Any:
    for owner in real.__mro__:
        if name in vars(owner):
            return getattr(real, name) if bound else vars(owner)[name]
    module.record.miss(f"{real.__name__}.{name}")
    raise AttributeError(f"{real.__name__!r} object has no attribute {name!r}")


def _checked_call(
    module: Module,
    name: str,
    signatures: Iterable[Signature],
    double: Callable[..., Any],
    real: type | None = None,
) -> Callable[..., Any]:
    overloads = list(signatures)
    assert overloads, f"{name}: the bindings give no signature"

    def call(*args: Any, **kwargs: Any) -> Any:
        signature, given = _bind(module, name, overloads, args, kwargs)
        result = double(**{key: unguarded(value) for key, value in given.items()})
        if real is not None:
            return Guarded(module, real, result)
        _check_result(name, signature.returns, result)
        return module.wrap(result)

    return call


def _bind(
    module: Module,
    name: str,
    signatures: list[Signature],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Signature, dict[str, Any]]:
    problems = []
    for signature in signatures:
        try:
            given = signature.bind(args, kwargs, module.fits)
        except TypeError as error:
            problems.append(str(error))
        else:
            module.record.call(name, given)
            return signature, given
    raise TypeError(f"{name}: {'; '.join(problems)}")


def _check_result(name: str, returns: str, result: Any) -> None:
    """See that a double returns what the real one says, so that code can rely on it."""
    plain_types = {"None": type(None), "bool": bool, "int": int, "str": str}
    expected = plain_types.get(returns)
    if expected is not None and type(result) is not expected:
        raise AssertionError(f"the double of {name} returned {result!r}; it says {returns}")
