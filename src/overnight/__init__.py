"""Overnight reproduces GPT-2 (124M): raw text -> tokens -> a trained, evaluated model.

Importing the package does nothing and needs no torch; `overnight --help` lists what it can do.
"""

import sys

__version__ = "0.1.0"  # pyproject.toml has it from here, so that it is known without an installation too

if sys.argv[:1] == ["-m"]:  # `python -m overnight...` is about to run, and nothing else is imported yet
    from overnight.search_path import leave_out_current_folder

    leave_out_current_folder()
