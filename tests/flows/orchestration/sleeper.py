"""A job that computes nothing for a while."""

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    print("asleep", flush=True)
    time.sleep(float(sys.argv[1]))
    while not all(Path(file).exists() for file in sys.argv[2:]):
        time.sleep(0.05)
