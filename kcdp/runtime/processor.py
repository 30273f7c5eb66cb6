"""What this processor has, of what makes small networks fast: told by the system, no package is needed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

#: What counts -> the words for it in /proc/cpuinfo, any of which will do. First x86, then ARM.
_WORDS: dict[str, tuple[str, ...]] = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AVX-512 bf16": ("avx512_bf16",),
    "AMX bf16": ("amx_bf16",),
    "AMX int8": ("amx_int8",),
    "NEON": ("asimd", "neon"),
    "dot product": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "SVE": ("sve",),
}
#: Of these, the ones that multiply in bfloat16.
_BFLOAT16 = frozenset({"AVX-512 bf16", "AMX bf16", "bf16"})
CPUINFO = Path("/proc/cpuinfo")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """As the system spells it: "Intel(R) Xeon(R) Processor", "aarch64"."""
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def features(cpuinfo: Path = CPUINFO) -> tuple[str, ...] | None:
    """Those of the known features that this processor has; None where the system does not tell (it is not Linux)."""
    words: set[str] = set()
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            words |= set(value.split())
    return tuple(name for name, any_of in _WORDS.items() if words & set(any_of)) if words else None


def multiplies_bfloat16(cpuinfo: Path = CPUINFO) -> bool | None:
    """Whether it has instructions for products in bfloat16; None where the system does not tell."""
    found = features(cpuinfo)
    return None if found is None else bool(_BFLOAT16 & set(found))


def _lines(cpuinfo: Path) -> list[str]:
    try:
        return cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
