"""What the allocator is asked for, seen from the memory that a process holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another C library")

_HOLES = """
import torch
from benchmarks.memory import resident_bytes
from compress_env.allocator import hand_back_freed_memory
blocks = [torch.ones(16_000) for _ in range(4_000)]
kept = blocks[::2]
del blocks
before = resident_bytes()
hand_back_freed_memory()
print(before - resident_bytes())
"""

_FAULTS = """
import ctypes, resource, sys
from compress_env.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size, rounds = 100_000, 20
def use():
    blocks = [c.malloc(size) for _ in range(200)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[::-1]:
        c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(rounds):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _output(code: str, *arguments: str) -> int:
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout.splitlines()[-1])


def test_holes_between_arrays_go_back_to_the_system() -> None:
    # Every second of 4,000 arrays of 64 kB was freed.
    assert _output(_HOLES) > 100e6


def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    asked = _output(_FAULTS, "keep")

    assert asked < _output(_FAULTS, "leave") / 10
