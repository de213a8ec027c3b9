"""`python -m fassd` is `fassd`."""

from fassd.cli import main

if __name__ == "__main__":
    main()
