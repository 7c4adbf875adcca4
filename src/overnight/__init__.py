"""Overnight reproduces GPT-2 (124M): raw text -> tokens -> a trained, evaluated model.

Importing the package does nothing and needs no torch; `overnight --help` lists what it can do.
"""

__version__ = "0.1.0"  # pyproject.toml has it from here, so that it is known without an installation too
