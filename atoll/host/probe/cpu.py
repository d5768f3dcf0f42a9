"""The processor, from /proc/cpuinfo."""

from typing import Literal

import msgspec

NOTABLE = tuple(
    "cx16 xsave avx avx2 avx512f amx_tile aes sha_ni vaes rdrand rdseed x2apic pcid invpcid pdpe1gb "
    "constant_tsc nonstop_tsc erms fsrm ept vpid npt avic x2avic sev sev_es sev_snp".split()
)
"""Flags worth showing or choosing by; the rest of some hundred tells an administrator nothing."""

_LEVELS = (
    frozenset("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3".split()),
    frozenset("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave".split()),
    frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split()),
)
"""What x86-64-v2, v3 and v4 add (x86-64 psABI, "micro-architecture levels"), in the kernel's names."""


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """`level` is the x86-64 psABI micro-architecture level, 0 elsewhere. `guest` says a hypervisor is above us.

    `nested` is whether KVM offers virtualization to its guests, None where that cannot be known.
    """

    model: str
    vendor: str = ""
    microcode: str = ""
    sockets: int
    cores: int
    threads: int
    level: int = 0
    virtualization: Literal["vmx", "svm", ""] = ""
    nested_paging: bool = False
    nested: bool | None = None
    guest: bool = False
    features: tuple[str, ...] = ()


def parse_cpuinfo(text: str) -> Cpu:
    """The contents of /proc/cpuinfo. What a kernel does not tell (topology on ARM) counts as one of each."""
    blocks = [_fields(block) for block in text.split("\n\n") if "processor" in block]
    first = blocks[0] if blocks else {}
    flags = frozenset((first.get("flags", first.get("Features", "")) + " " + first.get("vmx flags", "")).split())
    sockets = {block.get("physical id", "0") for block in blocks}
    cores = {(block.get("physical id", "0"), block.get("core id", block["processor"])) for block in blocks}
    return Cpu(
        model=" ".join(first.get("model name", first.get("uarch", "")).split()),
        vendor=first.get("vendor_id", first.get("CPU implementer", "")),
        microcode=first.get("microcode", ""),
        sockets=max(1, len(sockets)),
        cores=max(1, len(cores)),
        threads=max(1, len(blocks)),
        level=_level(flags),
        virtualization="vmx" if "vmx" in flags else "svm" if "svm" in flags else "",
        nested_paging=bool(flags & {"ept", "npt"}),
        guest="hypervisor" in flags,
        features=tuple(flag for flag in NOTABLE if flag in flags),
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _level(flags: frozenset[str]) -> int:
    if "lm" not in flags:
        return 0
    level = 1
    for added in _LEVELS:
        if not added <= flags:
            break
        level += 1
    return level
