"""``python -m fassd_kernels``: what is installed, and which backends can run here."""

from fassd_kernels import backends

if __name__ == "__main__":
    print(backends())
