"""`python -m pellucid.cli`: the same as the `pellucid` command."""

import sys

from pellucid.cli.main import main

sys.exit(main())
