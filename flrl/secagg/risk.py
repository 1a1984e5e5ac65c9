"""What may go wrong where each client has a few neighbours instead of all."""

import math
from dataclasses import dataclass

from scipy.stats import hypergeom


@dataclass(frozen=True, slots=True)
class Risk:
    """Upper bounds of what may go wrong in one round with a ring of neighbours in random order.

    Attributes:
        exposed: probability that the corrupt among some client's neighbours have enough shares of its secrets.
        parted: probability that the honest clients in the sum are in several parts, each of whose sums is known.
        aborted: probability that a client has too few neighbours left, and the round no sum.
    """

    exposed: float
    parted: float
    aborted: float


def risk(clients: int, degree: int, threshold: int, *, corrupt: float, lost: float) -> Risk:
    """What may go wrong, by the union over clients, as in the analysis of Bell et al., CCS 2020, section 3.

    A client's neighbours are a random set, so that the corrupt and the lost among them have hypergeometric counts. The
    ring is parted only where `degree / 2` neighbours in a row are corrupt or lost.

    Args:
        clients: of the round.
        degree: neighbours of each.
        threshold: shares that give a secret.
        corrupt: share of clients that tell the server all.
        lost: share of clients that drop out.
    """
    bad, gone = math.floor(corrupt * clients), math.floor(lost * clients)
    exposed = hypergeom.sf(threshold - 1, clients - 1, bad, degree)
    aborted = hypergeom.cdf(threshold - 1, clients - 1, clients - 1 - gone, degree)
    missing, run = min(bad + gone, clients), degree // 2
    row = math.prod(max(missing - i, 0) / (clients - i) for i in range(run))
    return Risk(*(min(1.0, clients * float(value)) for value in (exposed, row, aborted)))
