"""python -m kexecemu"""

import sys

from kexecemu.cli import main

sys.exit(main())
