"""Machines made of files in a folder: a Jetson, a PC with a GPU, broken ones.

The doctor looks at them with its own code alone: system files lie below ``root``, commands are
shell scripts, Python packages are folders, and the NVIDIA driver is a small C library.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from pathlib import Path

from runtime.doctor_checks import Examination
from runtime.doctor_system import LIBRARIES, Answer, System

ROOT = Path(__file__).resolve().parent.parent.parent
STANDARD = (sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"))

ORIN_CPU = "\n".join(
    f"processor\t: {number}\nFeatures\t: fp asimd evtstrm fphp asimdhp asimddp\n"
    for number in range(12)
)
DRIVER = """
#include <stddef.h>
#include <string.h>
int cuDriverGetVersion(int *v) { *v = %(version)d; return 0; }
int cuInit(unsigned f) { return %(status)d; }
int cuDeviceGetCount(int *n) { *n = %(gpus)d; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *t, int n, int d) { strncpy(t, "%(name)s", n); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? %(major)d : %(minor)d; return 0; }
int cuGetErrorName(int e, const char **t) { *t = "%(error)s"; return 0; }
"""
TENSORRT = """
__version__ = "{version}"
class Logger:
    ERROR = 1
    def __init__(self, severity): pass
class Runtime:
    def __init__(self, logger): {start}
"""


@functools.cache
def compiled(source: str) -> bytes:
    """Return a shared library made of C."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "library.so"
        command = ["g++", "-x", "c", "-shared", "-fPIC", "-o", str(file), "-"]
        subprocess.run(command, input=source, text=True, check=True)
        return file.read_bytes()


class FakeMachine:
    """A folder that plays a machine; nothing is on it until a method puts it there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.site, self.bin, self.lib = (folder / name for name in ("site", "bin", "lib"))
        for place in (self.root, self.site, self.bin, self.lib):
            place.mkdir()

    def file(self, path: str, text: str = "") -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def package(self, name: str, source: str = "__version__ = '1.2.3'") -> Path:
        """Put a Python package where the examined Python finds it."""
        folder = self.site.joinpath(*name.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(textwrap.dedent(source))
        return folder

    def distribution(self, name: str, version: str) -> None:
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def command(self, name: str, script: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def library(self, name: str, source: str) -> Path:
        """Compile a shared library where the loader finds it."""
        file = self.lib / name
        file.write_bytes(compiled(source))
        return file

    def driver(self, **changes: object) -> None:
        """Put an NVIDIA driver there; one GPU, and all is well, unless told otherwise."""
        facts = {"version": 12060, "status": 0, "gpus": 1, "error": "", "name": "NVIDIA RTX A2000"}
        self.library("libcuda.so.1", DRIVER % {**facts, "major": 8, "minor": 6, **changes})

    def tensorrt(
        self, version: str = "10.3.0", *, name: str = "tensorrt", start: str = "pass"
    ) -> None:
        self.package(name, TENSORRT.format(version=version, start=start))

    def jetson(self, model: str = "NVIDIA Jetson AGX Orin Developer Kit") -> None:
        """The system files of JetPack 6.2, without anything of Python."""
        self.file("proc/device-tree/model", model + "\0")
        self.file("proc/cpuinfo", ORIN_CPU)
        self.file(
            "etc/nv_tegra_release",
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        )
        self.file(
            "var/lib/dpkg/status",
            "Package: bash\nStatus: install ok installed\nPriority: required\nVersion: 5.1\n\n"
            "Package: nvidia-jetpack\nStatus: install ok installed\nSection: metapackages\n"
            "Version: 6.2+b77\nDescription: NVIDIA Jetpack\n all of it\n\n"
            "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
        )
        self.file(
            "etc/nvpmodel.conf",
            "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n\n"
            "< POWER_MODEL ID=2 NAME=30W >\n< PM_CONFIG DEFAULT=2 >\n",
        )
        self.gpu_clocks(lowest=306000000, highest=1300500000)

    def gpu_clocks(self, *, lowest: int, highest: int) -> None:
        self.file("sys/class/devfreq/15340000.vic/min_freq", "1\n")
        self.file("sys/class/devfreq/15340000.vic/max_freq", "1\n")
        self.file("sys/class/devfreq/17000000.gpu/min_freq", f"{lowest}\n")
        self.file("sys/class/devfreq/17000000.gpu/max_freq", f"{highest}\n")

    def system(self, **changes: object) -> System:
        """Return it as the doctor sees it."""
        fields = {
            "root": self.root,
            "python": sys.executable,
            "prefix": self.root / "usr",
            "base_prefix": self.root / "usr",
            "import_path": (str(self.site), *map(str, STANDARD), str(ROOT)),
            "environ": {"PATH": f"{self.bin}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(self.lib)},
        }
        return System(**{**fields, **changes})

    def examination(self, *libraries: str, bundle: object = None, **changes: object) -> Examination:
        """Ask only some libraries; the others count as missing."""
        system = self.system(**changes)
        missing = dict.fromkeys(LIBRARIES, Answer("missing"))
        return Examination(system, {**missing, **system.ask_all(libraries)}, bundle)
