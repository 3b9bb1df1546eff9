"""Programs beside training: benchmark, data doctor, dry run, export, plots, the tour."""

import os
from importlib.util import find_spec

# A notebook passes its backend on to `!python ...`, where the package may be missing. matplotlib
# would stop at its import. Plots are files here, so they need no backend.
_name = os.environ.get("MPLBACKEND", "").removeprefix("module://")
if "." in _name and find_spec(_name.split(".")[0]) is None:
    del os.environ["MPLBACKEND"]
