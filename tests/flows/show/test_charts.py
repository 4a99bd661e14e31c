"""Curves as SVG."""

from __future__ import annotations

import base64
import math
import xml.etree.ElementTree as ET

from flows.show.charts import POINTS, TEXT, data_uri, line_chart, themed, thin


def chart() -> str:
    steps = list(range(50))
    return line_chart(
        {"all": (steps, [9.0 - s / 10 for s in steps]), "cn": (steps, [math.nan if s == 7 else 1.0 for s in steps])},
        x_label="step",
        y_label="training loss",
    )


def test_a_chart_is_an_svg_with_its_labels_and_a_legend() -> None:
    svg = chart()
    words = "".join(ET.fromstring(svg).itertext())
    assert all(word in words for word in ("step", "training loss", "all", "cn"))


def test_the_same_curve_gives_the_same_svg() -> None:
    assert chart() == chart()


def test_many_points_become_few_and_keep_their_course() -> None:
    points = thin([(float(x), float(x % 2)) for x in range(100_000)])
    assert len(points) <= POINTS + 1
    assert points[-1][0] == 99_999
    assert all(abs(y - 0.5) < 0.01 for _, y in points)
    assert thin([(1.0, 2.0)]) == [(1.0, 2.0)]


def test_a_data_uri_holds_the_svg_on_white_paper() -> None:
    head, _, body = data_uri(chart()).partition(",")
    assert head == "data:image/svg+xml;base64"
    svg = ET.fromstring(base64.b64decode(body))
    assert svg[0].attrib["fill"] == "#ffffff"


def test_a_themed_chart_takes_the_pages_colours() -> None:
    assert TEXT in chart()
    assert TEXT not in themed(chart())
    assert "var(--soft)" in themed(chart())
