"""Every number that the pages publish of a study is written from what was kept of its findings, and from nothing else."""

import json
import re
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import blocks  # noqa: E402
import planted  # noqa: E402
import publish  # noqa: E402


@pytest.mark.parametrize("page", publish.PAGES)
def test_the_blocks_of_a_page_say_what_was_found(page):
    text = (ROOT / page).read_text()
    assert text == publish.written(text, blocks.Findings(json.loads(publish.KEPT.read_text())))
    assert "<!-- numbers: " in text and text.count("<!-- numbers: ") == text.count("<!-- end -->")


def test_every_block_stands_on_a_page_and_what_is_kept_is_used():
    pages = "".join((ROOT / page).read_text() for page in publish.PAGES)
    assert set(re.findall(r"<!-- numbers: ([\w ]+) -->", pages)) == set(blocks.BLOCKS)
    kept = json.loads(publish.KEPT.read_text())
    lines = " ".join(publish.LINES)
    assert all(f"{{runs}}/{study}" in lines for study in kept)


def test_a_number_that_was_written_by_hand_is_found_out():
    kept = blocks.Findings(json.loads(publish.KEPT.read_text()))
    text = "<!-- numbers: fidelity -->\nby hand: 12345\n<!-- end -->"
    assert "12345" not in publish.written(text, kept) and "| explained variance |" in publish.written(text, kept)
    with pytest.raises(KeyError, match="unheard of"):
        publish.written("<!-- numbers: unheard of -->\n<!-- end -->", kept)


def test_every_option_is_nearer_to_the_planted_truth_than_at_its_start_or_the_page_says_so():
    rows = planted.Kept(blocks.PLANTED).found.values()
    for option in planted.options():
        trained, start = (
            {row["pair"]: row["mean_max_cosine"] for row in rows if row["name"] == name and row["tokens"] == tokens}
            for name, tokens in ((option, 1_000_000), (f"{option}, {planted.UNTRAINED}", 0))
        )
        assert trained and all(trained[pair] > 1.3 * start[pair] for pair in trained), option
