"""How fast this host's time stamp counter counts, which is what a guest under TCG sees.

The frequency in /proc/cpuinfo is the core's present or nominal one, off by up to half a per cent: a guest that
is told so keeps a clock that is wrong by minutes a day. So it is measured.
"""

import ctypes
import mmap
import platform
import time

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl rdx, 32; or rax, rdx; ret"""
_SPAN = 0.05  # seconds: the error of two clock readings over it is below 20 parts in a million


def measure_khz() -> int:
    """0 where it cannot be known (another architecture, no executable memory). Blocks for 50 ms."""
    if platform.machine() != "x86_64":
        return 0
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0
    page.write(_RDTSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    began, first = time.monotonic_ns(), read()
    time.sleep(_SPAN)
    ended, last = time.monotonic_ns(), read()
    ticks: int = last - first
    return round(ticks * 1_000_000 / (ended - began))
