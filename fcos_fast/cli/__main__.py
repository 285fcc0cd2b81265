"""``python -m fcos_fast.cli`` runs ``fcos-fast``."""

import sys

from fcos_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
