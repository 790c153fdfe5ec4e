"""Who exists: devices, data sizes, availability and disjoint parts of N virtual clients, nothing stored per client.

Every attribute is a pure function of (seed, client id); one participation of (seed, cluster, task id) too. Reads
neither files (but for one bundled table) nor clocks; imports neither torch nor ray.
"""

from atoll.population.availability import NEVER, Always, Availability, Diurnal, Intervals
from atoll.population.devices import Devices, Draw, Outcome
from atoll.population.identity import identity
from atoll.population.laws import Constant, Exponential, HalfNormal, Law, LogNormal, PapayaHistogram, Table
from atoll.population.members import Everyone, ListedMembers, Members, RandomMembers, SizedMembers
from atoll.population.population import Participation, Population
from atoll.population.sizes import ClientSizes, DrawnSizes, FunctionSizes, Sizes

__all__ = [
    "NEVER",
    "Always",
    "Availability",
    "ClientSizes",
    "Constant",
    "Devices",
    "Diurnal",
    "Draw",
    "DrawnSizes",
    "Everyone",
    "Exponential",
    "FunctionSizes",
    "HalfNormal",
    "Intervals",
    "Law",
    "ListedMembers",
    "LogNormal",
    "Members",
    "Outcome",
    "PapayaHistogram",
    "Participation",
    "Population",
    "RandomMembers",
    "SizedMembers",
    "Sizes",
    "Table",
    "identity",
]
