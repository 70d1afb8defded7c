"""`python -m jaxrl.cli` is the `jaxrl` command."""

import sys

from jaxrl.cli import main

sys.exit(main())
