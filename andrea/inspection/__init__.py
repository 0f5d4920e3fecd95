"""Looking inside a trained ANDREA: the lesson's five geometries, measured on a checkpoint.

``embedding``, ``attention``, ``terrain``, ``curvature``, ``early`` and ``simplex`` hold the numbers; ``lesson`` has the
lesson's worked examples, computed with the same functions. ``measure`` runs them all, and ``report`` makes a page of
it. Nothing here changes the model that it is handed.
"""
