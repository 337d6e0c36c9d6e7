"""Normalisation."""

from __future__ import annotations

from torch import nn

from dagrow.importing.errors import Unfit
from dagrow.importing.mapping import Ask, function, layer


@layer(nn.BatchNorm1d, nn.BatchNorm2d)
def batch_norm(ask: Ask):
    m = ask.module
    if not m.track_running_stats:
        raise Unfit("a batch norm that keeps no statistics mixes the rows of a batch")
    attrs = {"eps": m.eps, "momentum": m.momentum, "affine": m.affine}
    return ask.node("batchnorm", [ask.map], attrs, ask.tensors("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


@layer(nn.LayerNorm)
def layer_norm(ask: Ask):
    m, x = ask.module, ask.x
    dims = len(m.normalized_shape)
    if x.batch > len(x.shape) - dims:
        raise Unfit("over the batch")
    attrs = {"dims": dims, "eps": m.eps, "affine": m.elementwise_affine, "bias": m.bias is not None or not m.elementwise_affine}
    return ask.node("layernorm", [x], attrs, ask.tensors("weight", "bias"))


@function("layer_norm")
def layer_norm_function(ask: Ask):
    given, x = ask.bound("normalized_shape", weight=None, bias=None, eps=1e-5), ask.x
    if given["weight"] is None and given["bias"] is not None:
        raise Unfit("a layer norm with a bias alone")
    tensors = {k: ask.leaf(given[k]) for k in ("weight", "bias") if given[k] is not None}
    attrs = {"dims": len(given["normalized_shape"]), "eps": given["eps"], "affine": bool(tensors), "bias": "bias" in tensors or not tensors}
    return ask.node("layernorm", [x], attrs, tensors)


@layer(nn.GroupNorm)
def group_norm(ask: Ask):
    m = ask.module
    return ask.node("groupnorm", [ask.map], {"groups": m.num_groups, "eps": m.eps, "affine": m.affine}, ask.tensors("weight", "bias"))


@layer(nn.InstanceNorm1d, nn.InstanceNorm2d)
def instance_norm(ask: Ask):
    m = ask.module
    if m.track_running_stats:
        raise Unfit("an instance norm with running statistics")
    return ask.node("instancenorm", [ask.map], {"eps": m.eps, "affine": m.affine}, ask.tensors("weight", "bias"))
