"""`python -m meshguard` is the command line."""

import sys

from meshguard.cli.main import main

sys.exit(main())
