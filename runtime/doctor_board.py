"""The processor, and on a Jetson its JetPack release and power mode."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runtime.doctor_checks import Examination, Finding

# The major release of Jetson Linux, and the JetPack that has it.
_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
OLDEST_JETPACK_LINUX = 36

# Flags of /proc/cpuinfo that decide how fast a model runs, and what they are called.
_X86_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
}
_ARM_FLAGS = {"asimd": "NEON", "asimdhp": "FP16", "asimddp": "dot product", "i8mm": "I8MM"}
_INT8_FLAGS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}


def check_cpu(examination: Examination) -> Finding:
    """Tell the processor, and whether it multiplies INT8 fast."""
    text = examination.system.text("proc/cpuinfo") or ""
    names = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    model = examination.system.text("proc/device-tree/model") or "unknown processor"
    name = names.group(1).strip() if names else model.rstrip("\0\n ")
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    have = set(flags.group(1).split()) if flags else set()
    known = {**_X86_FLAGS, **_ARM_FLAGS}
    shown = [title for flag, title in known.items() if flag in have]
    fast = bool(have & _INT8_FLAGS)
    facts = {
        "name": name,
        "cpus": len(re.findall(r"^processor\s*:", text, re.M)),
        "flags": sorted(have & set(known)),
        "fast_int8": fast,
    }
    found = f"{name}, {facts['cpus']} CPUs"
    if shown:
        found += f": {', '.join(shown)}"
    # Nothing is wrong with such a processor; it only decides which form of a model is the fastest.
    if not fast:
        found += "; no fast INT8 (VNNI), so fp32 may be the fastest form on the CPU"
    return Finding("cpu", "ok", found, facts=facts)


def check_jetpack(examination: Examination) -> Iterator[Finding]:
    """Tell the release of JetPack and of Jetson Linux, on a Jetson."""
    if not examination.is_jetson:
        return
    text = examination.system.text("etc/nv_tegra_release") or ""
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    exact = examination.packages.get("nvidia-jetpack", "").partition("+")[0]
    if release is None:
        yield Finding(
            "jetpack",
            "ok" if exact else "absent",
            exact or "release unknown: /etc/nv_tegra_release is not there, as in some containers",
        )
        return
    major, linux = int(release.group(1)), f"{release.group(1)}.{release.group(2)}"
    jetpack = exact or _JETPACKS.get(major, "of an unknown release")
    found = f"JetPack {jetpack}, Jetson Linux {linux}"
    facts = {"jetpack": exact or _JETPACKS.get(major), "linux": linux}
    if major < OLDEST_JETPACK_LINUX:
        yield Finding(
            "jetpack",
            "problem",
            found,
            cause="JetPack 6 is the oldest that works: older ones have Python 3.8 or less",
            fix="Flash JetPack 6 or newer with NVIDIA SDK Manager",
            facts=facts,
        )
        return
    yield Finding("jetpack", "ok", found, facts=facts)


def check_power(examination: Examination) -> Iterator[Finding]:
    """Tell the power mode and whether clocks are held at their maximum, on a Jetson."""
    if not examination.is_jetson:
        return
    mode, best = power_mode(examination), _best_mode(examination)
    held = clocks_held(examination)
    facts = {"mode": mode, "clocks_held": held}
    clocks = {
        True: "clocks held at their maximum",
        False: "clocks rise under load (for steady timings: sudo jetson_clocks)",
        None: "clocks unknown",
    }
    found = f"mode {mode or 'unknown'}, {clocks[held]}"
    if mode and best and "MAXN" not in mode.upper():
        cause = f"mode {best[1]} is faster, and takes more power"
        yield Finding("power", "warning", found, cause, f"sudo nvpmodel -m {best[0]}", facts)
    else:
        yield Finding("power", "ok", found, facts=facts)


def power_mode(examination: Examination) -> str | None:
    """Return the name of the power mode, from nvpmodel or from the file where it keeps it."""
    text = examination.system.run("nvpmodel", "-q") or ""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    if found:
        return found.group(1)
    kept = re.search(r"pmode:0*(\d+)", examination.system.text("var/lib/nvpmodel/status") or "")
    return dict(_modes(examination)).get(int(kept.group(1))) if kept else None


def clocks_held(examination: Examination) -> bool | None:
    """Return whether the GPU's lowest clock is its highest, as jetson_clocks sets it."""
    for folder in examination.system.find("sys/class/devfreq/*"):
        if not re.search(r"gpu|gv11b|ga10b|gpc", folder.name):
            continue
        lowest, highest = (
            examination.system.text(folder / f"{end}_freq") for end in ("min", "max")
        )
        if lowest and highest:
            return lowest.strip() == highest.strip()
    return None


def _best_mode(examination: Examination) -> tuple[int, str] | None:
    """Return number and name of the mode without a power limit, if there is one."""
    modes = [item for item in _modes(examination) if "MAXN" in item[1].upper()]
    return modes[-1] if modes else None


def _modes(examination: Examination) -> list[tuple[int, str]]:
    text = examination.system.text("etc/nvpmodel.conf") or ""
    found = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text, re.M)
    return [(int(number), name) for number, name in found]
