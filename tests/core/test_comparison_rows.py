"""The row of a method, however its process ended."""

import pytest

from advrepair.core.comparison_rows import RESULT, finished
from advrepair.core.files import write_json
from advrepair.core.isolation import Ended, How

LIMITS = (120.0, 4.0)
FIGURES = {"RSR": 1.0}


def kept(place, **known):
    """What the process wrote before it ended."""
    row = {"status": "repaired", "scope": "region", "reason": None, "model": None, **known}
    write_json(place / RESULT, row)


@pytest.mark.parametrize("how", [How.MEMORY, How.CRASHED])
def test_figures_survive_a_process_that_ends_while_it_writes_the_model(how, tmp_path):
    kept(tmp_path, measured=True, figures=FIGURES)
    row = finished(tmp_path, Ended(how, 2**30), LIMITS)
    assert (row["figures"], row["model"], row["reason"]) == (FIGURES, None, None)
    assert row["model_reason"].startswith(("it was ended: it took more than 4 GiB", "its process"))
    assert "measured" not in row


def test_a_repair_without_its_figures_says_so(tmp_path):
    kept(tmp_path, measured=False)
    row = finished(tmp_path, Ended(How.MEMORY, 2**30), LIMITS)
    assert row["reason"] == "repaired, but not measured: it was ended: it took more than 4 GiB"
    assert set(row["figures"].values()) == {None}


def test_a_whole_row_stays_as_it_is(tmp_path):
    kept(tmp_path, measured=True, figures=FIGURES, model_reason="it holds what ONNX has not")
    row = finished(tmp_path, Ended(How.DONE, 2**30), LIMITS)
    assert row["model_reason"] == "it holds what ONNX has not"
    assert row["peak_memory_bytes"] == 2**30


def test_a_repair_that_did_not_end_is_told_by_how(tmp_path):
    row = finished(tmp_path, Ended(How.TIMEOUT, 2**30), LIMITS)
    assert (row["status"], row["seconds"]["repair"]) == ("timeout", 120.0)
    assert row["reason"] == "it was ended: it did not stop within 120 s"
