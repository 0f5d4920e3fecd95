"""Where a mixture may be: the simplex cut by floors and caps, and the regions of a run's regimes.

Imports only arrays and errors. Start with ``region.Region``; ``uniform`` draws from it, ``regimes`` plans several.
"""

from mixer.region.region import Region

__all__ = ["Region"]
