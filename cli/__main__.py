"""`python -m einsight.cli`: the command, where it is not installed."""

import sys

from einsight.cli import main

if __name__ == "__main__":
    sys.exit(main())
