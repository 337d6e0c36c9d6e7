"""dagrow.report: tables and pictures that say what is there and cannot be turned against the reader."""

from __future__ import annotations

import re
from types import SimpleNamespace
from xml.dom import minidom

import pytest
from random_networks import random_network

from dagrow import report
from dagrow.graph import Architecture, Node

HOSTILE = "<script>alert(1)</script>\x1b[2J\x07\r\n\u202egnp.exe\u200b\"';--&#60;"


def chain(length: int) -> Architecture:
    nodes = {"x": Node.of("input", shape=(2,))}
    for k in range(length):
        nodes[f"n{k}"] = Node.of("linear", list(nodes)[-1], width=2)
    return Architecture(nodes)


def test_the_table_holds_every_node_and_the_totals():
    arch = random_network(3)
    lines = report.text(arch, "a title").splitlines()
    assert lines[0] == "a title"
    assert [line.split()[0] for line in lines[3:-2]] == list(arch.order)
    assert lines[-1].split()[-2:] == [f"{arch.size:,}", f"{arch.macs:,}"]
    columns = {line.index(word) for line in lines for word in ("params",) if word in line}
    assert len(columns) == 1


def test_columns_add_up_to_the_totals():
    arch = random_network(5)
    rows = [line.split() for line in report.text(arch).splitlines()[2:-2]]
    assert sum(int(r[-2].replace(",", "")) for r in rows) == arch.size
    assert sum(int(r[-1].replace(",", "")) for r in rows) == arch.macs


@pytest.mark.parametrize("draw", [report.html, report.text])
def test_hostile_titles_are_escaped(draw):
    made = draw(chain(2), HOSTILE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", made)
    if draw is report.html:
        assert "<script" not in made
        minidom.parseString(made)


def test_printable_keeps_plain_text():
    assert report.printable("stem[4] é 漢 →") == "stem[4] é 漢 →"
    assert report.printable("a\x1b[0m\ud800") == "a\\x1b[0m\\ud800"


@pytest.mark.parametrize("seed", range(8))
def test_pictures_are_well_formed_and_complete(seed):
    arch = random_network(seed)
    document = minidom.parseString(report.html(arch, "net"))
    assert len(document.getElementsByTagName("rect")) == len(arch.nodes)
    edges = sum(len(n.inputs) for n in arch.nodes.values())
    assert len(document.getElementsByTagName("path")) == edges + 1  # and the arrow head
    flow = report.mermaid(arch).splitlines()
    assert flow[0] == "flowchart TD"
    assert sum("-->" in line for line in flow) == edges
    shape = re.compile(r'    n\d+(\(\[|\[)"[A-Za-z0-9 _.,=×·#;<>/-]+"(\]\)|\])$|    n\d+ --> n\d+$')
    assert all(shape.match(line) for line in flow[1:])


def test_large_networks_become_tables():
    made = report.html(chain(200))
    assert "<svg" not in made and made.count("<tr>") == 202


def test_sparklines():
    assert report.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert report.sparkline([1, float("nan"), 1, float("inf")]) == "▁×▁×"
    assert report.sparkline([]) == ""


def test_a_history_is_drawn_from_events_or_payloads():
    events = [SimpleNamespace(payload={"val_loss": v, "params": 10 * k, "note": HOSTILE}) for k, v in enumerate([2.0, float("nan"), 1.0])]
    made = report.history_html(events)
    document = minidom.parseString(made)
    assert len(document.getElementsByTagName("svg")) == 2
    assert len(document.getElementsByTagName("circle")) == 5
    assert made == report.history_html([e.payload for e in events])
    assert "nothing" in report.history_html([{"kind": "start"}])
