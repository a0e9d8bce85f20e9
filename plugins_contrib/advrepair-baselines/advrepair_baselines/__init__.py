"""Six other ways to repair a network, as methods of advrepair: written from the mathematics."""

from advrepair import Component, hookimpl
from advrepair_baselines.aprnn import Aprnn
from advrepair_baselines.art import Art
from advrepair_baselines.care import Care
from advrepair_baselines.prdnn import Prdnn
from advrepair_baselines.reassure import Reassure
from advrepair_baselines.trades import Trades


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The methods."""
    return (Aprnn, Art, Care, Prdnn, Reassure, Trades)
