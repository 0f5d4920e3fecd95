"""Looking inside a trained ANDREA: the lesson's five geometries, measured on a checkpoint.

``embedding``, ``attention``, ``terrain``, ``curvature``, ``early`` and ``simplex`` hold the numbers; ``lesson`` computes
the lesson's worked examples with the same functions. Nothing here trains the model that it is handed.
"""
