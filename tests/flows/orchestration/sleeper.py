"""A job that computes nothing for a while."""

import sys
import time

if __name__ == "__main__":
    print("asleep", flush=True)
    time.sleep(float(sys.argv[1]))
