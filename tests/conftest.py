"""Before anything imports Triton: where there is no GPU, its interpreter runs the kernels."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
