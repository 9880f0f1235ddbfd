"""What a process has held is told."""

import subprocess
import sys

CODE = """
from minillm_ray.common.process import peak_resident
before = peak_resident()
held = bytearray(b"x" * (100 << 20))
del held
print(before, peak_resident())
"""


def test_memory_that_was_given_back_still_counts_as_held():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before > 90 << 20
