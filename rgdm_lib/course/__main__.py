"""Entry point of ``python -m rgdm_lib.course``."""

import sys

from rgdm_lib.course.cli import main

sys.exit(main())
