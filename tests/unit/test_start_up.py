"""Start-up by part: from the process's own start, each part once, closed at the first step."""

from __future__ import annotations

import json
import subprocess
import sys
import time

PROGRAM = """
import time, json
time.sleep(0.3)
from nemo_amft.observe import start_up
start_up.mark("import")
time.sleep(0.2)
start_up.mark("wait")
start_up.mark("import")
found = start_up.finish("first step")
time.sleep(0.2)
start_up.mark("late")
print(json.dumps([found, start_up.finish("again")]))
"""


def test_parts_add_up_to_the_time_since_the_process_began():
    started = time.time()
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    ended = time.time()
    parts, again = json.loads(found.stdout)
    assert list(parts) == ["import", "wait", "first step"]
    assert parts["import"] >= 0.3  # what ran before the module was imported counts
    assert parts["wait"] >= 0.2
    assert 0.5 <= sum(parts.values()) <= ended - started - 0.2 + 0.05  # clocks of the kernel tick in hundredths
    assert again == {}
