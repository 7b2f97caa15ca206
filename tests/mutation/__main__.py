# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m tests.mutation: faults put into kexecemu's Python; purgatory.py has those of the C."""

import sys

from tests.mutation.rooms import main

sys.exit(main())
