"""What the page says of transcoder adapters: graphs that can be walked, sets of latents, and replaced MLPs."""

import json
import re

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from browser import in_browser
from tunediff.evaluations.transcoders import latent_sets, recovery, replacement
from tunediff.folders import write_findings
from tunediff.report import line_of, write_report
from tunediff.report.graphs import MOST_EDGES, MOST_NODES, graphs
from tunediff.shapes import Refused

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
LAYERS, EACH, NODES = 4, 512, 300
PROMPT = ["Question", ":", " Ann", " has", " 1", "2", " apples", " and", " gives", " 5", " away", ".", "\n", " So", " 1", "2", " -", " 5", " is", " 7", ".", " Hmm"]  # fmt: skip
FOLLOWS = [(" Wait", 0.61), (" But", 0.12), (",", 0.09), (" So", 0.05), ("\n\n", 0.03)]


def graph_of(name, seed, prompt=PROMPT, count=NODES):
    """Latents at random places; edges only upwards and to the right; influence as it flows back from the logits."""
    draw = numpy.random.default_rng(seed)
    rows = [("embedding", -1, at, token, -1, 1.0) for at, token in enumerate(prompt)]
    wanted = count - len(prompt) - len(FOLLOWS)
    last = len(prompt) - 1
    for _ in range(wanted):
        layer = int(draw.integers(LAYERS))
        at = last - min(last, int(draw.geometric(0.16)) - 1)
        latent = layer * EACH + int(draw.zipf(1.4)) * 7 % EACH
        rows.append(("latent", layer, at, prompt[at], latent, float(draw.gamma(2, 0.7))))
    rows += [("logit", LAYERS, last, token, -1, probability) for token, probability in FOLLOWS]
    edges = []
    for target, (_, layer, at, *_) in enumerate(rows):
        sources = [n for n, row in enumerate(rows) if row[1] < layer and row[2] <= at]
        for n in draw.choice(sources, min(len(sources), 11), replace=False) if sources else []:
            near = 1 + 3 * (rows[n][2] == at)
            edges.append((int(n), target, float(draw.laplace(0.01, 0.06) * near)))
    flows = numpy.zeros(len(rows))
    flows[-len(FOLLOWS) :] = [probability for _, probability in FOLLOWS]
    into = numpy.zeros(len(rows))
    for _, target, weight in edges:
        into[target] += abs(weight)
    for source, target, weight in sorted(edges, key=lambda edge: -rows[edge[1]][1]):
        flows[source] += flows[target] * abs(weight) / into[target]
    named = list(range(1000, 1000 + len(rows)))
    nodes = [
        {"graph": name, "node": node, "kind": kind, "layer": layer, "position": at, "token": token, "latent": latent,
         "activation": activation, "influence": float(flow)}
        for node, (kind, layer, at, token, latent, activation), flow in zip(named, rows, flows, strict=True)
    ]  # fmt: skip
    return nodes, [{"graph": name, "source": named[s], "target": named[t], "weight": w} for s, t, w in edges]


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def around(name, values, by):
    return {name: values, f"{name}_low": [v - by for v in values], f"{name}_high": [v + by for v in values]}


SETS = (("chosen", 60, None), ("random", 60, 2), ("random", 120, 3))


def sets():
    """Three models, and of each question the chosen latents, and as many at random, two draws, and twice as many, three."""
    whole = {"adapter": (11.2, 820.0, 0.52), "hybrid": (0.4, 310.0, 0.31), "tuned": (12.4, 860.0, 0.56)}
    measured = {
        "necessity": ("adapter", [(3.1, 540.0, 0.5), (10.9, 815.0, 0.51), (11.4, 822.0, 0.53)]),
        "sufficiency": ("hybrid", [(7.7, 690.0, 0.4), (0.6, 330.0, 0.3), (0.5, 325.0, 0.32)]),
        "negation": ("tuned", [(5.2, 610.0, 0.54), (12.0, 855.0, 0.55), (12.6, 866.0, 0.56)]),
    }
    asked = [(None, role, None, None, values, None) for role, values in whole.items()]
    asked += [
        (question, which, size, draws, values, whole[reference])
        for question, (reference, each) in measured.items()
        for (which, size, draws), values in zip(SETS, each, strict=True)
    ]
    rows = []
    for question, which, size, draws, values, before in asked:
        row = {
            "task": "gsm8k",
            "asked": question,
            "set": which,
            "size": size,
            "draws": draws,
            "hesitating": values[0] / 14,
        }
        for n, (name, by) in enumerate((("hesitation_rate", 0.8), ("length", 30.0), ("accuracy", 0.04))):
            change = None if before is None else values[n] - before[n]
            ends = (None, None) if change is None else (change - by, change + by)
            row |= {name: values[n], f"{name}_change": change}
            row |= dict(zip((f"{name}_change_low", f"{name}_change_high"), ends, strict=True))
        rows.append(row)
    return columns(rows)


def tables():
    drawn = [graph_of(f"prompt-{n}", n, PROMPT[: len(PROMPT) - n]) for n in range(8)]
    nodes, edges = ([row for graph in drawn for row in graph[part]] for part in (0, 1))
    prompts = ["".join(PROMPT[: len(PROMPT) - n]) for n in range(8)]
    summed, met = {}, {}
    for row in nodes:
        if row["kind"] == "latent":
            summed[row["latent"]] = summed.get(row["latent"], 0) + row["influence"]
            met.setdefault(row["latent"], set()).add(row["graph"])
    cut = [(d, w, k) for d in ("adapter_first", "tuned_first") for w in ("adapter", "hybrid") for k in range(LAYERS + 1)]  # fmt: skip
    replaced = [k if d == "adapter_first" else LAYERS - k for d, _, k in cut]
    kl = [(0.012 if w == "adapter" else 0.31) * n**1.6 for (_, w, _), n in zip(cut, replaced, strict=True)]
    tokens = [" Wait", " Hmm", HOSTILE, " plus", "\n", " so"]
    latent, kinds = list(range(LAYERS * EACH)), ["strongest", "strongest", "random"]
    steps = range(601)  # the last holds a held-out loss alone
    falling = [1.0 / (1 + n) for n in steps[:-1]]
    return {
        "training": {
            "step": [*steps], "tokens": [100 * n for n in steps], "kl": [*falling, None], "nmse": [*falling, None], "l0": [*falling, None],
            "kl_adapter_first": [0.25 if n % 100 == 0 else None for n in steps], "kl_tuned_first": [0.5 if n % 100 == 0 else None for n in steps],
            "held_out_loss": [0.5 - n / 1500 if n % 60 == 0 else None for n in steps],
        },
        "graphs": {
            "graph": [f"prompt-{n}" for n in range(8)], "prompt": [HOSTILE + prompts[0], *prompts[1:]], "target": [" Wait"] * 8,
            "probability": [0.61 - 0.05 * n for n in range(8)], "nodes": [NODES] * 8, "edges": [len(graph[1]) for graph in drawn],
            "completeness_error": [0.0125] * 8,
        },
        "graph_nodes": columns(nodes),
        "graph_edges": columns(edges),
        "graph_influence": {"latent": list(summed), "layer": [n // EACH for n in summed], "influence": list(summed.values()), "graphs": [len(met[n]) for n in summed]},
        "partial_replacement": {
            "direction": [d for d, _, _ in cut], "with": [w for _, w, _ in cut], "cutoff": [k for _, _, k in cut], "kl": kl,
            "kl_low": [0.9 * v for v in kl], "kl_high": [1.1 * v for v in kl], "lm_loss": [1.9 + v for v in kl],
        },
        "residual_nmse": {"point": list(range(LAYERS + 1)), "adapter": [0.0, 0.02, 0.04, 0.07, 0.1], "hybrid": [0.0, 0.11, 0.24, 0.41, 0.6]},
        "adapter_layers": {"layer": list(range(LAYERS)), "l0": [3.5, 6.25, 9.0, 12.25], "dead_fraction": [0.02, 0.01, 0.0, 0.05], "decoder_norm": [0.7, 0.8, 1.0, 1.3]},
        "adapter_recovery": {
            "task": ["gsm8k"] * 3, "measure": ["accuracy", "tokens a response", "hesitations a response"], "base": [0.21, 250.0, 0.1], "hybrid": [0.31, 310.0, 0.2],
            "adapter": [0.52, 820.0, 9.2], "tuned": [0.56, 860.0, 10.7], **around("recovered_of_hybrid", [0.84, 0.93, 0.86], 0.07), **around("recovered_of_base", [0.886, 0.934, 0.858], 0.05),
        },
        "latent_sets": sets(),
        "latents": {"latent": latent, "layer": [n // EACH for n in latent], "firing_rate": [0.0 if n % 11 == 3 else 0.02 / (1 + n % 97) for n in latent],
                    "firing_rate/thinking": [0.02] * len(latent), "firing_rate/answer": [0.01] * len(latent), "max_activation": [1.0 + n % 5 for n in latent]},
        "examples": {
            "latent": [n for n in latent for _ in kinds], "kind": kinds * len(latent), "rank": [0, 1, 0] * len(latent), "quantile": [None] * 3 * len(latent), "document": [3, 5, 8] * len(latent),
            "place": [11, 2, 7] * len(latent), "position": [2, 1, 0] * len(latent), "activation": [2.0, 1.0, 0.0] * len(latent),
            "tokens": [some for n in latent for some in ([" is", " 7", tokens[n % 6]], [" a", tokens[(n + 1) % 6], " b"], [" some", " other", " text"])],
            "activations": [[0.0, 0.5, 2.0], [0.0, 1.0, 0.0], [0.0] * 3] * len(latent), "segments": [["thinking"] * 3] * 3 * len(latent),
        },
    }  # fmt: skip


STUDY = {
    "model_pair": "tuned vs base", "dictionary": "transcoder adapter, TopK", "layer": "0-3", "hookpoint": "mlp_in", "latents": LAYERS * EACH,
    "streams": ", ".join(f"adapter.mlp_in.{n}" for n in range(LAYERS)), "tokens": 1_000_000,
}  # fmt: skip


def make_run(folder, content):
    (folder / "tables").mkdir(parents=True)
    for name, some in content.items():
        pyarrow.parquet.write_table(pyarrow.table(some), folder / "tables" / f"{name}.parquet")
    told = {
        "kl_recovered": 0.962,
        "kl/adapter": 0.11,
        "kl/hybrid": 2.85,
        "nmse/adapter": 0.046,
        "nmse/hybrid": 0.276,
        "l0": 7.75,
        "dead_fraction": 0.02,
    }
    told = {f"replacement/{name}": value for name, value in told.items()} | {
        "adapter_recovery/gsm8k/accuracy/recovered_of_hybrid": 0.84
    }
    words = {"kl_recovered": "KL recovered", "accuracy/recovered_of_hybrid": "accuracy recovered on gsm8k", "l0": "L0 a layer"}  # fmt: skip
    findings = [{"name": name, "value": value, "line": next((words[end] for end in words if name.endswith(f"/{end}")), ""), "low": 0.95 * value, "high": 1.01 * value, "meaning": f"what {name} is"} for name, value in told.items()]  # fmt: skip
    (folder / "findings.json").write_text(
        json.dumps({"identity": "abc", "study": STUDY, "findings": findings, "notes": []})
    )
    write_findings(folder, drawn(content), {"identity": "abc", "study": STUDY})
    return write_report(folder)


def drawn(content):
    """The figures that the evaluations would yield with these tables."""
    if "adapter_recovery" in content:
        yield from recovery.figures(content["adapter_recovery"])
        nmse = dict(content["residual_nmse"])
        yield from replacement.partial_figures(content["partial_replacement"])
        yield replacement.residual_figure(nmse.pop("point"), nmse)
        yield replacement.layers_figure(content["adapter_layers"])
        rows = zip(*content["latent_sets"].values(), strict=True)
        yield from latent_sets.figures([dict(zip(content["latent_sets"], row, strict=True)) for row in rows])


@pytest.fixture(scope="module")
def content():
    return tables()


@pytest.fixture(scope="module")
def report(tmp_path_factory, content):
    return make_run(tmp_path_factory.mktemp("graphs") / "run", content)


@pytest.fixture(scope="module")
def page(browser, report):
    shown = browser.open(report)
    browser("Emulation.setDeviceMetricsOverride", shown.session, width=1280, height=900, deviceScaleFactor=1, mobile=False)  # fmt: skip
    shown.run("await wait(() => document.querySelectorAll('.node').length === 300);")
    return shown


# -- from tables to what is drawn ------------------------------------------------------------------------------------


def arrow(**content):
    return {name: pyarrow.table(some) for name, some in content.items()}


def a_graph(nodes, edges):
    """Nodes are (kind, layer, position, token, latent, activation, influence), edges (source, target, weight)."""
    names = ("kind", "layer", "position", "token", "latent", "activation", "influence")
    rows = [{"graph": "one", "node": n, **dict(zip(names, node, strict=True))} for n, node in enumerate(nodes)]
    given = {"graph": ["one", "undrawn"], "prompt": ["a b", "c d"], "target": [" c", " e"], "probability": [0.5, 0.5]}
    links = {"graph": ["one"] * len(edges)} | columns([dict(zip(("source", "target", "weight"), edge, strict=True)) for edge in edges])  # fmt: skip
    return arrow(graphs=given, graph_nodes=columns(rows), graph_edges=links)


SMALL = [
    ("embedding", -1, 0, "a", -1, None, 0.1), ("embedding", -1, 1, " b", -1, None, 0.2),
    ("latent", 0, 1, " b", 5, 1.5, 0.3), ("latent", 1, 1, " b", 9, 2.5, 0.6), ("logit", 2, 1, " c", -1, 7.0, 0.5),
]  # fmt: skip


def test_a_packed_graph_has_its_edges_by_strength_and_no_embedding_that_leads_nowhere():
    shown, packed = graphs(a_graph(SMALL, [(1, 2, 0.25), (2, 3, -4.0), (3, 4, 1.23456)]))
    assert shown["list"]["graph"] == ["one"] and shown["left_out"] == 1 and list(packed) == ["graph-0"]
    found = packed["graph-0"]
    tokens = [found["vocabulary"][n] for n in found["token"]]
    named = list(zip(found["kind"], found["latent"], tokens, strict=True))
    assert sorted(named) == [("a", 5, " b"), ("a", 9, " b"), ("e", -1, " b"), ("l", -1, " c")]
    ends = [(named[s][1], named[t][1]) for s, t in zip(found["source"], found["target"], strict=True)]
    assert ends == [(5, 9), (9, -1), (-1, 5)] and found["weight"] == [-4.0, 1.23, 0.25]


def test_a_graph_too_large_to_draw_keeps_its_latents_of_most_influence():
    many = MOST_NODES + 50
    nodes = [*SMALL[:2], *(("latent", 0, 1, " b", n, 1.0, n / many) for n in range(many)), SMALL[4]]
    _, packed = graphs(a_graph(nodes, [(1, n, 1.0 + n) for n in range(2, many + 2)]))
    found = packed["graph-0"]
    assert len(found["kind"]) == MOST_NODES and found["left_out"] == 52 and found["edges"] == many
    assert min(n for n in found["latent"] if n >= 0) == 52 and len(found["weight"]) == many - 52 <= MOST_EDGES


def test_latents_by_influence_are_packed_with_the_largest_first():
    influence = {"latent": [4, 9, 2], "layer": [0, 1, 0], "influence": [0.2, 0.5, 0.3], "graphs": [1, 2, 3]}
    shown, packed = graphs(arrow(graph_influence=influence))
    assert shown == {"influence": True} and packed["graph-influence"]["latent"] == [9, 2, 4]
    assert packed["graph-influence"]["graphs"] == [2, 3, 1]


def test_an_edge_of_a_node_that_is_not_there_is_refused():
    with pytest.raises(Refused, match="node 17"):
        graphs(a_graph(SMALL, [(17, 2, 0.25)]))


def test_without_tables_there_is_nothing_to_draw():
    assert graphs({}) == ({}, {})


@in_browser
@pytest.mark.parametrize("names", [("graphs", "graph_nodes", "graph_edges"), ("graph_influence",)])
def test_graphs_alone_or_influence_alone_are_enough_for_a_page(tmp_path, browser, content, names):
    shown = browser.open(make_run(tmp_path / "run", {name: content[name] for name in names}))
    script = "return [document.querySelectorAll('.graph-entry').length, document.querySelectorAll('#influence tbody tr').length, document.querySelectorAll('#influence a').length]"
    assert shown.run(script) == ([8, 0, 0] if "graphs" in names else [0, 200, 0])


def test_eight_graphs_of_three_hundred_nodes_stay_small(report):
    sizes = [len(part) for part in re.findall(r'id="packed-graph-\d">([^<]+)', report.read_text())]
    assert len(sizes) == 8 and sum(sizes) < 300_000


def test_a_run_is_told_first_by_what_its_adapter_recovers_of_each_task(report):
    findings = json.loads((report.parent / "findings.json").read_text())["findings"]
    line = line_of({finding["name"]: finding for finding in findings})
    assert line == "KL recovered 0.962, L0 a layer 7.75, accuracy recovered on gsm8k 0.84"


# -- what is drawn ---------------------------------------------------------------------------------------------------

WALK = """
const nodes = () => [...document.querySelectorAll('.node')], node = (n) => document.querySelector(`[data-node="${n}"]`);
const click = (one) => one.dispatchEvent(new MouseEvent('click', { bubbles: true }));
const title = () => document.querySelector('.reading-node h3')?.textContent, edges = (kind) => document.querySelectorAll(`.edge${kind}`).length;
const side = (n) => [...document.querySelectorAll('.sides > div')[n].querySelectorAll('li')].map((entry) => [entry.querySelector('.value').textContent, entry.querySelector('.what').firstChild.textContent]);
const entries = [...document.querySelectorAll('.graph-entry')];
const open = async (n) => { click(entries[n]); await wait(() => entries[n].getAttribute('aria-pressed') === 'true' && [...document.querySelectorAll('figcaption')].some((one) => one.textContent.includes(`prompt-${n}:`))); };
"""


@pytest.fixture
def walk(page):
    def run(script):
        return page.run(f"{WALK} set('search nodes', ''); await open(0); {script}")

    return run


@in_browser
def test_a_node_that_is_clicked_shows_its_strongest_inputs_and_outputs_by_weight(walk, content):
    script = """
      const found = [];
      for (const one of nodes().filter((one) => one.classList.contains('latent')).slice(0, 40)) { click(one); found.push([title(), document.querySelector('.reading-node header').textContent, side(0), side(1), edges('.own')]); }
      return found;"""
    nodes, edges = ([row for row in content[name]["graph"]] for name in ("graph_nodes", "graph_edges"))
    node = {content["graph_nodes"]["node"][n]: n for n, graph in enumerate(nodes) if graph == "prompt-0"}
    given = content["graph_nodes"]
    said = walk(script)
    told = 0
    for title, header, inputs, outputs, own in said:
        latent, layer = map(int, re.match(r"Latent (\d+), layer (\d+)", title).groups())
        activation = float(re.search(r"activation ([\d.e-]+)", header).group(1))
        place = [key for key, n in node.items() if given["latent"][n] == latent and given["activation"][n] == pytest.approx(activation, rel=6e-3, abs=6e-4)]  # fmt: skip
        if len(place) != 1:
            continue  # the same latent elsewhere, as active
        told += 1
        assert layer == latent // EACH
        of = content["graph_edges"]
        mine = [n for n, graph in enumerate(edges) if graph == "prompt-0"]
        for shown, here, there in ((inputs, "target", "source"), (outputs, "source", "target")):
            expected = sorted((of["weight"][n] for n in mine if of[here][n] == place[0]), key=abs, reverse=True)
            assert [float(weight) for weight, _ in shown] == pytest.approx(expected[:12], rel=6e-3, abs=6e-4), there
        assert own == min(120, sum(place[0] in (of["source"][n], of["target"][n]) for n in mine))
    assert told > 30


@in_browser
def test_a_click_on_an_input_goes_there_and_back_by_its_outputs(walk):
    first, there, names = walk("""
      click(nodes().find((one) => one.classList.contains('latent') && (click(one), side(0).some(([, what]) => what.startsWith('latent')))));
      const first = title(), entry = [...document.querySelectorAll('.sides > div')[0].querySelectorAll('li button')].find((one) => one.textContent.includes('latent'));
      const named = entry.querySelector('.what').firstChild.textContent.trim();
      click(entry);
      return [first, [title(), named], side(1).map(([, what]) => what.trim())];""")
    latent, layer = re.match(r"latent (\d+) · layer (\d+)", there[1]).groups()
    assert there[0].startswith(f"Latent {latent}, layer {layer},")
    latent, layer = re.match(r"Latent (\d+), layer (\d+)", first).groups()
    assert f"latent {latent} · layer {layer}" in names


@in_browser
def test_the_slider_draws_so_many_edges_the_strongest_first(walk, content):
    drawn, widest = walk("""
      const found = [];
      for (const n of [0, 7, 250, 400]) { set('edges by weight', n); found.push(edges('')); }
      set('edges by weight', 7);
      return [found, [...document.querySelectorAll('.edge')].map((edge) => edge.classList.contains('lowers'))];""")
    of = content["graph_edges"]
    weights = sorted((w for w, graph in zip(of["weight"], of["graph"], strict=True) if graph == "prompt-0"), key=abs)
    assert drawn == [0, 7, 250, 400] and widest == [weight < 0 for weight in weights[:-8:-1]]


@in_browser
def test_edges_are_wider_by_weight_and_latents_larger_and_darker_by_influence(walk, content):
    widths, circles, logits, listed = walk("""
      set('edges by weight', 300);
      const number = (one, name) => Number(one.getAttribute(name)), svg = document.querySelector('svg.attribution');
      return [[...svg.querySelectorAll('.edge')].map((one) => number(one, 'stroke-width')),
        nodes().filter((one) => one.classList.contains('latent')).map((one) => [number(one, 'r'), number(one, 'fill-opacity')]),
        [...svg.querySelectorAll('text')].map((one) => one.textContent).filter((text) => text.endsWith(' %')),
        [...document.querySelectorAll('.reading-node li')].map((one) => [Number(one.querySelector('.value').textContent), parseFloat(one.querySelector('.weight i').style.width)])];""")
    of, given = content["graph_edges"], content["graph_nodes"]
    weights = [abs(w) for w, graph in zip(of["weight"], of["graph"], strict=True) if graph == "prompt-0"]
    weights.sort(reverse=True)
    assert widths == pytest.approx([0.5 + 3.6 * weight / weights[0] for weight in weights[:300]], abs=0.03)
    influence = [given["influence"][n] for n, kind in enumerate(given["kind"]) if (kind, given["graph"][n]) == ("latent", "prompt-0")]  # fmt: skip
    shares = sorted(((value / max(influence)) ** 0.5 for value in influence), reverse=True)
    circles.sort(reverse=True)
    assert [r for r, _ in circles] == pytest.approx([2.8 + 4 * share for share in shares], abs=0.07)
    assert [shade for _, shade in circles] == pytest.approx([0.35 + 0.65 * share for share in shares], abs=0.01)
    assert logits == ["61 %", "12 %", "9 %", "5 %", "3 %"]
    assert [value for value, _ in listed] == pytest.approx(sorted(influence, reverse=True)[:24], rel=6e-3, abs=6e-4)
    assert [wide for _, wide in listed] == pytest.approx([max(2, 100 * share**2) for share in shares[:24]], abs=0.8)


@in_browser
def test_curves_of_training_bear_the_words_and_colours_of_their_columns(page):
    said, drawn = page.run("""
      const cut = [...document.querySelectorAll('figure')].find((one) => one.textContent.includes('KL, cut at a layer'));
      return [cut.querySelector('figcaption').textContent, [...cut.querySelectorAll('polyline')].map((one) => [one.getAttribute('stroke'), Number(one.getAttribute('points').split(' ').at(-1).split(',')[1])])];""")
    assert "KL, cut at a layer: adapter below 0.250, adapter above 0.500" in said
    (below, low), (above, high) = drawn
    assert (below, above) == ("var(--adapter)", "var(--tuned)") and low > high


@in_browser
def test_the_search_lights_a_latent_a_layer_or_a_token(walk, content):
    given = content["graph_nodes"]
    here = [n for n, graph in enumerate(given["graph"]) if graph == "prompt-0"]
    latent = next(given["latent"][n] for n in here if given["latent"][n] >= 100)
    found = walk(f"""
      const lit = () => document.querySelectorAll('.node.met').length, found = [];
      for (const asked of ['{latent}', 'layer 2', 'hmm', 'nowhere']) {{ set('search nodes', asked); found.push([lit(), document.querySelectorAll('.node.dim').length]); }}
      set('search nodes', '{latent}');
      pick('search nodes').dispatchEvent(new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true }}));
      const reached = title();
      set('search nodes', '');
      return [found, reached, lit()];""")
    counts = [sum(given["latent"][n] == latent for n in here), sum(given["layer"][n] == 2 for n in here)]
    assert [lit for lit, _ in found[0][:2]] == counts and all(lit + dim == NODES for lit, dim in found[0])
    assert found[0][2][0] > 0 and found[0][3][0] == 0
    assert found[1].startswith(f"Latent {latent}, ") and found[2] == 0


@in_browser
def test_arrow_keys_walk_up_to_the_logits_and_escape_leaves(walk):
    said = walk("""
      const svg = document.querySelector('svg.attribution'), press = (key) => svg.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true })), passed = [];
      press('ArrowUp');
      for (let n = 0; n < 40 && !/^Logit/.test(title()); n += 1) { passed.push(title()); press('ArrowUp'); }
      const top = title();
      press('ArrowRight');
      const right = title(), status = document.querySelector('#to-attribution-graphs .readout').textContent;
      press('Escape');
      return [passed.map((row) => Number(row.match(/layer (\\d)/)[1])), top, right, status, title() ?? null, panel().hidden];""")
    layers, top, right, status, after, closed = said
    assert layers == sorted(layers) and top.startswith("Logit of") and right.startswith("Logit of")
    assert "probability 0." in status and after is None and closed


@in_browser
def test_examples_of_a_latent_stand_beside_its_edges_and_its_link_opens_it_below(walk):
    found = walk("""
      click(nodes().find((one) => one.classList.contains('latent')));
      await wait(() => document.querySelectorAll('.reading-node .example').length === 2);
      const link = document.querySelector('.reading-node header a');
      link.click();
      await wait(() => !panel().hidden);
      const found = [link.textContent, panel().querySelector('h2').textContent, panel().textContent.includes('layer'), document.querySelectorAll('img').length, document.title];
      key('Escape');
      return found;""")
    assert found[0] == f"open {found[1].lower()} below" and found[2:4] == [True, 0] and found[4] != "broken"


@in_browser
def test_latents_by_influence_are_sorted_and_linked(page, content):
    first, layers, linked = page.run("""
      const cells = (n) => [...document.querySelectorAll('#influence tbody tr')].map((row) => Number(row.cells[n].textContent));
      const first = cells(0), heads = () => document.querySelectorAll('#influence th button');
      heads()[1].click();
      const layers = cells(1);
      heads()[2].click();
      return [first, layers, document.querySelector('#influence a').getAttribute('href')];""")
    given = content["graph_influence"]
    order = sorted(zip(given["influence"], given["latent"], strict=True), reverse=True)
    assert first == [latent for _, latent in order[:200]] and linked == f"#latent-{first[0]}"
    assert layers == sorted(given["layer"], reverse=True)[:200]


@in_browser
def test_curves_of_replaced_layers_and_bars_of_sets_say_the_numbers_of_their_tables(page, content):
    plots, bars, shares, latents = page.run("""
      const titles = (id) => [...document.querySelectorAll(`#to-${id} circle title, #to-${id} g title`)].map((one) => one.textContent);
      return [titles('replacing-mlps-layer-by-layer'), titles('latent-sets-needed-enough-negated'), document.querySelector('#to-what-the-adapter-recovers').textContent, [...document.querySelectorAll('#latents th')].map((head) => head.textContent)];""")
    assert sum(said.startswith("adapter, layers before the cut 4: 0.1") for said in plots) == 1
    assert "hybrid, after so many layers 3: 0.410" in plots and any("layer 1: 6.250" in said for said in plots)
    assert not any(re.search(r"before the cut [04]: 0( |$)", said) for said in plots)  # 0 has no logarithm
    assert "without the 60 chosen: hesitations per 1,000 tokens 3.100 (2.300 to 3.900)" in bars
    assert "hybrid with 120 at random, 3 draws: accuracy 0.320 (0.280 to 0.360)" in bars
    assert "hybrid with 60 at random, 2 draws: accuracy 0.300 (0.260 to 0.340)" in bars
    assert "less the 60 chosen: tokens a response 610 (580 to 640)" in bars
    assert sum(said.startswith("adapted model: ") for said in bars) == 8  # of two questions
    for number in ("0.840", "0.770 to 0.910", "0.886", "0.836 to 0.936"):
        assert number in shares, number
    assert latents[:2] == ["latent", "layer"]


@in_browser
def test_an_adapters_page_leads_with_it_and_asks_for_nothing_that_it_cannot_have(page):
    cards, text = page.run("return [document.querySelector('.cards').textContent, document.querySelector('main').textContent]")  # fmt: skip
    for shown in ("KL recovered by the adapter0.962", "Accuracy recovered, gsm8k0.840", "L0 a layer7.750"):
        assert shown in cards
    assert "KL(tuned || adapted): training 0.002, held out 0.100" in text  # seldom taken, and none of it is left out
    assert "was not run" not in text and "undefined" not in text and "NaN" not in text


@in_browser
@pytest.mark.parametrize("wide", [390, 1600, 1280])
def test_the_page_is_never_wider_than_the_window(browser, page, wide):
    browser("Emulation.setDeviceMetricsOverride", page.session, width=wide, height=900, deviceScaleFactor=1, mobile=False)  # fmt: skip
    script = """
      const scroller = document.querySelector('.graph');
      await wait(() => Math.abs(Math.max(...[...document.querySelectorAll('svg.attribution')].map((one) => one.clientWidth)) - scroller.scrollWidth) < 4);
      return [document.documentElement.scrollWidth <= innerWidth, scroller.clientWidth <= innerWidth, document.querySelectorAll('.node').length];"""
    assert page.run(script) == [True, True, NODES]
