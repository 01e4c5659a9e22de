"""One thread per test process: `pytest -n 2` on two cores is then faster, and results do not depend on the workers."""

import torch

torch.set_num_threads(1)
