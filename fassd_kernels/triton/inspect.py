"""The former location of ``python -m fassd.bench.inspect``, until the next release."""

import runpy
import sys

if __name__ == "__main__":
    print("fassd_kernels.triton.inspect is fassd.bench.inspect now", file=sys.stderr)
    runpy.run_module("fassd.bench.inspect", run_name="__main__", alter_sys=True)
