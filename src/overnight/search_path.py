"""Modules are never imported from the current folder: it may be shared, or a stranger's, and hold a torch.py.

`python -m` and `python -c` put it first on the search path; so do the ranks, the workers of `prepare` and the
compilers of torch, which are started that way.
"""

import os
import sys


def leave_out_current_folder() -> None:
    """Take the current folder off the search path of this process, and keep it off those that it starts."""
    os.environ["PYTHONSAFEPATH"] = "1"
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
