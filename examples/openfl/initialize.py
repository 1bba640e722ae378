"""What `fx plan initialize` did: writes the first model beside the job's file."""

from __future__ import annotations

from pathlib import Path

import network
from safetensors.numpy import save_file

if __name__ == "__main__":
    save_file(network.first_model(), Path(__file__).parent / "first.safetensors")
