"""Overnight reproduces GPT-2 (124M): raw text -> tokens -> a trained, evaluated model.

Importing the package does nothing and needs no torch; `overnight --help` lists what it can do.
"""

from importlib.metadata import version

__version__ = version("overnight")
