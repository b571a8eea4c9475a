"""How tokens stand on the page, and what its search finds of them."""

import csv
import io
import json
import re

import pyarrow.parquet
import pytest

from browser import in_browser
from test_report import make_run
from tunediff.report import write_report
from tunediff.shapes import SEGMENTS

# latent -> the tokens of an example; it fires on the first
FIRES_ON = {
    3: ["Wait", " here"],
    4: [" Wait", ","],
    5: [".\n\n", "So"],
    6: ["东京", "很大"],
    9: ["\\nu", " is"],
    10: ["⟨🙂 1/2⟩", "🙂"],
    11: ["zz", " Wait", "\n"],
    12: ["<think>", "\n"],
    13: ["<|im_start|>", "user"],
    14: ["</script>", "<b>x</b>"],
    15: ["\u200b", "  "],
    16: ["   ", "<｜User｜>"],
    17: ["\t", '"'],
    18: ["7", "\\neq"],
}
WRITES = {7: " Wait", 8: "⟨F0 9F⟩"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "run"
    make_run(folder)
    count = len(FIRES_ON)
    examples = {
        "latent": list(FIRES_ON), "kind": ["strongest"] * count, "rank": [0] * count, "quantile": [None] * count, "document": list(range(count)),
        "place": [0] * count, "position": [0] * count, "activation": [2.0] * count, "scaled_activation": [2.0] * count, "tokens": list(FIRES_ON.values()),
        "activations": [[2.0] + [0.0] * (len(tokens) - 1) for tokens in FIRES_ON.values()],
        "segments": [[SEGMENTS[(n + k) % len(SEGMENTS)] for k in range(len(t))] for n, t in enumerate(FIRES_ON.values())],
    }  # fmt: skip
    examples["segments"][0] = ["template", "prompt"]
    effects = {
        "latent": list(WRITES), "role": ["tuned"] * 2, "sign": [1, 1], "rank": [0, 0], "token": list(WRITES.values()), "effect": [3.5, 2.5],
    }  # fmt: skip
    for name, columns in (("examples", examples), ("logit_effect", effects)):
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "tables" / f"{name}.parquet")
    path = folder / "findings.json"
    found = json.loads(path.read_text())
    found["notes"] = [f"base reads id 151648 as <|box_start|>, tuned as <think>; {'<｜end▁of▁sentence｜>' * 40}."]
    found["findings"] += [
        {"name": "fidelity/explained_variance/base/template", "value": 0.321, "low": None, "high": None, "meaning": ""},
        {"name": "tokens/foreign", "value": 0.0056, "low": None, "high": None, "meaning": "share that touches a mark"},
    ]
    path.write_text(json.dumps(found))
    write_report(folder)
    return folder


@pytest.fixture
def page(browser, folder):
    return browser.open(folder / "report.html")


@in_browser
def test_a_search_tells_a_leading_space_and_a_line_break(page):
    found = page.run("""
      set('search latents', 'nowhere'); await wait(() => rows() === '');
      const found = (typed) => { set('search latents', typed); return rows().split(' ').map(Number).sort((a, b) => a - b); };
      return ['Wait', 'wait', '␣Wait', ' Wait', '"␣Wait"', '\\\\n', '\\\\n\\\\n', '↵', '东京', '很大', '\\\\nu', '\\\\neq', '🙂', '⟨F0', '<think>', 'im_start', '</script>', '<b>', '⇥', '"7"', 'wait here']
        .map((typed) => [typed, found(typed)]);""")
    waits, spaced = [3, 4, 7, 11], [4, 7]
    assert dict(map(tuple, found)) == {
        "Wait": waits, "wait": waits, "␣Wait": spaced, " Wait": spaced, '"␣Wait"': spaced, "\\n": [5], "\\n\\n": [5], "↵": [5], "东京": [6], "很大": [6],
        "\\nu": [9], "\\neq": [18], "🙂": [10], "⟨F0": [8], "<think>": [12], "im_start": [13], "</script>": [14], "<b>": [14], "⇥": [17], '"7"': [18], "wait here": [3],
    }  # fmt: skip


@in_browser
def test_a_search_finds_every_token_by_what_the_page_shows(page):
    missed, count = page.run("""
      set('search latents', 'nowhere'); await wait(() => rows() === '');
      set('search latents', '');
      const { latent, fires_on } = await unpacked('latents');
      const shown = [...latent.flatMap((one, n) => chips(fires_on[n]).map((chip) => [String(one), chip.textContent])), ['7', visible(' Wait')], ['8', visible('⟨F0 9F⟩')]];
      const missed = shown.filter(([latent, text]) => {
        if (!text.trim()) return true;
        set('search latents', /^\\d+$/.test(text) ? `"${text}"` : text);
        const found = rows().split(' ');
        return !found.includes(latent) || found.length > 4;
      });
      return [missed, shown.length];""")
    assert missed == [] and count == len(FIRES_ON) + len(WRITES)


@in_browser
def test_tokens_are_text_and_a_part_of_a_character_is_small(page):
    seen = page.run("""
      const seen = {};
      for (const latent of [10, 12, 13, 14, 15, 16]) {
        location.hash = `#latent-${latent}`;
        await wait(() => !panel().hidden && panel().querySelector('h2').textContent === `Latent ${latent}`);
        const example = panel().querySelector('.example > div');
        seen[latent] = [example.textContent, [...example.querySelectorAll('small')].map((part) => part.textContent), example.querySelectorAll('span').length];
      }
      return [seen, document.querySelectorAll('think, b.x, main script, .example b').length];""")
    assert seen == [
        {
            "10": ["⟨🙂 1/2⟩🙂", ["⟨🙂 1/2⟩"], 2],
            "12": ["<think>↵", [], 2],
            "13": ["<|im_start|>user", [], 2],
            "14": ["</script><b>x</b>", [], 2],
            "15": ["⟨U+200B⟩  ", [], 2],
            "16": ["   <｜User｜>", [], 2],
        },
        0,
    ]


def test_no_token_can_leave_the_payload(folder):
    text = (folder / "report.html").read_text()
    assert text.count("</script>") == 2 + text.count('id="packed-')
    assert "<think>" not in text and "<|" not in text


@in_browser
def test_what_is_saved_of_an_example_is_its_text(page):
    saved = page.run("""
      const saved = [];
      save = (name, type, content) => saved.push(content);
      location.hash = '#latent-10';
      await wait(() => !panel().hidden);
      [...panel().querySelectorAll('nav button')].find((b) => b.textContent === 'CSV').click();
      return saved;""")
    (row,) = csv.DictReader(io.StringIO(saved[0]))
    assert (row["text"], row["peak"]) == ("🙂", "⟨🙂 1/2⟩")


@in_browser
def test_each_segment_has_its_name_and_a_colour(page, folder):
    page.run("location.hash = '#latent-3'; await wait(() => !panel().hidden);")
    legend, colours, fidelity, card = page.run("""
      const style = getComputedStyle(document.documentElement);
      return [[...panel().querySelectorAll('.legend span')].map((one) => one.textContent), DATA.segment_names.map((name) => style.getPropertyValue(`--${name}`)),
        [...document.querySelectorAll('td')].map((cell) => cell.textContent).filter((text) => text === 'template').length,
        [...document.querySelectorAll('.card')].map((one) => one.textContent).filter((text) => text.includes('oreign'))];""")
    assert legend == ["prompt", "template"] and len(colours) == len(SEGMENTS) and all(colours) and fidelity == 1
    assert len(card) == 1 and "0.006" in card[0]
    ours = (write_report(folder)).read_text()
    assert all(len(re.findall(rf"--{name}: #", ours)) for name in SEGMENTS)


@in_browser
def test_a_long_note_wraps(page):
    wide, has = page.run("""
      const note = [...document.querySelectorAll('li')].find((one) => one.textContent.includes('box_start'));
      return [note.scrollWidth, note.clientWidth];""")
    assert wide <= has
