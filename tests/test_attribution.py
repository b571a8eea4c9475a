"""Attribution graphs: sums that must hold, edges against a model whose frozen parts are held by hand, graphs made by hand."""

import dataclasses
import itertools
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunediff.attribution import attribute, influence, linearised, prune, summed, write_graph
from tunediff.attribution.influence import fewest
from tunediff.attribution.linearised import _activation
from tunediff.dictionary import L1, TopK, TranscoderAdapter
from tunediff.evaluations import AttributionGraphs, Trained
from tunediff.hookpoints import Point, decoder_layers, reading
from tunediff.models.hybrid import adapted, hybrid
from tunediff.shapes import ADAPTER, TRANSCODER, Finding, Note, Refused, Stream, Table
from tunediff.text import Text
from tunediff.toy import language

WIDTH, LAYERS, TOKENS, LATENTS = 32, 3, 50, 24
COMMON = {
    "vocab_size": TOKENS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GEMMA = {**COMMON, "head_dim": 8, "sliding_window": 5}
ARCHITECTURES = {
    "qwen2": COMMON,
    "llama": {**COMMON, "attention_bias": True, "mlp_bias": True},
    "gpt2": {"vocab_size": TOKENS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1},
    "gemma2": {**GEMMA, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": GEMMA,
}  # fmt: skip
IDS = torch.randint(3, TOKENS, (9,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def random_weights(module, seed):
    """Large enough that no part of it is nearly linear, biases and gains of norms included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(drawn / WIDTH**0.5)
        elif name.endswith("weight"):
            parameter.add_(0.2 * drawn)
        else:
            parameter.copy_(0.2 * drawn)
    return module


def adapted_model(architecture, *, sparsity=None, dtype=torch.float64):
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    tuned, base = (random_weights(AutoModelForCausalLM.from_config(config).to(dtype).eval(), seed) for seed in (0, 1))
    streams = [Stream(ADAPTER, "mlp_in", layer, WIDTH) for layer in range(LAYERS)]
    adapter = TranscoderAdapter(streams, latents=LATENTS, sparsity=sparsity or TopK(4))
    adapter = random_weights(adapter.to(dtype), 2)
    return adapted(hybrid(tuned, base), adapter).requires_grad_(False), adapter


def test_logits_of_a_bfloat16_model_are_explained_in_float32():
    """Of a large vocabulary their distances from the mean are small against what bfloat16 rounds away."""
    model, adapter = adapted_model("qwen2", dtype=torch.bfloat16)
    graph = attribute(model, adapter, IDS, most_logits=4)
    with torch.no_grad(), linearised(model) as seen:
        model(IDS[None])
    logits = seen.last.double() @ model.get_output_embeddings().weight.double().T
    assert torch.allclose(graph.value[len(graph.number) :], (logits - logits.mean())[graph.logits].float(), rtol=1e-5)


@pytest.fixture(scope="module")
def qwen():
    return adapted_model("qwen2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_the_model_says_is_what_it_said(architecture):
    model, _ = adapted_model(architecture, dtype=torch.float32)
    with torch.no_grad():
        said = model(IDS[None]).logits
    with linearised(model):
        again = model(IDS[None]).logits
    assert again.requires_grad and torch.allclose(again, said, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"drop_first": True, "most_latents": 30, "batch": 4}])
def test_edges_rest_and_constant_sum_to_every_latent_and_logit(architecture, settings):
    model, adapter = adapted_model(architecture, sparsity=L1(0.0))
    graph = attribute(model, adapter, IDS, **settings)
    assert torch.allclose(graph.edges.sum(1) + graph.rest + graph.constant, graph.value, rtol=1e-3, atol=1e-5)
    assert graph.completeness_error < 1e-5
    latents = len(graph.number)
    assert torch.allclose(graph.value[:latents], graph.activation)
    with torch.no_grad(), reading(model, [Point(TRANSCODER, n) for n in range(LAYERS)], stop=False) as read:
        logits = model(IDS[None]).logits[0, -1]
    here = [read[Point(TRANSCODER, int(n))][0] for n in graph.layer]
    true = torch.stack([one[p, n] for one, p, n in zip(here, graph.position, graph.within, strict=True)])
    assert torch.allclose(true.float(), graph.activation, atol=1e-6)
    assert torch.allclose(graph.prediction[graph.logits], graph.probability)
    assert torch.allclose(graph.prediction, logits.float().softmax(-1), atol=1e-6)
    if architecture not in ("gemma2",):  # whose logits are capped after the head, which is explained before
        assert torch.allclose(graph.value[latents:], (logits - logits.mean())[graph.logits].float(), atol=1e-4)
    assert bool((graph.constant.abs() > 1e-3).any()) and bool((graph.rest != 0).any()) == bool(settings)
    if settings:
        assert latents == 30 and not graph.edges[:, latents].any() and int(graph.position.min()) > 0
        assert graph.left_out == sum(int((read[Point(TRANSCODER, n)] != 0).sum()) for n in range(LAYERS)) - 30


class ByHand:
    """Qwen2 and Llama with an adapter, written out, as an affine function of embeddings and latents: denominators, attention
    weights and both factors of the gate are those of one true pass."""

    def __init__(self, model, ids):
        self.model, self.layers = model, decoder_layers(model)
        inputs, self.scale, self.gate, self.up, handles = {}, {}, {}, {}, []
        norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
        for module in norms:
            handles.append(module.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]})))
        for n, layer in enumerate(self.layers):
            mlp = layer.mlp.mlp
            handles.append(mlp.gate_proj.register_forward_hook(lambda m, a, out, n=n: self.gate.update({n: out[0]})))
            handles.append(mlp.up_proj.register_forward_hook(lambda m, a, out, n=n: self.up.update({n: out[0]})))
        own = model.config._attn_implementation
        model.set_attn_implementation("eager")
        points = [Point(TRANSCODER, n) for n in range(LAYERS)]
        with torch.no_grad(), reading(model, points, stop=False) as read:
            out = model(ids[None], output_attentions=True)
        model.set_attn_implementation(own)
        for handle in handles:
            handle.remove()
        self.scale = {m: (x[0].square().mean(-1, keepdim=True) + m.variance_epsilon).rsqrt() for m, x in inputs.items()}
        self.weights, self.logits = [w[0] for w in out.attentions], out.logits[0, -1]
        self.embedded = model.get_input_embeddings()(ids).detach()
        self.latents = [read[point][0] for point in points]

    def norm(self, module, x):
        return x * self.scale[module] * module.weight

    @torch.no_grad()
    def __call__(self, embedded, latents):
        h, pre = embedded, []
        for n, layer in enumerate(self.layers):
            attention, mlp, transcoder = layer.self_attn, layer.mlp.mlp, layer.mlp.transcoder
            values = (
                attention.v_proj(self.norm(layer.input_layernorm, h)).view(len(h), 2, -1).repeat_interleave(2, dim=1)
            )
            h = h + attention.o_proj(torch.einsum("hqk,khd->qhd", self.weights[n], values).flatten(1))
            x = self.norm(layer.post_attention_layernorm, h)
            pre.append(transcoder.pre_activations(x))
            share = torch.sigmoid(self.gate[n])
            first, second = mlp.gate_proj(x) * share * self.up[n], self.gate[n] * share * mlp.up_proj(x)
            h = h + mlp.down_proj((first + second) / 2) + transcoder.decode(latents[n])
        return pre, self.model.lm_head(self.norm(self.model.model.norm, h)[-1])


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_an_edge_is_what_a_target_changes_by_where_all_that_is_frozen_is_held(architecture):
    model, adapter = adapted_model(architecture)
    graph, hand = attribute(model, adapter, IDS), ByHand(model, IDS)
    latents = len(graph.number)

    def targets(embedded, values):
        pre, logits = hand(embedded, values)
        here = [pre[n][p, w] for n, p, w in zip(graph.layer, graph.position, graph.within, strict=True)]
        return torch.stack([*here, *(logits[graph.logits] - logits.mean())]).float()

    assert torch.allclose(hand(hand.embedded, hand.latents)[1], hand.logits, atol=1e-6)  # it is the model
    before = targets(hand.embedded, hand.latents)
    assert torch.allclose(before, graph.value, atol=1e-5)
    moved = 0
    for source in range(0, latents, 5):
        values = [one.clone() for one in hand.latents]
        values[graph.layer[source]][graph.position[source], graph.within[source]] *= 2
        change = targets(hand.embedded, values) - before
        assert torch.allclose(change, graph.edges[:, source], rtol=1e-3, atol=1e-5)
        moved += int((change.abs() > 1e-2).sum())
    assert moved > 100
    for position in range(len(IDS)):
        embedded = hand.embedded.clone()
        embedded[position] *= 2
        change = targets(embedded, hand.latents) - before
        assert torch.allclose(change, graph.edges[:, latents + position], rtol=1e-3, atol=1e-5)


def test_an_edge_leads_to_a_later_layer_and_never_to_an_earlier_position(qwen):
    graph = attribute(*qwen, IDS)
    latents = len(graph.number)
    among = graph.edges[:latents, :latents] != 0
    assert among.any() and bool((graph.layer[None] < graph.layer[:, None])[among].all())
    assert bool((graph.position[None] <= graph.position[:, None])[among].all())
    target, position = (graph.edges[:latents, latents:] != 0).nonzero().T
    assert bool((position <= graph.position[target]).all())


def test_fewer_latents_are_chosen_by_what_is_known_so_far_and_have_the_edges_they_have_among_all(qwen):
    whole = attribute(*qwen, IDS)
    some = attribute(*qwen, IDS, most_latents=20, batch=2)
    where = {place: n for n, place in enumerate(zip(whole.number.tolist(), whole.position.tolist(), strict=True))}
    rows = [where[place] for place in zip(some.number.tolist(), some.position.tolist(), strict=True)]
    rows += range(len(whole.number), len(whole.edges))
    columns = rows[:20] + list(range(len(whole.number), whole.edges.shape[1]))
    assert torch.allclose(whole.edges[rows][:, columns], some.edges, atol=1e-6)
    chosen, logits = [], list(range(len(whole.number), len(whole.edges)))
    while len(chosen) < 20:  # those with the most influence by the rows that are known, eight at a time
        known = whole.edges[chosen + logits]
        strength = influence(known, whole.probability, torch.tensor(chosen, dtype=torch.long))[: len(whole.number)]
        strength[chosen] = -1
        chosen += strength.topk(min(8, 20 - len(chosen))).indices.tolist()
    assert sorted(chosen) == rows[:20]


def test_one_target_alone_is_the_logit_of_its_token(qwen):
    graph = attribute(*qwen, IDS, target=7)
    assert graph.logits.tolist() == [7] and torch.equal(graph.probability, graph.prediction[[7]])
    likeliest = attribute(*qwen, IDS, logits_mass=1.0, most_logits=3)
    assert likeliest.logits.tolist() == likeliest.prediction.topk(3).indices.tolist()
    few = attribute(*qwen, IDS, logits_mass=float(likeliest.probability[:2].sum()) - 1e-4)
    assert few.logits.tolist() == likeliest.logits.tolist()[:2]


class Broken(Exception):
    pass


def test_everything_is_as_it_was_after_an_exception(qwen):
    model, _ = qwen
    own, asked = model.config._attn_implementation, [p.requires_grad for p in model.parameters()]
    assert not any(asked)
    with torch.no_grad():
        said = model(IDS[None]).logits
    with pytest.raises(Broken), linearised(model):
        assert model.config._attn_implementation != own
        raise Broken
    assert model.config._attn_implementation == own and [p.requires_grad for p in model.parameters()] == asked
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(IDS[None]).logits, said)


def test_what_has_no_rule_is_refused_before_anything_runs(qwen):
    model, _ = adapted_model("qwen2")
    layer = decoder_layers(model)[1]
    layer.mlp.mlp.gate_up = layer.mlp.mlp.gate_proj
    del layer.mlp.mlp.gate_proj
    with pytest.raises(Refused, match="MLP Qwen2MLP is neither two matrices"), linearised(model):
        pass
    with pytest.raises(Refused, match="one prompt at a time"):
        attribute(*qwen, IDS[None])


def test_an_activation_at_zero_has_the_slope_that_it_has_there():
    for module, slope in ((torch.nn.SiLU(), 0.5), (torch.nn.GELU(), 0.5), (torch.nn.ReLU(), 0.0)):
        x = torch.tensor([0.0, 2.0, -1.0], requires_grad=True)
        out = _activation(1.0, module, (x,), module(x))
        assert torch.equal(out, module(x))
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.allclose(gradient, torch.cat([torch.tensor([slope]), (module(x) / x)[1:]]))


# -- graphs made by hand -----------------------------------------------------------------------------------------------


def small():
    """Latents 0 -> 1, one position, one logit with probability 0.8: shares 3/4 and 1/4 into latent 1, 1/5 and 4/5 into the
    logit; latent 0 is the embedding's."""
    edges = torch.tensor([[0.0, 0.0, 2.0], [-3.0, 0.0, 1.0], [0.0, 4.0, -1.0]])
    return edges, torch.tensor([0.8])


def test_influence_is_the_sum_over_paths_of_products_of_shares():
    edges, probability = small()
    through_1 = 0.8 * 4 / 5
    through_0 = through_1 * 3 / 4
    expected = torch.tensor([through_0, through_1, 0.8 / 5 + through_1 / 4 + through_0])
    assert torch.allclose(influence(edges, probability), expected)
    partial = influence(edges[[1, 2]], probability, torch.tensor([1]))  # latent 0 is not explained yet
    assert torch.allclose(partial, torch.tensor([through_0, through_1, 0.8 / 5 + through_1 / 4]))


def test_the_fewest_that_have_a_share_have_it_and_one_fewer_have_not():
    scores = torch.tensor([0.0, 5.0, 1.0, 3.0, 1.0, 0.0])
    assert fewest(scores, 0.5).tolist() == [False, True, False, False, False, False]
    assert fewest(scores, 0.51).tolist() == [False, True, False, True, False, False]
    assert fewest(scores, 0.81).tolist() == fewest(scores, 1.0).tolist() == [False, True, True, True, True, False]
    assert not fewest(torch.zeros(3), 0.8).any()


def test_pruning_keeps_the_share_that_was_asked_and_no_latent_without_a_way_in_and_out():
    edges, probability = small()
    whole = prune(edges, probability, nodes=1.0, links=1.0)
    assert whole.latents.all() and torch.equal(whole.edges, edges != 0)
    assert torch.allclose(whole.cumulative.max(), torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    latents, positions, logits = 60, 8, 3
    edges = torch.randn(latents + logits, latents + positions, generator=generator) ** 3
    edges[:latents, :latents] = edges[:latents, :latents].tril(-1)
    probability = torch.tensor([0.5, 0.3, 0.1])
    pruned = prune(edges, probability, nodes=0.7, links=0.9)
    assert (
        pruned.edges[:latents].any(1)[pruned.latents].all() and pruned.edges[:, :latents].any(0)[pruned.latents].all()
    )
    assert not pruned.edges[:latents][~pruned.latents].any() and not pruned.edges[:, :latents][:, ~pruned.latents].any()
    kept = fewest(pruned.influence, 0.7)[:latents]
    assert torch.equal(kept, pruned.latents)  # here all of them have a way in and out
    rows, columns = torch.cat([kept, torch.ones(logits).bool()]), torch.cat([kept, torch.ones(positions).bool()])
    part = edges[rows][:, columns]
    reaching = torch.cat([influence(part, probability)[: int(kept.sum())], probability])
    scores = part.abs() / part.abs().sum(1, keepdim=True) * reaching[:, None]
    strong = pruned.edges[rows][:, columns]
    assert scores[strong].sum() >= 0.9 * scores.sum() > scores[strong].sum() - scores[strong].min()
    with pytest.raises(Refused, match="nodes=1.2 is no share"):
        prune(edges, probability, nodes=1.2)


def test_a_latent_whose_way_in_is_pruned_goes_and_so_do_those_that_it_alone_led_to():
    positions = 50
    edges = torch.zeros(4, 3 + positions)  # latents 0, 1 and 2, and one logit
    edges[0, 3] = 1.0  # 0 comes from the first position alone
    edges[1, 3:] = 1.0  # 1 from all of them, a little from each
    edges[2, 1] = 1.0
    edges[3, [0, 2]] = 1.0
    assert prune(edges, torch.ones(1), nodes=0.7).latents.tolist() == [True, True, True]
    pruned = prune(edges, torch.ones(1), nodes=0.7, links=0.75)
    assert pruned.latents.tolist() == [True, False, False]
    assert pruned.edges.nonzero().tolist() == [[0, 3], [3, 0]]


def test_a_latent_whose_ways_out_are_pruned_goes_with_its_way_in():
    many = 50
    edges = torch.zeros(1 + many + 1, 1 + many + 1)
    edges[0, -1] = 1.0  # latent 0 comes from the position
    edges[1:-1, 0] = 1.0  # all others from latent 0, and the logit from all of them
    edges[-1, 1:-1] = 1.0
    assert prune(edges, torch.ones(1), nodes=1.0, links=1.0).edges.sum() == 1 + 2 * many
    pruned = prune(edges, torch.ones(1), nodes=1.0, links=0.3)
    assert not pruned.edges.any() and not pruned.latents.any()


def test_influence_over_prompts_is_the_mean_of_shares_so_that_no_long_prompt_outweighs_another():
    first = (torch.tensor([3, 3, 5]), torch.tensor([10.0, 20.0, 10.0]))  # latent 3 at two positions
    second = (torch.tensor([5]), torch.tensor([0.1]))
    assert torch.allclose(summed([first, second], 7), torch.tensor([0, 0, 0, 0.375, 0, 0.625, 0]).double())


# -- files -------------------------------------------------------------------------------------------------------------

NODE = {
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
    "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
}  # fmt: skip


def test_the_file_has_what_circuit_tracer_asks_for_and_replaces_one_of_its_name(qwen, tmp_path):
    graph = attribute(*qwen, IDS)
    for share in (0.5, 0.8):
        pruned = prune(graph.edges, graph.probability, nodes=share)
        for slug in ("one", "two"):
            words = {"tokens": list(map(str, IDS.tolist())), "predicted": list(map(str, graph.logits.tolist()))}
            path = write_graph(
                tmp_path, graph, pruned, slug=slug, **words, depth=LAYERS, scan="run", node_threshold=share
            )
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [(one["slug"], one["node_threshold"]) for one in listed] == [("one", 0.8), ("two", 0.8)]
    content = json.loads(path.read_text())
    assert content.keys() == {"metadata", "qParams", "nodes", "links"} and content["metadata"] == listed[1]
    assert content["metadata"]["prompt_tokens"] == [str(token) for token in IDS.tolist()]
    assert all(type(node[name]) is kind for node in content["nodes"] for name, kind in NODE.items())
    nodes = {node["node_id"]: node for node in content["nodes"]}
    count = int(pruned.latents.sum())
    assert len(nodes) == len(content["nodes"]) == count + len(IDS) + len(graph.logits)
    assert len(content["links"]) == int(pruned.edges.sum())
    for link in content["links"]:
        source, target = nodes[link["source"]], nodes[link["target"]]
        assert source["feature_type"] != "logit" and target["feature_type"] != "embedding"
        assert source["ctx_idx"] <= target["ctx_idx"] and link["weight"] != 0
    layer, within, place = (int(index[pruned.latents][0]) for index in (graph.layer, graph.within, graph.position))
    assert nodes[f"{layer}_{within}_{place}"]["feature"] == (layer + within) * (layer + within + 1) // 2 + within


# -- the evaluation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(pair, tmp_path):
    """Every latent fires, but only one writes anything, in the last layer."""
    streams = pair.streams("mlp_in", "all", reads=ADAPTER)
    adapter = TranscoderAdapter(streams, latents=16, sparsity=L1(0.0))
    with torch.no_grad():
        adapter.layers[-1].W_dec[5] = torch.linspace(-1, 1, 32)
        adapter.layers[-1].b_enc[5] = 10.0
    pair.stand_beside(adapter.eval())
    text = Text(lambda: itertools.islice(language.rows(0, "trace"), 150), held_out=0.3, context=256, window=16)
    return Trained(pair, text, 4000, 1024, tmp_path, dictionary=adapter)


def found_by(evaluation, trained):
    found = list(evaluation.run(trained))
    findings = {f.name.removeprefix("attribution_graphs/"): f.value for f in found if isinstance(f, Finding)}
    return (
        findings,
        {t.name: t.columns for t in found if isinstance(t, Table)},
        [n for n in found if isinstance(n, Note)],
    )


def test_the_one_latent_that_writes_has_all_the_influence(trained):
    findings, tables, _ = found_by(AttributionGraphs(count=3, drawn=2, node_threshold=1.0), trained)
    only = 2 * 16 + 5
    assert tables["graph_influence"]["latent"] == [only] and tables["graph_influence"]["layer"] == [2]
    assert tables["graph_influence"]["graphs"] == [3] and abs(tables["graph_influence"]["influence"][0] - 1) < 1e-6
    assert findings["carrying"] == 1 and findings["completeness_error"] < 1e-4
    assert 1 / 48 <= findings["carrying_share"] < 1 / 16
    graphs, nodes, edges = tables["graphs"], tables["graph_nodes"], tables["graph_edges"]
    assert graphs["graph"] == ["prompt-000", "prompt-001", "prompt-002"] and len(set(graphs["prompt"])) == 3
    assert all(word in (" Wait", " Hmm") for word in graphs["target"])  # the toy's hesitations begin so
    assert set(nodes["graph"]) == set(edges["graph"]) == {"prompt-000", "prompt-001"}
    kinds = {(g, n): kind for g, n, kind in zip(nodes["graph"], nodes["node"], nodes["kind"], strict=True)}
    for graph, source, target in zip(edges["graph"], edges["source"], edges["target"], strict=True):
        assert kinds[graph, source] != "logit" and kinds[graph, target] != "embedding"
    assert {"latent", "logit"} <= {kinds[graph, n] for graph, n in zip(edges["graph"], edges["target"], strict=True)}
    assert {n for n, kind in zip(nodes["latent"], nodes["kind"], strict=True) if kind == "latent"} == {only}
    assert len(list((trained.folder / "graphs").glob("prompt-*.json"))) == 3


def test_a_batch_without_the_label_is_not_searched_for_words_where_another_has_it(trained):
    first, *others = (batch for batch in trained.held_out if "hesitation" in batch.labels)
    assert others
    again = dataclasses.replace(trained, folder=None)
    again.__dict__["held_out"] = [first, *(batch._replace(labels={}, begins={}) for batch in others)]
    prompts = AttributionGraphs(count=1000)._found(again)
    assert len(prompts) == int((first.begins["hesitation"] & (first.position > 0)).sum())


def test_a_text_without_the_label_is_searched_for_the_pairs_words(trained):
    _, by_label, _ = found_by(AttributionGraphs(count=4, drawn=0, most_latents=5), trained)
    unlabelled = [batch._replace(labels={}) for batch in trained.held_out]
    again = dataclasses.replace(trained, folder=None)
    again.__dict__["held_out"] = unlabelled
    _, by_word, _ = found_by(AttributionGraphs(count=4, drawn=0, most_latents=5), again)
    assert by_word["graphs"]["prompt"] == by_label["graphs"]["prompt"]
    again.pair.hesitations = ("perhaps",)
    _, _, notes = found_by(AttributionGraphs(), again)
    assert "spells one of ['perhaps']" in notes[0].text


def test_prompts_may_be_given_and_are_cut_to_their_last_tokens(trained, tmp_path):
    (tmp_path / "one.txt").write_text("Clara has 26. Wait\n")
    given = AttributionGraphs(prompts=[str(tmp_path / "one.txt"), "Clara has"], context=3, drawn=1)
    _, tables, _ = found_by(given, trained)
    assert tables["graphs"]["target"] == [" Wait", " has"] and tables["graphs"]["prompt"][1] == "Clara"
    assert "Clara has 26.".endswith(tables["graphs"]["prompt"][0])
    assert len(tables["graphs"]["prompt"][0]) < len("Clara has 26.")
    with pytest.raises(Refused, match="there is no such file"):
        found_by(AttributionGraphs(prompts=["none.txt"]), trained)
    with pytest.raises(Refused, match="a prompt needs two tokens"):
        found_by(AttributionGraphs(prompts=[" Wait"]), trained)


def test_a_dictionary_that_stands_in_no_model_is_refused(trained):
    with pytest.raises(Refused, match="train one with dictionary=transcoder_adapter"):
        found_by(AttributionGraphs(), dataclasses.replace(trained, dictionary=torch.nn.Identity()))
    with pytest.raises(Refused, match="edge_threshold=0 is no share"):
        AttributionGraphs(edge_threshold=0)
    with pytest.raises(Refused, match="count=0: give at least 1"):
        AttributionGraphs(count=0)
