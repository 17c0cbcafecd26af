"""One thread for every test and every process it starts: small tensors gain nothing from more, and busy machines lose much. A cache of their own."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["OUTSKIRTS_CACHE"] = tempfile.mkdtemp()  # no test writes into the user's

import torch

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["OUTSKIRTS_CACHE"], ignore_errors=True)
