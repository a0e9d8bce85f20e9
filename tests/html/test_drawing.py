"""Pictures, charts and numbers show what they were given."""

import math
import re
import struct
import zlib

import numpy as np
import pytest

from advrepair.html import png, svg, words
from advrepair.html.gallery import choose
from advrepair.html.svg import Strip, nice


def decoded(data):
    """Pixels of a PNG file with 8 bits and no filter; checks every chunk."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, bits, kind, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert bits == 8 and rest == [0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, {0: 1, 2: 3}[kind])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 1), (5, 3, 3), (64, 64, 3)])
def test_a_png_holds_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (decoded(png.encode(pixels)) == pixels).all()


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((64,), True),
        ((784,), True),
        ((9,), False),
        ((65,), False),
        ((8, 8), True),
        ((1, 8, 8), True),
        ((3, 8, 8), True),
        ((2, 8, 8), False),
        ((1, 1, 8, 8), False),
    ],
)
def test_which_inputs_are_images(shape, image):
    assert png.is_image(shape) == image


def pixels_of(uri):
    import base64

    return decoded(base64.b64decode(uri.removeprefix("data:image/png;base64,")))


def test_pictures_go_from_black_to_white():
    x = np.linspace(-1.0, 1.0, 64)
    for shape in ((64,), (8, 8), (1, 8, 8)):
        shown = pixels_of(png.picture(x.reshape(shape), -1.0, 1.0))
        assert shown.shape == (8, 8, 1)
        assert shown.ravel().tolist() == np.round((x + 1) / 2 * 255).tolist()
    assert pixels_of(png.picture(np.full((3, 4, 4), 0.5), 0.5, 0.5)).shape == (4, 4, 3)
    assert pixels_of(png.picture(np.full((8, 8), np.nan), 0.0, 1.0)).max() == 0


def test_differences_are_white_where_there_is_none():
    shown = pixels_of(png.difference(np.array([[0.0, 0.1], [-0.1, 5.0]]), 10.0))
    none, more, less, clipped = shown.reshape(4, 3).astype(int)
    assert none.min() >= 250 and more[0] > more[2] and less[2] > less[0]
    assert (clipped == more).all()
    assert set(pixels_of(png.difference(np.zeros((3, 4, 4)), 10.0)).ravel()) == {128}


def test_large_pictures_are_averaged_down():
    planes = png.as_planes(np.arange(200 * 130, dtype=float).reshape(1, 200, 130))
    assert planes.shape == (1, 50, 32)
    assert planes[0, 0, 0] == np.arange(200 * 130).reshape(200, 130)[:4, :4].mean()
    assert png.as_planes(np.ones((3, 1, 500))).shape == (3, 1, 62)


def heights(chart, css):
    return [float(h) for h in re.findall(rf'class="{css}"[^>]* height="([\d.]+)"', chart)]


def test_a_histogram_tells_positive_from_the_rest():
    chart = svg.histogram([Strip("a", [-1.0, 0.0, 0.0], "c2")], "t", "what", "unit")
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', chart).group(1))
    bars = re.findall(r'<rect class="c2" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    assert all(float(x) + float(width) <= zero for x, width in bars)
    one, two = heights(chart, "c2")
    assert two == pytest.approx(2 * one, abs=0.02)
    chart = svg.histogram([Strip("a", [1e-12, 1.0], "c2")], "t", "what", "unit")
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', chart).group(1))
    assert all(float(x) >= zero for x in re.findall(r'<rect class="c2" x="([\d.]+)"', chart))


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [-1e-9], [1e30, -1e30], [3.0] * 100])
def test_histograms_of_anything(values):
    chart = svg.histogram([Strip("a", values, "c1")], "t", "what", "unit")
    assert "nan" not in chart and "inf" not in chart
    assert len(heights(chart, "c1")) == len(set(values))


def test_steps_rise_to_the_share_that_arrived():
    chart = svg.steps([1.0, 1.0, 4.0], 4, "t", "what", "steps")
    path = re.search(r'<path class="curve" d="([^"]+)"', chart).group(1)
    levels = [float(y) for y in re.findall(r"V([\d.]+)", path)]
    assert levels == [80.0, 45.0]  # half, three quarters of the way from 150 up to 10


def test_a_stacked_bar_is_as_long_as_its_shares():
    chart = svg.stacked([("a", [(0.25, "c1"), (0.0, "c2"), (0.75, "c3")])], "t", "what")
    widths = re.findall(r'<rect class="(c\d)" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', chart)
    assert widths == [("c1", "99"), ("c3", "300")]


def test_texts_of_charts_are_escaped():
    evil = '"><script>'
    assert "<script>" not in svg.bars([(evil, 1.0, evil)], evil, evil)


@pytest.mark.parametrize(("value", "found"), [(1.0, 1.0), (1.1, 2.0), (0.03, 0.05), (7e5, 1e6)])
def test_nice_numbers(value, found):
    assert nice(value) == pytest.approx(found)


def test_a_margin_is_never_shown_larger_than_it_is():
    generator = np.random.default_rng(0)
    for value in generator.normal(size=300) * 10.0 ** generator.integers(-12, 9, 300):
        shown = float(words.margin(float(value)).replace("\N{MINUS SIGN}", "-"))
        assert shown <= value and (shown > 0) == (value > 0)
        assert math.isclose(shown, value, rel_tol=0.11)
    assert words.margin(None) == words.margin(math.inf) == words.DASH
    assert words.margin(0.0) == "0.0000"


def test_shares_that_are_not_all_are_not_shown_as_all():
    shown = [words.share(x).replace("\N{NO-BREAK SPACE}", " ") for x in (1, 0.9999, -0.0001, -0.5)]
    assert shown == ["100.0 %", "99.9 %", "0.0 %", "\N{MINUS SIGN}50.0 %"]
    assert words.share(None) == words.share("x") == words.share(True) == words.DASH


def test_a_headline_for_every_end():
    problem = {"epsilon": 0.1, "input_range": []}

    def line(certified, falsified, unknown):
        counts = {"certified": certified, "falsified": falsified, "unknown": unknown}
        total = certified + falsified + unknown
        return words.headline(problem, counts | {"total": total}, "real")

    claim = "every input within 0.1 of"
    assert (
        line(1, 0, 0)
        == f"1 of 1 property is certified (real): {claim} the 1 centre keeps its label."
    )
    assert line(2, 0, 1) == (
        f"2 of 3 properties are certified (real): {claim} those 2 centres keeps its label; "
        "1 is open."
    )
    assert line(0, 2, 1) == (
        "None of the 3 properties is certified (real): 2 are falsified and 1 is open."
    )


def test_the_gallery_shows_unproved_ones_first_and_few_of_them():
    assert choose(["certified"] * 5) == [0, 1, 2, 3, 4]
    chosen = choose(["certified"] * 50 + ["unknown"] * 9)
    assert chosen[:4] == [50, 51, 52, 53] and len(set(chosen)) == 12
    assert len(choose(["falsified"] * 3)) == 3 and choose([]) == []
