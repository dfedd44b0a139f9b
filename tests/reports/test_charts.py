"""Charts say what the numbers say: positions, areas and labels, measured in the drawing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.reports import charts, score_charts, svg
from memskill_cli.reports.charts import Layer, Node, Point, StageBand
from memskill_cli.reports.score_charts import IntervalRow

finite = st.floats(-1e9, 1e9)


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{markup}</div>")


def of(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if kind in element.get("class", "").split()]


def numbers(element: ElementTree.Element) -> list[tuple[float, float]]:
    found = re.findall(r"-?[\d.]+", element.get("d", ""))
    return [(float(x), float(y)) for x, y in zip(found[::2], found[1::2], strict=True)]


@settings(deadline=None)
@given(finite, finite, st.integers(2, 8))
def test_ticks_are_round_equally_far_and_hold_the_data(a: float, b: float, most: int) -> None:
    low, high = sorted((a, b))
    ticks = svg.nice_ticks(low, high, most)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= most + 3
    steps = [y - x for x, y in pairwise(ticks)]
    assert max(steps) - min(steps) <= slack
    shown = [svg.distinct_format(ticks)(tick) for tick in ticks]
    assert len(set(shown)) == len(shown) or ticks[-1] - ticks[0] < 1e-3


def test_noise_is_drawn_flat() -> None:
    ticks = svg.nice_ticks(1.09861, 1.09859)
    assert ticks[-1] - ticks[0] > 0.01
    assert svg.nice_ticks(0, 0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    placed = svg.spread(wanted, 17, 0, 300)
    ordered = [place for _, place in sorted(zip(wanted, placed, strict=True))]
    assert all(b - a >= 17 - 1e-6 for a, b in pairwise(sorted(placed)))
    assert ordered == sorted(ordered)
    assert max(placed) <= 300 + 1e-9


def test_a_curve_goes_through_its_points() -> None:
    points = [Point(1, 1, 0.1, 0.05, 0.15), Point(2, 2, 0.3, 0.2, 0.4), Point(3, 3, None), Point(4, 4, 0.2)]
    root = parsed(charts.curve("reward", points, 880))
    line = numbers(of(root, "line")[0])
    assert len(line) == 3
    (x1, y1), (x2, y2), (x4, y4) = line
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.3)
    assert y1 - y2 == pytest.approx(2 * (y1 - y4), abs=0.3), "twice as far up"
    assert len(of(root, "dot")) == 3
    assert root.find(".//svg/title").text == "reward"  # type: ignore[union-attr]


def test_one_point_alone_stands_above_zero() -> None:
    root = parsed(charts.curve("reward", [Point(1, 1, 0.118)], 880))
    assert of(root, "end")[0].text == "0.00"
    assert len(of(root, "dot")) == 1


def test_stages_are_named_as_far_as_there_is_room() -> None:
    points = [Point(i, i, 0.1) for i in range(1, 201)]
    stages = [StageBand(str(n), 10 * n + 1, 10 * n + 10, 0.1, 3) for n in range(20)]
    for width in (svg.WIDE, svg.NARROW):
        root = parsed(charts.curve("reward", points, width, stages=stages))
        names = [(float(text.get("x", 0)), text.text or "") for text in root.iter("text") if text.get("y") == "17"]
        assert names[0][1] == "0"
        gaps = [(b[0] - a[0]) - 8 * len(b[1]) for a, b in pairwise(names)]
        assert min(gaps) > 0, "they do not run into each other"
        assert len(of(root, "level")) == 20


def test_a_stack_is_as_high_as_its_sum() -> None:
    layers = [Layer("insert", [1.0, 2.0], "s2"), Layer("update", [3.0, 0.0], "s0")]
    root = parsed(charts.stack("actions", [(1, 1), (2, 2)], layers, 880, show=svg.plain))
    lower, upper = (numbers(path) for path in of(root, "fill") if path.tag == "path")
    zero = max(y for _, y in lower)
    unit = zero - lower[0][1]  # the first column of the lower layer is 1 high
    assert zero - upper[0][1] == pytest.approx(4 * unit, abs=0.5)
    assert lower[2][1] == upper[2][1], "nothing on top of the second column"
    labels = [text.text for text in of(root, "label")]
    assert labels == ["insert 2", "update 0"]


def test_a_stack_on_a_phone_has_a_legend_instead() -> None:
    layers = [Layer("a" * 60, [1.0], "s2"), Layer("<b>", [3.0], "s0")]
    root = parsed(charts.stack("actions", [(1, 1)], layers, svg.NARROW, show=svg.plain))
    assert of(root, "label") == []
    assert [word.text for word in of(root, "word")] == ["<b>", "a" * 60]


def test_whiskers_lie_on_one_scale_from_zero() -> None:
    rows = [
        IntervalRow("temporal", 0.2, (0.1, 0.4)),
        IntervalRow("all", 0.4, (0.3, 0.5), mark=0.5, strong=True),
        IntervalRow("none", None, None),
    ]
    root = parsed(score_charts.interval_chart("F1", rows, 430, mark="the paper: 50.00"))
    zero = float(of(root, "zero")[0].get("x1", 0))
    first, second = (float(dot.get("cx", 0)) - zero for dot in of(root, "dot"))
    assert second == pytest.approx(2 * first, abs=0.3)
    span = of(root, "whisker")[0]
    assert float(span.get("x1", 0)) - zero == pytest.approx(first / 2, abs=0.3)
    assert float(span.get("x2", 0)) - zero == pytest.approx(2 * first, abs=0.3)
    mark = sum(x for x, _ in numbers(of(root, "diamond")[0])) / 4 - zero
    assert mark == pytest.approx(2.5 * first, abs=0.3)
    assert "the paper: 50.00" in [text.text for text in root.iter("text")]
    assert "–" in [text.text for text in root.iter("text")]


def test_columns_are_as_high_as_their_counts() -> None:
    root = parsed(score_charts.bars("verdicts", [("0", 218), ("0.5", 0), ("1", 109)], 430, name="verdict"))
    heights = [float(bar.get("height", 0)) for bar in of(root, "fill")]
    assert heights[0] == pytest.approx(2 * heights[2], abs=0.2)
    assert heights[1] == 0


def test_stages_are_tied_to_the_one_they_were_made_from() -> None:
    nodes = [
        Node(0, None, 0.2, "kept"),
        Node(1, 0, 0.3, "best"),
        Node(2, 1, 0.25, "rolled back"),
        Node(3, 1, None, "not judged"),
    ]
    root = parsed(charts.lineage("stages", nodes, 880, show=svg.plain))
    places = [(float(node.get("cx", 0)), float(node.get("cy", 0))) for node in of(root, "node")]
    ties = [numbers(tie) for tie in of(root, "tie")]
    assert [tie[0] for tie in ties] == [places[0], places[1], places[1]]
    assert [tie[1] for tie in ties] == places[1:]
    assert places[1][1] < places[2][1] < places[0][1], "higher reward, higher up"
    assert len(of(root, "rolled-back")) == 2, "the node and its tie"


@settings(deadline=None)
@given(st.text(max_size=40), st.lists(st.none() | finite, max_size=6))
def test_whatever_is_drawn_is_sound_xml(name: str, values: list[float | None]) -> None:
    points = [Point(i, i, value) for i, value in enumerate(values, 1)]
    drawn = svg.responsive(lambda width: charts.curve(name, points, width))
    drawn += score_charts.interval_chart(name, [IntervalRow(name, value, None) for value in values], 340)
    drawn += charts.stack(name, [(1, 1)], [Layer(name, [1.0], "s0")], 880, show=svg.plain)
    root = parsed(drawn)
    assert {element.tag for element in root.iter()} <= {"div", "svg", "title", "line", "path", "circle", "rect", "text"}
