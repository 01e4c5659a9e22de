"""One thread per test process: `pytest -n 2` on two cores is then faster, and results do not depend on the workers."""

import torch
from hypothesis import settings

torch.set_num_threads(1)

# Time is never asserted, and a run on another day tries the same cases.
settings.register_profile("rasterformer", deadline=None, derandomize=True)
settings.load_profile("rasterformer")
