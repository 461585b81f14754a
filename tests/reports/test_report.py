"""The page and its pictures, on the round numbers of conftest."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from einsight.reports.figures import PictureError, roofline_figure, save, svg
from einsight.reports.html import Section
from einsight.reports.report import SECTIONS, Results, report
from einsight.reports.roofline import roofline
from einsight.reports.sources import quantities
from einsight.sim.hardware import Gpu
from einsight.sim.prediction import Prediction

VOID = {"meta", "br", "hr", "img", "path", "use", "rect"}


class Balanced(HTMLParser):
    """Fails when an element is closed that is not open; collects what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag == "script":
            self.links.append("script")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_is_one_balanced_file_without_outside_links(results: Results) -> None:
    reader = Balanced()
    reader.feed(report(results))
    assert reader.open == []
    assert reader.links and all(link.startswith("#") for link in reader.links)


def test_names_from_files_are_escaped(results: Results) -> None:
    page = report(results)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_page_says_what_the_prediction_says(results: Results) -> None:
    page = report(results)
    for text in (
        "2 s (1.5 s to 2.5 s)", "8 TFLOP", "8e12 FLOP at 10 TFLOP/s (assumed)", "cold caches", "source of 1e+12",
        "200 J (upper bound TDP x time)", "speedup over dense fused", "4 TFLOP/s, 40 % of peak",
    ):  # fmt: skip
        assert text in page, text


def test_sections_can_be_added_and_say_nothing(results: Results) -> None:
    def empty(_: Results) -> Section | None:
        return None

    def extra(_: Results) -> Section | None:
        return Section("extra", "Extra", "<p>added</p>")

    page = report(results, (*SECTIONS, empty, extra))
    assert '<section id="extra"><h2>Extra</h2><p>added</p></section>' in page


def test_report_without_predictions_is_a_page(gpu: Gpu) -> None:
    assert "A small GPU" in report(Results((), {"small": gpu}, {}))


def test_roofs_and_ceilings_are_rates_times_sms_times_clock(gpu: Gpu, prediction: Prediction) -> None:
    roof = roofline(gpu, [prediction, replace(prediction, target="another")])
    assert {r.memory: r.bytes_per_s for r in roof.roofs} == {"HBM": 1e12, "L2": 64e10, "shared memory": 128e10}
    heights = {c.title: c.flops_per_s for c in roof.ceilings}
    assert heights == {
        "tensor cores, bf16, fp16": 1000 * 10 * 1e9,  # fp8 is not used by any point
        "fp32 pipes": 2 * 128 * 10 * 1e9,
        "special functions at 400 FLOP each": 400 * 16 * 10 * 1e9,
    }
    (point,) = roof.points
    assert point.intensity == {"HBM": 8.0, "L2": 2.0} and point.flops_per_s == 4e12


def test_roofline_without_points_shows_every_tensor_ceiling(gpu: Gpu) -> None:
    titles = [c.title for c in roofline(gpu, []).ceilings]
    assert titles == ["tensor cores, bf16, fp16", "tensor cores, fp8_e4m3", "fp32 pipes"]


def test_picture_is_the_same_twice_and_well_formed(gpu: Gpu, prediction: Prediction) -> None:
    first, second = (svg(roofline_figure([roofline(gpu, [prediction])]), "x") for _ in range(2))
    assert first == second
    ET.fromstring(first)
    assert not re.search(r'(href|src)="http', first)


def test_two_pictures_share_no_clip_path(gpu: Gpu, prediction: Prediction) -> None:
    figures = [svg(roofline_figure([roofline(gpu, [prediction])]), salt) for salt in ("one", "two")]
    ids = [set(re.findall(r'clipPath id="([^"]+)"', text)) for text in figures]
    assert ids[0] and not ids[0] & ids[1]


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_saved_by_ending(tmp_path: Path, gpu: Gpu, ending: str, start: bytes) -> None:
    save(roofline_figure([roofline(gpu, [])] * 3), tmp_path / f"p.{ending}")
    assert (tmp_path / f"p.{ending}").read_bytes().startswith(start)


def test_unknown_ending_is_refused(tmp_path: Path, gpu: Gpu) -> None:
    with pytest.raises(PictureError, match=r"ending in \.svg, \.png or \.pdf, got '\.gif'"):
        save(roofline_figure([roofline(gpu, [])]), tmp_path / "p.gif")


def test_every_quantity_is_listed(gpu: Gpu) -> None:
    found = dict(quantities(gpu))
    assert found["hbm_bytes_per_s"].value == 1e12
    assert found["architecture.special_ops_per_cycle"].value == 16
    assert found["tensor_flops_per_cycle.fp8_e4m3"].value == 2000


def test_roofline_of_no_gpu_is_refused() -> None:
    with pytest.raises(PictureError, match="no GPU"):
        roofline_figure([])
