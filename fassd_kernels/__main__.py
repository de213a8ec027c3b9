"""``python -m fassd_kernels``: what is installed, and which backends can run here."""

import argparse
import sys

from fassd_kernels import backends, ops


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fassd_kernels", description=__doc__)
    parser.add_argument(
        "--library",
        action="store_true",
        help="print the path of the library with the operators, for programs without Python",
    )
    if not parser.parse_args().library:
        print(backends())
        return 0
    if ops.CPU_MISSING is not None:
        print(f"the operators were not built: {ops.CPU_MISSING}", file=sys.stderr)
        return 1
    print(sys.modules["fassd_kernels._C"].__file__)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
