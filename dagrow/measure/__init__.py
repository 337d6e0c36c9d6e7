"""What the network says about itself on a fold of rows: activations, gradients, curvature, and the bottleneck."""

from dagrow.measure.carrying import propagate
from dagrow.measure.evidence import Evidence, measure
from dagrow.measure.features import features
from dagrow.measure.gathering import Gathering
from dagrow.measure.layout import flat
from dagrow.measure.passes import Pass
from dagrow.measure.proposals import Block, Proposal
from dagrow.measure.recasts import Recast
from dagrow.measure.sites import Cut, Drop, Link, Site, Units
from dagrow.measure.swaps import Swap

__all__ = ["Block", "Cut", "Drop", "Evidence", "Gathering", "Link", "Pass", "Proposal", "Recast", "Site", "Swap", "Units", "features", "flat", "measure", "propagate"]
