"""`python -m gptclf`: the command line."""

import sys

from gptclf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
