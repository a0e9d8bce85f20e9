"""The page says what the folder holds, harms nobody and needs nothing but itself."""

import json
import re
import time
from pathlib import Path

import pytest
from pages import Page, change, copy, image_run, page, vector_run

from advrepair.cli import main
from advrepair.html.metrics import METRICS
from advrepair.html.page import ROWS

EVIL = "<script>alert(1)</script>\"'&--><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_run(tmp_path_factory.mktemp("images") / "run")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return vector_run(tmp_path_factory.mktemp("vectors") / "run")


@pytest.fixture(params=["images", "vectors"])
def run(request):
    return request.getfixturevalue(request.param)


def test_a_run_leaves_its_page(run):
    assert (run / "report.html").read_text(encoding="utf-8") == page(run)


def test_its_parts_stand_in_order(run):
    found = Page(page(run))
    sections = [each["id"] for each in found.all("section")]
    assert sections == [
        "figures",
        "warnings",
        "margins",
        "training",
        "gallery",
        "routing",
        "certificate",
        "configuration",
    ]
    ids = set(sections)
    assert {a["href"].removeprefix("#") for a in found.all("a")} == ids


def test_it_says_what_holds_now(images):
    text = Page(page(images)).text
    assert (
        "14 of 14 properties are certified (deployed-float32): every input within 0.1 of the 14 "
        "centres and in [0, 1] keeps its label." in text
    )
    assert "14 certified proved for every input of the region" in text
    assert "advrepair check FOLDER" in text
    certificate = json.loads((images / "certificate.json").read_text())
    for part in (certificate["network"], *certificate["files"].values(), certificate["claim"]):
        assert part in text
    assert "deeppoly (advrepair 0.1.0; lower_slope = area)" in text
    report = json.loads((images / "report.json").read_text())
    assert all(f"Note: {note}" in text for note in report["notes"])
    assert (images / "run.toml").read_text().split() == re.search(
        r"(\[problem\].*?) Versions", text
    ).group(1).split()


def test_it_says_what_does_not_hold(images, tmp_path):
    run = copy(images, tmp_path / "run")

    def worse(report):
        report["properties"] |= {"certified": 11, "falsified": 1, "unknown": 2}

    def open_(certificate):
        for i, status in enumerate(["unknown", "falsified", "unknown"]):
            certificate["properties"][2 * i + 1] |= {"status": status, "margin": None}

    change(change(run, "report.json", worse), "certificate.json", open_)
    text = Page(page(run)).text
    assert "11 of 14 properties are certified" in text
    assert "those 11 centres and in [0, 1] keeps its label; 1 is falsified and 2 are open." in text
    gallery = re.findall(r"(x_train\[\d+\]) (certified|falsified|unknown) original", text)
    assert [status for _, status in gallery] == ["unknown", "falsified", "unknown"] + 9 * [
        "certified"
    ]
    assert "The other 3 gave up and add a constant, or are not certified." in text


def test_it_is_one_file_without_a_network(run):
    text = page(run)
    found = Page(text)
    loading = {"script", "link", "iframe", "object", "embed", "base"}
    assert not loading & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:40])
    assert "http://" not in text and "https://" not in text
    assert "url(" not in text and "@import" not in text and "@font-face" not in text
    (policy,) = (m["content"] for m in found.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_every_picture_has_words(run):
    found = Page(page(run))
    assert all(each["alt"].strip() for each in found.all("img"))
    for each in found.all("svg"):
        assert each["role"] == "img" and len(each["aria-label"]) > 10
    assert len(found.all("svg")) == len(found.all("title")) - 1 == len(found.all("desc"))


def test_images_are_shown_as_images(images):
    found = Page(page(images))
    assert len(found.all("img")) == 3 * 12
    assert "The difference is amplified" in found.text and "12 of 14 properties" in found.text


def test_vectors_are_shown_as_bars(vectors):
    found = Page(page(vectors))
    assert not found.all("img")
    drawn = [each for each in found.all("svg") if "x[" in each["aria-label"]]
    assert len(drawn) == 3 * 5
    assert "a bar for each of the 6 inputs" in found.text


def test_strings_of_the_files_are_harmless(images, tmp_path):
    run = copy(images, tmp_path / "run")

    def name(certificate):
        for each in certificate["properties"]:
            each["name"] = each["demand"] = EVIL
        certificate["certifier"] |= {"name": EVIL, "options": {EVIL: EVIL}}
        certificate["claim"] = certificate["level"] = certificate["network"] = EVIL

    def note(report):
        report["notes"], report["flags"] = [EVIL], [{"name": EVIL, "text": EVIL}, EVIL]
        report["network"]["name"] = EVIL
        report["metrics"][EVIL] = 0.5
        report["seconds"][EVIL] = 1.0
        report["counts"] = {EVIL: {EVIL: EVIL}}

    def machine(manifest):
        manifest["versions"][EVIL] = manifest["hardware"][EVIL] = EVIL

    change(change(run, "report.json", note), "certificate.json", name)
    change(run, "manifest.json", machine)
    (run / "run.toml").write_text(EVIL, encoding="utf-8")
    text = page(run)
    found = Page(text)
    assert "<script" not in text and "onerror=" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert not found.all("script") and all("onerror" not in each for each in found.all("img"))
    assert found.text.count("<script>alert(1)</script>") > 20


def test_a_name_without_bytes_is_written_all_the_same(images, tmp_path):
    run = copy(images, tmp_path / "run")
    change(run, "report.json", lambda report: report["network"].update(name="\ud800"))
    assert "report on the repair of ?" in Page(page(run)).text


def test_figures_stand_beside_the_trivial_repair(images, tmp_path):
    run = copy(images, tmp_path / "run")

    def measure(report):
        report["metrics"] = {"RSR": 1.0, "RGR": 0.9996, "DD": 0.01, "DSR": None, "new": 0.25}
        report["baseline"] = {
            "constant-bias": {"certified": 0.5, "RSR": 1.0, "RGR": 0.8, "DD": 0.002},
            "none": {"RSR": 0.0},
        }
        report["intervals"] = {"RSR": [0.93, 1.0], "RGR": None, "DD": [0.001, 0.02]}
        report["counts"] = {"RSR": 50, "RGR": [499, 500], "DD": {"right": 9, "tried": 10}}

    text = Page(page(change(run, "report.json", measure))).text
    for row in (
        "certified 100.0 % 50.0 % - +50.0 pp better - -",
        "RSR 100.0 % 100.0 % 0.0 % 0.0 pp no better 93.0 % to 100.0 % 50",
        "RGR 99.9 % 80.0 % - +20.0 pp better - 499 of 500",
        "DD 1.0 % 0.2 % - +0.8 pp not clearly worse 0.1 % to 2.0 % right 9, tried 10",
        "FDD - - - - not measured; run advrepair evaluate - -",
        "DSR - - - - not measured; run advrepair evaluate - -",
        "new 25.0 % - - - - - -",
    ):
        assert row in text, row
    assert all(f"{metric.name} {metric.definition}" in text for metric in METRICS)


def test_the_metrics_are_those_of_the_documentation():
    path = Path(__file__).parents[2] / "docs" / "metrics.md"
    if not path.exists():
        pytest.skip("no docs/metrics.md")
    table = path.read_text(encoding="utf-8").split("\n\n|")[1]
    assert re.findall(r"^\| `([^`]+)`", table, re.M) == [metric.name for metric in METRICS]


def test_a_report_with_little_in_it(images, tmp_path):
    run = copy(images, tmp_path / "run")

    def strip(report):
        for key in report.keys() - {"problem", "properties", "metrics"}:
            del report[key]
        report["metrics"] = {"RSR": "much", "RGR": float("nan")}
        report["problem"] = {}

    change(run, "report.json", strip)
    (run / "run.toml").unlink()
    (run / "manifest.json").unlink()
    text = Page(page(run)).text
    assert "14 of 14 properties are certified (deployed-float32): what they demand holds" in text
    assert "RSR - - - - not measured" in text and "The report holds no flag and no note." in text
    assert "its options were not written down" in text


def test_flags_are_shown_before_the_notes(images, tmp_path):
    run = copy(images, tmp_path / "run")
    flag = {"name": "forced label", "text": "the patch says its label to noise, too"}
    text = Page(page(change(run, "report.json", lambda r: r.update(flags=[flag])))).text
    first = text.index("Flag forced label: the patch says its label to noise, too")
    assert first < text.index("Note: outside the balls")


def test_the_same_folder_gives_the_same_bytes(run, tmp_path):
    again = copy(run, tmp_path / "elsewhere")
    assert page(again) == page(run)
    before = (run / "report.html").stat().st_mtime_ns
    assert main(["report", str(run), "--out", str(tmp_path / "mine.html")]) == 0
    assert (tmp_path / "mine.html").read_bytes() == (run / "report.html").read_bytes()
    assert (run / "report.html").stat().st_mtime_ns == before


def test_the_routes_agree_with_the_report(images):
    text = Page(page(images)).text
    shares = json.loads((images / "report.json").read_text())["routing"]
    right = {"centres": shares["clean"], "adversarial examples": shares["adversarial"]}
    for kind, share in right.items():
        row = re.search(rf"{kind}, by the allocator alone ([\d.]+) % ([\d.]+) % ", text)
        assert row.group(1) == "0.0" and float(row.group(2)) == pytest.approx(100 * share, abs=0.1)
        assert f"{kind}, as deployed 100.0 % 0.0 % 0.0 % 0.0 %" in text


def test_many_properties_are_fast_and_few_bytes(tmp_path):
    run = image_run(tmp_path / "run", 800)
    begin = time.process_time()
    size = len(page(run).encode())
    assert time.process_time() - begin < 2 and size < 1_000_000


def test_only_so_many_rows(images, monkeypatch):
    assert ROWS == 1000
    monkeypatch.setattr("advrepair.html.page.ROWS", 10)
    text = Page(page(images)).text
    assert "Every property (the first 10; 4 more are in certificate.json)" in text
    assert text.count("is larger than each of the others") == 10
    monkeypatch.undo()
    page(images)
