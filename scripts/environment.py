"""Set up the project's own environment and print its Python; called by the scripts beside it.

Standard library only, since it runs before anything is installed. The environment is the folder
``.venv`` of the repository, or ``TINYSAVER_VENV``. A stamp file in it says what was installed: it
is emptied before anything changes and written last, so that an interrupted set-up is seen and
redone.

Every Python is started isolated (``-I``): neither ``PYTHONPATH`` nor the user's site-packages nor a
folder ``runtime`` of the current directory may replace what was set up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STAMP_NAME = "tinysaver-environment.json"
LOG_NAME = "tinysaver-set-up.log"
LOG_TAIL = 25

PROBE = """
import importlib.util, json
def works(name):
    try:
        __import__(name)
    except Exception:
        return False
    return True
numpy_1 = works("numpy") and __import__("numpy").__version__.startswith("1.")
tensorrt = importlib.util.find_spec("tensorrt") is not None
print(json.dumps({"cv2": works("cv2"), "tensorrt": tensorrt, "numpy_1": numpy_1}))
"""
SELF_CHECK = "import click, cv2, numpy, onnxruntime, pydantic, rich, runtime"
VIRTUALENV = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import virtualenv
virtualenv.cli_run(sys.argv[1:])
"""

Command = list[str]
Run = Callable[[Command], bool]
Action = Literal["start", "install", "rebuild"]


class SetUpError(Exception):
    """The environment cannot be set up; the message says what to do."""


class Host(NamedTuple):
    """What the Python that environments are made from can import."""

    python: str
    cv2: bool
    tensorrt: bool
    numpy_1: bool

    @property
    def shared(self) -> bool:
        """Whether environments must see its packages: JetPack has cv2 and tensorrt only there."""
        return self.cv2 or self.tensorrt


class Stamp(NamedTuple):
    """What an environment holds; `project` is empty while it changes."""

    python: str = ""
    project: str = ""
    extras: tuple[str, ...] = ()


class Method(NamedTuple):
    """One way to make an environment: commands of which each must succeed."""

    name: str
    commands: tuple[Command, ...]


class Environment(NamedTuple):
    """The folder of an environment and the files in it."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        """Everything that the last set-up printed."""
        return self.folder / LOG_NAME

    def interpreter(self) -> str:
        """Return the file that `python` links to, or nothing when it is gone."""
        return os.path.realpath(self.python) if os.access(self.python, os.X_OK) else ""

    def stamp(self) -> Stamp | None:
        """Return the stamp, or None in a folder that no set-up has made."""
        try:
            fields = json.loads((self.folder / STAMP_NAME).read_text(encoding="utf-8"))
            return Stamp(fields["python"], fields["project"], tuple(fields["extras"]))
        except OSError:
            return None
        except (ValueError, KeyError, TypeError):
            return Stamp()

    def write_stamp(self, stamp: Stamp) -> None:
        """Replace the stamp in one step."""
        partial = self.folder / (STAMP_NAME + ".partial")
        partial.write_text(json.dumps(stamp._asdict()), encoding="utf-8")
        partial.replace(self.folder / STAMP_NAME)

    def clear(self) -> None:
        """Remove all but the folder, which others may have locked, the stamp and the log."""
        for item in self.folder.iterdir():
            if item.name in (STAMP_NAME, LOG_NAME):
                continue
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()

    def run(self, command: Command) -> bool:
        """Return whether a command succeeds, its output going to the log."""
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A user-wide "pip --user" setting would make pip refuse to install here.
                env={**os.environ, "PIP_USER": "0"},
                check=False,
            )
        return result.returncode == 0

    def log_tail(self) -> str:
        """Return the end of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL:])


def decide(stamp: Stamp | None, *, python: str, project: str, extras: frozenset[str]) -> Action:
    """Return what an environment needs before a command can start in it.

    Parameters
    ----------
    python
        The interpreter it must have; nothing when its own is broken.
    project
        Hash of what is to be installed.
    """
    if stamp is None or not stamp.project or stamp.python != python:
        return "rebuild"
    if stamp.project != project or not extras <= set(stamp.extras):
        return "install"
    return "start"


def methods(host: Host, folder: Path) -> list[Method]:
    """Return the ways to make an environment with pip, in the order in which to try them."""
    base = [host.python, "-I"]
    share = ["--system-site-packages"] if host.shared else []
    python, tool = str(folder / "bin" / "python"), str(folder / "virtualenv-tool")
    pip = [*base, "-m", "pip"]
    bare: Command = [*base, "-m", "venv", "--without-pip", *share, str(folder)]
    return [
        Method("venv", ([*base, "-m", "venv", *share, str(folder)],)),
        Method("venv and the system's pip", (bare, [*pip, "--python", python, "install", "pip"])),
        Method(
            "virtualenv",
            (
                [*pip, "install", "--target", tool, "virtualenv"],
                [*base, "-c", VIRTUALENV, tool, *share, str(folder)],
            ),
        ),
    ]


def create(environment: Environment, ways: Sequence[Method], run: Run) -> Method:
    """Make an environment in the first way that works, and return that way.

    Raises
    ------
    SetUpError
        When none works.
    """
    works: Command = [str(environment.python), "-I", "-m", "pip", "--version"]
    for way in ways:
        environment.clear()
        if all(run(command) for command in (*way.commands, works)):
            return way
    raise SetUpError(
        "no environment could be made: this Python has neither venv with pip nor pip itself.\n"
        f"Install it once: sudo apt install python3.{sys.version_info.minor}-venv\n"
        f"(log: {environment.log})"
    )


def install_command(environment: Environment, extras: frozenset[str], *options: str) -> Command:
    """Return the pip command that installs the project, editable, with some of its extras."""
    project = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    pip = [str(environment.python), "-I", "-m", "pip", "install", "--disable-pip-version-check"]
    return [*pip, *options, "--editable", project]


def project_hash() -> str:
    """Return a hash of what decides an installation: where the project lies and what it needs."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "setup.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def base_python() -> str:
    """Return the interpreter behind this one, where this one is of an environment itself."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix, "bin", name)
    return str(base) if sys.prefix != sys.base_prefix and base.exists() else sys.executable


def probe(python: str) -> Host:
    """Ask an interpreter what it can import."""
    command = [python, "-I", "-c", PROBE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SetUpError(f"{python} does not work:\n{result.stderr}")
    return Host(python, **json.loads(result.stdout.splitlines()[-1]))


def say(message: str) -> None:
    """Print a line of progress; stdout belongs to the command that is started."""
    print(f"tinysaver: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one set-up at a time change a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up of {folder} is running; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ensure(environment: Environment, extras: frozenset[str]) -> None:
    """Make the environment hold the project with these extras; does nothing when it does.

    Raises
    ------
    SetUpError
        When that fails; the next call starts afresh.
    """
    if needed(environment, extras) == "start":
        return
    make_folder(environment.folder)
    with locked(environment.folder):
        claim(environment)
        action = needed(environment, extras)
        if action == "rebuild":
            build(environment, extras)
        elif action == "install":
            extend(environment, extras)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises
    ------
    SetUpError
        When that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetUpError(
            f"{folder}: {error.strerror}.\n"
            "Name a folder that you can write to: TINYSAVER_VENV=/path/to/folder"
        ) from None


def needed(environment: Environment, extras: frozenset[str]) -> Action:
    """Return what the environment needs now; another Python only counts where one was asked for."""
    python = environment.interpreter()
    if python and os.environ.get("PYTHON"):
        python = os.path.realpath(base_python())
    return decide(environment.stamp(), python=python, project=project_hash(), extras=extras)


def claim(environment: Environment) -> None:
    """Take a folder that is empty, or that an earlier set-up made.

    Raises
    ------
    SetUpError
        When the folder is someone else's: a rebuild would delete what is in it.
    """
    if environment.stamp() is None:
        if any(environment.folder.iterdir()):
            raise SetUpError(
                f"{environment.folder} is not empty and was not made by these scripts.\n"
                "Remove it, or name another folder: TINYSAVER_VENV=/path/to/folder"
            )
        environment.write_stamp(Stamp())


def build(environment: Environment, extras: frozenset[str]) -> None:
    """Make the environment from nothing."""
    host = probe(base_python())
    environment.write_stamp(Stamp())
    environment.log.write_bytes(b"")
    say(f"setting up {environment.folder} with Python {sys.version.split()[0]} (first use only)")
    way = create(environment, methods(host, environment.folder), environment.run)
    say(f"  environment made by {way.name}" + (", seeing the system's packages" * host.shared))
    # The system's own cv2 (JetPack's has GStreamer) must not be shadowed by the registry's.
    wanted = extras if host.cv2 else extras | {"opencv"}
    install(environment, wanted, *numpy_constraint(environment, host))
    environment.write_stamp(Stamp(environment.interpreter(), project_hash(), tuple(sorted(wanted))))


def numpy_constraint(environment: Environment, host: Host) -> list[str]:
    """Return pip options that keep NumPy 1 where the system's cv2 or tensorrt is built for it."""
    if not (host.shared and host.numpy_1):
        return []
    path = environment.folder / "constraints.txt"
    path.write_text("numpy<2\n", encoding="utf-8")
    return ["--constraint", str(path)]


def extend(environment: Environment, extras: frozenset[str]) -> None:
    """Install further extras, or the project's changed needs, into a sound environment."""
    before = environment.stamp() or Stamp()
    wanted = extras | set(before.extras)
    constraints = environment.folder / "constraints.txt"
    environment.write_stamp(Stamp())
    environment.log.write_bytes(b"")
    try:
        install(environment, wanted, *(["--constraint", str(constraints)] * constraints.exists()))
    except SetUpError:
        # Typically no network: what was there before still works, so it is kept.
        if environment.run([str(environment.python), "-I", "-c", SELF_CHECK]):
            environment.write_stamp(before)
        raise
    environment.write_stamp(Stamp(before.python, project_hash(), tuple(sorted(wanted))))


def install(environment: Environment, extras: frozenset[str], *options: str) -> None:
    """Install the project and see that it can be imported."""
    names = f" with {', '.join(sorted(extras))}" if extras else ""
    say(f"  installing tinysaver-runtime{names} (log: {environment.log})")
    commands = (
        install_command(environment, extras, *options),
        [str(environment.python), "-I", "-c", SELF_CHECK],
    )
    if not all(environment.run(command) for command in commands):
        raise SetUpError(
            f"installing failed. The end of {environment.log}:\n\n{environment.log_tail()}\n\n"
            "Run the same command again; if a package has no build for this Python, name another: "
            "PYTHON=python3.11"
        )


def main(extras: Sequence[str]) -> int:
    """Make the environment hold these extras and print its Python."""
    environment = Environment(Path(os.environ.get("TINYSAVER_VENV") or ROOT / ".venv").absolute())
    try:
        ensure(environment, frozenset(extras))
    except (SetUpError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next call sets up afresh")
        return 130
    print(environment.python)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
