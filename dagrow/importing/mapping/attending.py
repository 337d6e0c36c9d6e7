"""Attention: torch's function of queries, keys and values, and its module."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from dagrow.importing.errors import Unfit
from dagrow.importing.expressions import value_of
from dagrow.importing.mapping import Ask, function, layer
from dagrow.importing.values import Held, Leaf, Tree


@function("scaled_dot_product_attention")
def attention(ask: Ask):
    """As it is, with the scale written out, so that it stays when the width of the heads changes; in its parts where it drops out."""
    given = ask.bound("key", "value", attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False)
    q, k, v = ask.first, given["key"], given["value"]
    if given["enable_gqa"] or not all(isinstance(x, Held) for x in (q, k, v)):
        raise Unfit("queries in groups")
    scale = float(given["scale"] or 1 / math.sqrt(q.values[0].shape[-1]))
    dropped = ask.lowering.dropping(float(given["dropout_p"]))
    if not dropped:
        form = Tree("scaled_dot_product_attention", (q, k, v, given["attn_mask"], 0.0, given["is_causal"]), (("scale", scale),))
        return ask.lowering.placed(ask.result, ask.lowering.renamed(form), "attention")
    return in_parts(ask, q, k, v, scale, dropped, given["attn_mask"], bool(given["is_causal"]), ask.result)


def in_parts(ask: Ask, q: Held, k: Held, v: Held, scale: float, dropped: float, mask: object, causal: bool, result: Held) -> Held:
    """softmax(q kᵀ · scale + mask), dropout, times v, of [batch, heads, tokens, width] each."""
    scores: Tree = Tree("matmul", (Tree("mul", (q, scale)), Tree("transpose", (k, -2, -1))))
    if causal:
        later = torch.full((q.values[0].shape[-2], k.values[0].shape[-2]), float("-inf")).triu(1)
        mask = Leaf(None, later.to(q.values[0].dtype))
    if mask is not None:
        kind = mask.values[0].dtype if isinstance(mask, Held) else getattr(mask, "tensor", mask).dtype
        if kind == torch.bool:
            raise Unfit("a mask of truth values")
        scores = Tree("add", (scores, mask))
    form = ask.lowering.renamed(Tree("softmax", (scores, -1)))
    weights = ask.lowering.placed(Held((value_of(form, 0), value_of(form, 1))), form, "weights")
    weights = ask.lowering.solid(weights)
    weights = ask.node("dropout", [weights], {"p": dropped}, expected=weights, hint="dropout")
    return ask.node("matmul", [weights, ask.solid(v)], expected=result, batch=0, hint="seen", near=True)


@layer(nn.MultiheadAttention)
def heads(ask: Ask):
    """One linear map to queries, keys and values where all three are of one tensor; attention; a linear map back. Rounded otherwise."""
    m = ask.module
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    given = {**dict.fromkeys(names), **dict(zip(names, ask.args, strict=False)), **ask.kwargs}
    x, mask = ask.solid(given["query"]), given["attn_mask"]
    if x.batch != (0 if m.batch_first else 1):
        raise Unfit("its tokens are not those of one row")
    same = all(isinstance(given[n], Held) and ask.solid(given[n]).node == x.node for n in ("key", "value"))
    if not same or not m._qkv_same_embed_dim or m.bias_k is not None or m.add_zero_attn or given["key_padding_mask"] is not None:
        raise Unfit("attention between different tensors, or with padding")
    bias = {} if m.in_proj_bias is None else {"bias": ask.leaf(m.in_proj_bias)}
    packed = Held(tuple(F.linear(v, m.in_proj_weight.detach(), None if m.in_proj_bias is None else m.in_proj_bias.detach()) for v in x.values))
    attrs = {"width": 3 * m.embed_dim, "bias": bool(bias)}
    packed = ask.node("token_linear", [x], attrs, {"weight": ask.leaf(m.in_proj_weight), **bias}, expected=packed, hint="in_proj", near=True)
    packed = Held(tuple(packed.first(k) for k in (0, 1)), packed.node)
    parts = [Held(tuple(v.chunk(3, -1)[k] for v in packed.values)) for k in range(3)]
    q, k, v = (ask.node("part", [packed], {"of": 3, "index": n, "dim": -1}, expected=p, hint="qkv"[n]) for n, p in enumerate(parts))
    wide = [tuple(t.unflatten(2, (m.num_heads, -1)).transpose(1, 2) for t in h.values) for h in (q, k, v)]
    shown = _mask(mask)
    seen = [F.scaled_dot_product_attention(*(w[run] for w in wide), attn_mask=shown) for run in (0, 1)]
    expected = Held(tuple(s.transpose(1, 2).flatten(2) for s in seen))
    if m.dropout or (shown is not None and not _causal(shown)):
        split = [_headed(ask, h, m.num_heads) for h in (q, k, v)]
        scale = 1 / math.sqrt(m.head_dim)
        if m.dropout:
            out = in_parts(ask, *split, scale, m.dropout, None if shown is None else Leaf(None, shown), False, Held(tuple(seen)))
        else:
            form = Tree("scaled_dot_product_attention", (*split, Leaf(None, shown), 0.0, False), (("scale", scale),))
            out = ask.lowering.placed(Held(tuple(seen)), ask.lowering.renamed(form), "attention")
        turned = Held(tuple(s.transpose(1, 2) for s in seen))
        out = ask.node("permute", [out], {"order": (0, 2, 1, 3)}, expected=turned, hint="joined", near=True)
        out = ask.node("reshape", [out], {"shape": (*turned.shape[:1], m.embed_dim)}, expected=expected, hint="joined", near=True)
    else:
        attrs = {"heads": m.num_heads, "causal": shown is not None}
        out = ask.node("attention", [q, k, v], attrs, expected=expected, batch=0, hint="attention", near=True)
    out = Held(tuple(t.movedim(0, x.batch) for t in out.values), out.node, x.batch)
    result = ask.result[0] if isinstance(ask.result, (tuple, list)) else ask.result
    bias = {} if m.out_proj.bias is None else {"bias": ask.leaf(m.out_proj.bias)}
    ask.lowering.build.path += ".out_proj" if ask.lowering.build.path else "out_proj"
    made = ask.node("token_linear", [out], {"width": m.embed_dim, "bias": bool(bias)}, {"weight": ask.leaf(m.out_proj.weight), **bias},
                    expected=result, batch=x.batch, near=True)  # fmt: skip
    return [made, *ask.result[1:]] if isinstance(ask.result, (tuple, list)) else made


def _headed(ask: Ask, held: Held, count: int) -> Held:
    """[tokens, heads · width] as [heads, tokens, width]."""
    wide = Held(tuple(v.unflatten(2, (count, -1)) for v in held.values))
    made = ask.node("reshape", [held], {"shape": wide.shape}, expected=wide, batch=0, hint="heads")
    turned = Held(tuple(v.transpose(1, 2) for v in wide.values))
    return ask.node("permute", [made], {"order": (0, 2, 1, 3)}, expected=turned, batch=0, hint="heads")


def _mask(value: object) -> torch.Tensor | None:
    """A mask of the user's as what is added to the scores."""
    if value is None:
        return None
    found = value.form.tensor if isinstance(value, Held) and isinstance(value.form, Leaf) else value
    if not isinstance(found, torch.Tensor) or found.dim() != 2:
        raise Unfit("a mask that is computed")
    return torch.zeros(found.shape).masked_fill(found, float("-inf")) if found.dtype == torch.bool else found.detach()


def _causal(mask: torch.Tensor) -> bool:
    """Whether a token sees those up to its own place and no others."""
    return mask.shape[0] == mask.shape[1] and torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1))
