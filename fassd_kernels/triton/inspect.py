"""The old place of ``python -m fassd.bench.inspect``; it goes with the next release."""

import runpy
import sys

if __name__ == "__main__":
    print("fassd_kernels.triton.inspect is fassd.bench.inspect now", file=sys.stderr)
    runpy.run_module("fassd.bench.inspect", run_name="__main__", alter_sys=True)
