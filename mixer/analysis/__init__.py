"""Questions to a run or its journal: check, explain, advise, effects, simulate, watch, export, plots.

Imports everything below it; nothing but the command line and adapters imports it. Each module answers one question.
"""
