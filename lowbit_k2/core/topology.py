"""Topologies: how many frames a unit (a phone, a piece) lasts, and which classes of the network it takes.

ctc    a unit is its class once or more; between units, and around them, any number of blanks, which must be there
       between equal units. Class 0 is the blank, class u the unit u.
chain  a unit is its entry class once and then its loop class any number of times (Kaldi's chain topology). Unit u
       has the classes 2u and 2u + 1; unit 0 is silence, which may stand at both ends and between words.
"""

from __future__ import annotations

CTC, CHAIN = "ctc", "chain"
TOPOLOGIES = (CTC, CHAIN)
SILENCE = 0  # unit of the chain topology; in ctc the blank is what is not spoken


def num_classes(topology: str, num_units: int) -> int:
    """Outputs of the network, for units 0 (blank or silence) to num_units - 1."""
    return num_units if topology == CTC else 2 * num_units


def entry_class(topology: str, unit: int) -> int:
    """The class that a unit begins with."""
    return unit if topology == CTC else 2 * unit


def unspoken_classes(topology: str) -> tuple[int, ...]:
    """Those of the blank, or of silence."""
    return tuple(range(num_classes(topology, 1)))
