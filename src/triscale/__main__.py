"""`python -m triscale`, for torchrun and for environments without the script."""

import sys

from triscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
