"""Questions to a run or its journal: check, explain, advise, effects, simulate, watch, export, plots.

Imports what is below it; the command line imports it, the demo takes ``plots``, the service ``palette``. Each module
answers one question: start with ``explain``.
"""
