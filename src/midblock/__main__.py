"""`python -m midblock`, and so `torchrun -m midblock` and `accelerate launch -m midblock`."""

import sys

from midblock.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
