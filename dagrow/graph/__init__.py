"""Architectures as values, their axes derived by tracing, and the one primitive that resizes them."""

from dagrow.graph.architecture import Architecture
from dagrow.graph.axes import Axis
from dagrow.graph.node import Node
from dagrow.graph.pricing import Cost, resized_cost
from dagrow.graph.resizing import resize
from dagrow.graph.rewriting import Move, Refusal, Rewrite, preserving, transfer

__all__ = ["Architecture", "Axis", "Cost", "Move", "Node", "Refusal", "Rewrite", "preserving", "resize", "resized_cost", "transfer"]
