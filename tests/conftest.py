"""One thread for every test and every process it starts: small tensors gain nothing from more, and busy machines lose much."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
