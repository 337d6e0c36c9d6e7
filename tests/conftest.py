"""For all tests: one thread per process, and hypothesis draws the same examples every time."""

from __future__ import annotations

import os
import signal

# Before torch is first imported, and for the processes that tests start: more threads change the bits and, on few cores, cost time.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
# pytest --hypothesis-profile=thorough: other examples each time, and more of them.
settings.register_profile("thorough", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")

# A test run in the background of a script, or under nohup, is started with signals ignored, and dagrow leaves them so, as it
# should. Tests that send them need them as a terminal gives them; what the tests start inherits that.
for _name, _usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _usual)
