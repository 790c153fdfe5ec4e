"""The normal law, by scipy, which is imported with the first draw.

Client pools and the tracker load this room and draw nothing: scipy.special is 10 MB and a tenth of a second of each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["ndtr", "ndtri"]

F64 = npt.NDArray[np.float64]


def ndtr(z: npt.ArrayLike) -> F64:
    """Share of the law below z; equal shape."""
    from scipy.special import ndtr as share

    found: F64 = share(z)
    return found


def ndtri(u: npt.ArrayLike) -> F64:
    """The z that a share u of the law is below; equal shape. −∞ and ∞ at 0 and 1."""
    from scipy.special import ndtri as quantile

    found: F64 = quantile(u)
    return found
