"""`python -m rlpost` is the command `rlpost`, for where its script is not on the path."""

import sys

from rlpost.command.main import main

sys.exit(main(sys.argv[1:]))
