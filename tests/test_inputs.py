"""Networks of several inputs and outputs: observed, scored, edited, trained; the first output is the one that is scored."""

from __future__ import annotations

import pytest
import torch
from seen_networks import LOSSES, close, weights_for
from torch import Tensor

from dagrow import export
from dagrow.applying import Applied, apply, refresh_norms
from dagrow.compiler import compile_architecture, deploy, parameters_by_name
from dagrow.data import Fold
from dagrow.edits import REGISTRY
from dagrow.errors import UsageError
from dagrow.graph import Architecture, Node
from dagrow.inputs import Inputs, by_name, scored
from dagrow.measure import measure
from dagrow.propose import Limits, propose
from dagrow.scores import REGISTRY as SCORERS
from dagrow.train import OPTIMIZERS, evaluate, outputs, train_epoch
from dagrow.train.session import Session

of = Node.of
ARCH = Architecture({
    "a": of("input", shape=(4,)), "b": of("input", shape=(2, 6, 6)), "h": of("linear", "a", width=5), "c": of("conv2d", "b", channels=3),
    "n": of("batchnorm", "c"), "ca": of("relu", "n"), "g": of("global_avg_pool", "ca"), "cat": of("concat", "h", "g"), "t": of("tanh", "cat"),
    "y": of("linear", "t", width=3), "z": of("linear", "h", width=2),
}, outputs=["y", "z"])
KINDS = [("widen", {}), ("deepen", {}), ("connect", {}), ("prune", {}), ("norm", {})]


def fold(rows: int, seed: int) -> Fold:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in ((4,), (2, 6, 6)))
    return Fold(Inputs(a, b), torch.randint(0, 3, (rows,), generator=generator))


def by_hand(arch: Architecture, weights: dict[str, Tensor], rows: Fold) -> Tensor:
    return compile_architecture(arch, weights).eval()(*rows.x.tensors)[0].detach()


def test_rows_of_several_inputs_are_cut_together():
    x = fold(9, 0).x
    assert len(x) == 9 and [len(p) for p in x.split(4)] == [4, 4, 1] and [len(p) for p in x.chunk(2)] == [5, 4]
    rows = torch.tensor([3, 1])
    assert torch.equal(x[rows].tensors[1], x.tensors[1][rows]) and torch.equal(x.index_select(0, rows).tensors[0], x.tensors[0][rows])
    assert x[0].numel() == 4 + 72 and x.to(torch.float32).tensors[0].dtype == torch.float32 and x.device.type == "cpu"
    assert list(by_name(["p", "q"], x)) == ["p", "q"]
    with pytest.raises(UsageError, match="3, 4 rows"):
        Inputs(torch.zeros(3, 1), torch.zeros(4, 1))
    with pytest.raises(UsageError, match=r"2 inputs \(p, q\), it is given 1"):
        by_name(["p", "q"], torch.zeros(3, 1))


def test_the_first_output_is_scored():
    weights, rows = weights_for(ARCH), fold(30, 1)
    evidence = measure(ARCH, weights, rows, fold(20, 2), LOSSES["classification"], rows=100, seed=0, path=("t",))
    assert evidence.train.nats == pytest.approx(float(LOSSES["classification"].nats(by_hand(ARCH, weights, rows), rows.y)), rel=1e-12)
    # What leads to the second output alone has no gradient; what leads to both has the first one's.
    assert not evidence.train.v["z"].any() and evidence.train.v["h"].any()
    module = compile_architecture(ARCH, weights)
    close(outputs(module, rows.x, batch=7), by_hand(ARCH, weights, rows), 1e-12)
    assert torch.equal(scored(module.eval(), rows.x), by_hand(ARCH, weights, rows))
    assert evaluate(module, rows, LOSSES["classification"])["loss"] == pytest.approx(evidence.train.nats)


@pytest.mark.parametrize("scorer", ["natural", "random"])
def test_edits_are_proposed_and_made(scorer):
    weights, rows = weights_for(ARCH), fold(40, 3)
    evidence = measure(ARCH, weights, rows, fold(20, 4), LOSSES["classification"], rows=100, seed=0, path=("t",))
    chosen = SCORERS.get(scorer)
    listed = [(REGISTRY.get(kind), REGISTRY.get(kind).Options(**options)) for kind, options in KINDS]
    found = [s for s in propose(evidence, listed, chosen(chosen.Options()), Limits(10**6, 10**9), alpha=0.05, key=(0,)) if s.part is not None]
    assert {s.candidate.edit for s in found} == {kind for kind, _ in KINDS}
    for s in found:
        made = apply(ARCH, weights, {}, {}, [s.part], (0,))
        assert isinstance(made, Applied) and made.arch.inputs == ARCH.inputs and len(made.arch.outputs) == 2
        both = [compile_architecture(made.arch, w).eval()(*rows.x.tensors) for w in (made.weights(0.0), made.full)]
        if s.part.site.form.grows and not s.part.site.form.trial:
            for new, old in zip(both[0], compile_architecture(ARCH, weights).eval()(*rows.x.tensors), strict=True):
                close(new, old, 1e-10)  # the second output too stays where it was
        assert all(out.isfinite().all() for out in both[1])


def test_norms_and_training():
    weights, rows = weights_for(ARCH), fold(32, 5)
    close(by_hand(ARCH, refresh_norms(ARCH, weights, rows), rows), by_hand(ARCH, weights, rows), 1e-10)
    module = compile_architecture(ARCH, weights)
    before = evaluate(module, rows, LOSSES["classification"])["loss"]
    with Session(OPTIMIZERS.get("adamw"), None, parameters_by_name(module)) as session:
        for epoch in range(5):
            report = train_epoch(module, session, rows, LOSSES["classification"], batch=8, rates=lambda _: 1e-2, seed=0, path=(epoch,))
    assert report.finite and evaluate(module, rows, LOSSES["classification"])["loss"] < before


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("pt2", marks=pytest.mark.slow)])
def test_exports_take_and_give_as_many_tensors(kind, tmp_path):
    weights = {n: w.float() if w.is_floating_point() else w for n, w in weights_for(ARCH).items()}
    raw = Inputs(*(t.float() for t in fold(5, 6).x.tensors))
    plain = torch.nn.Identity()
    bundle = export.Bundle(ARCH, compile_architecture(ARCH, weights), plain, plain, raw, {"task": "classification"})
    chosen = export.REGISTRY.get(kind).Options(output="probabilities")
    assert export.save(bundle, kind, tmp_path / "net", chosen) <= 1e-6
    first, second = bundle.deployed("probabilities")(*raw.tensors)
    y, z = compile_architecture(ARCH, weights).eval()(*raw.tensors)
    assert torch.allclose(first, y.softmax(1)) and torch.equal(second, z)


def test_an_encoder_prepares_one_input():
    with pytest.raises(UsageError, match="the network has several"):
        deploy(torch.nn.Flatten(), compile_architecture(ARCH, weights_for(ARCH)), torch.nn.Identity())
