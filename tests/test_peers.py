"""The same objects in the field's libraries: equal losses and gradients for equal weights and batches.

Runs where they are installed, as README.md says; a torchvision that does not fit torch breaks every import.
The trainer of transcoder adapters is no package: TRANSCODER_ADAPTERS names a checkout of its authors' repository.
"""

import importlib
import json
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT
from test_adapted_models import logits, made_adapter
from test_attribution import IDS, adapted_model
from tunediff.attribution import attribute, prune, write_graph
from tunediff.dictionary import L1, BatchTopK, Crosscoder, Normalisation, TopK
from tunediff.models import ModelSource, save_adapted
from tunediff.objectives import Reconstruction
from tunediff.shapes import ADAPTER, Rows, Stream

WIDTH, LATENTS, K = 24, 60, 5
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def library(name):
    try:
        return pytest.importorskip(
            name,
            reason=f"{name} is not installed: pip install -c constraints.txt -e '.[test,peers]'",
            exc_type=ImportError,
        )
    except RuntimeError as error:
        pytest.skip(f"{name} does not import here: {error}")


def batch():
    return torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(5)) + 0.3


def one_stream(sparsity, **settings):
    made = Crosscoder(
        [Stream("tuned", "resid_post", 0, WIDTH)],
        latents=LATENTS,
        sparsity=sparsity,
        normalisation=partial(Normalisation, kind="none", sink_multiple=None),
        **settings,
    )
    with torch.no_grad():
        made.b_enc.copy_(torch.linspace(-0.3, 0.1, LATENTS))
        made.b_dec.copy_(torch.linspace(-0.2, 0.4, WIDTH))
    return made


def ours(dictionary, **settings):
    found = Reconstruction()(
        dictionary, Rows(batch()), dead=torch.empty(0, dtype=torch.long), settings={"l1": 1.0, "k": float(K)}
    )
    (found.total * settings.get("factor", 1.0)).backward()
    return found.total.detach() * settings.get("factor", 1.0)


def agree(dictionary, loss, theirs):
    """theirs: W_enc [width, latent], W_dec [latent, width], b_enc, b_dec gradients."""
    assert torch.allclose(loss[0], loss[1], rtol=1e-5)
    mine = (dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec)
    for ours_, their in zip(mine, theirs, strict=True):
        assert torch.allclose(ours_.grad, their, rtol=1e-5, atol=1e-5)


def into_linear(dictionary, encoder, decoder, bias):
    with torch.no_grad():
        encoder.weight.copy_(dictionary.W_enc.T)
        encoder.bias.copy_(dictionary.b_enc)
        decoder.weight.copy_(dictionary.W_dec.T)
        bias.copy_(dictionary.b_dec)


def test_l1_is_that_of_dictionary_learning():
    library("dictionary_learning")
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    common = {"steps": 10, "activation_dim": WIDTH, "dict_size": LATENTS, "layer": 0, "lm_name": "-", "device": "cpu"}
    trainer = StandardTrainerAprilUpdate(**common, l1_penalty=0.7, warmup_steps=1, sparsity_warmup_steps=None)
    dictionary = one_stream(L1(0.7), subtract_decoder_bias=True)
    peer = trainer.ae
    into_linear(dictionary, peer.encoder, peer.decoder, peer.bias)
    loss = trainer.loss(batch(), step=5)
    loss.backward()
    gradients = (peer.encoder.weight.grad.T, peer.decoder.weight.grad.T, peer.encoder.bias.grad, peer.bias.grad)
    agree(dictionary, (ours(dictionary), loss.detach()), gradients)


@pytest.mark.parametrize("sparse", [True, False])
def test_batchtopk_is_that_of_dictionary_learning(sparse):
    library("dictionary_learning")
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    common = {"steps": 10, "activation_dim": WIDTH, "dict_size": LATENTS, "layer": 0, "lm_name": "-", "device": "cpu"}
    trainer = BatchTopKTrainer(**common, k=K, warmup_steps=1)
    dictionary = one_stream(BatchTopK(K), subtract_decoder_bias=True, code_norm="none", sparse_codes=sparse)
    peer = trainer.ae
    into_linear(dictionary, peer.encoder, peer.decoder, peer.b_dec)
    loss = trainer.loss(batch(), step=5)
    loss.backward()
    gradients = (peer.encoder.weight.grad.T, peer.decoder.weight.grad.T, peer.encoder.bias.grad, peer.b_dec.grad)
    agree(dictionary, (ours(dictionary), loss.detach()), gradients)


def sae_lens_loss(peer, dictionary, **coefficients):
    from sae_lens.saes.sae import TrainStepInput

    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(peer, name).copy_(getattr(dictionary, name))
    step = TrainStepInput(
        sae_in=batch(), coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    loss = peer.training_forward_pass(step).loss
    loss.backward()
    return loss.detach(), [getattr(peer, name).grad for name in ("W_enc", "W_dec", "b_enc", "b_dec")]


def test_l1_is_that_of_sae_lens():
    library("sae_lens")
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    peer = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, l1_coefficient=0.7))
    dictionary = one_stream(L1(0.7), subtract_decoder_bias=peer.cfg.apply_b_dec_to_input)
    loss, gradients = sae_lens_loss(peer, dictionary, l1=0.7)
    agree(dictionary, (ours(dictionary), loss), gradients)


@pytest.mark.parametrize("sparse", [True, False])
def test_batchtopk_is_that_of_sae_lens(sparse):
    library("sae_lens")
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    peer = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K))
    dictionary = one_stream(BatchTopK(K), subtract_decoder_bias=peer.cfg.apply_b_dec_to_input, sparse_codes=sparse)
    with torch.no_grad():
        dictionary.W_dec.mul_(torch.linspace(0.5, 2.0, LATENTS)[:, None])
    loss, gradients = sae_lens_loss(peer, dictionary)
    agree(dictionary, (ours(dictionary), loss), gradients)


@pytest.mark.parametrize(("bias", "shard"), [(True, "50GB"), (False, "60KB")])
def test_an_adapted_model_is_that_of_transcoder_adapters(pair, tmp_path, bias, shard):
    why = "github.com/nathanhu0/transcoder-adapters is no package: put a checkout of it on PYTHONPATH"
    module = pytest.importorskip("models.qwen2_transcoder", reason=why, exc_type=ImportError)
    theirs = module.Qwen2ForCausalLMWithTranscoder
    pair.stand_beside(made_adapter(pair, L1(0.1), bias=bias))
    mine = logits(pair.models[ADAPTER])
    save_adapted(pair.models[ADAPTER], tmp_path / "ours", shard=shard)
    loaded = theirs.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert torch.equal(logits(loaded), mine)
    loaded.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert torch.equal(logits(ModelSource(str(tmp_path / "theirs"), dtype="float32").weights()), mine)


def test_topk_is_that_of_sparsify():
    library("sparsify")
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    peer = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K))
    dictionary = one_stream(TopK(K), subtract_decoder_bias=True)  # unit decoders: norms change nothing
    with torch.no_grad():
        peer.encoder.weight.copy_(dictionary.W_enc.T)
        peer.encoder.bias.copy_(dictionary.b_enc)
        peer.W_dec.copy_(dictionary.W_dec)
        peer.b_dec.copy_(dictionary.b_dec)
    rows = batch()
    loss = peer(rows).fvu
    loss.backward()
    factor = len(rows) / (rows - rows.mean(0)).square().sum()  # theirs is the share of the batch's variance
    gradients = (peer.encoder.weight.grad.T, peer.W_dec.grad, peer.encoder.bias.grad, peer.b_dec.grad)
    agree(dictionary, (ours(dictionary, factor=factor), loss.detach()), gradients)


def test_a_graph_is_pruned_as_by_circuit_tracer_and_its_file_is_read_by_it(tmp_path):
    why = "circuit-tracer is not installed: pip install --no-deps circuit-tracer (it asks for an older transformers)"
    theirs = pytest.importorskip("circuit_tracer.graph", reason=why, exc_type=ImportError)
    from circuit_tracer.frontend.graph_models import Link, Metadata, Model, Node

    graph = attribute(*adapted_model("qwen2", sparsity=L1(0.0)), IDS, drop_first=True)
    pruned = prune(graph.edges, graph.probability, nodes=0.6, links=0.9)
    latents, logits = len(graph.number), len(graph.logits)
    square = torch.zeros(latents + len(IDS) + logits, latents + len(IDS) + logits)
    square[:latents, :-logits], square[-logits:, :-logits] = graph.edges.split([latents, logits])
    peer = SimpleNamespace(
        input_tokens=IDS,
        logit_targets=graph.logits,
        selected_features=graph.number,
        adjacency_matrix=square,
        logit_probabilities=graph.probability,
    )
    nodes, edges, cumulative = theirs.prune_graph(peer, 0.6, 0.9)
    assert 0 < int(pruned.latents.sum()) < latents and torch.equal(nodes[:latents], pruned.latents)
    assert torch.equal(torch.cat([edges[:latents], edges[-logits:]])[:, :-logits], pruned.edges)
    assert torch.allclose(cumulative[:-logits], pruned.cumulative, atol=1e-5)

    words = {"tokens": list(map(str, IDS.tolist())), "predicted": list(map(str, graph.logits.tolist()))}
    path = write_graph(tmp_path, graph, pruned, slug="a", **words, depth=3, scan="run", node_threshold=0.6)
    read = Model.model_validate_json(path.read_text())
    assert len([Link.model_validate(link) for link in read.links]) == int(pruned.edges.sum())
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [Metadata.model_validate(one) for one in listed] == [read.metadata]
    assert [made_by(Node, node) for node in read.nodes] == read.nodes


def made_by(kind, node):
    """The node as circuit-tracer's own functions make it."""
    first, second, place = node.node_id.split("_")
    if node.feature_type == "embedding":
        return kind.token_node(int(place), int(second), node.influence)
    if node.feature_type == "logit":
        return kind.logit_node(len(IDS) - 1, int(second), second, 3, node.is_target_logit, node.token_prob)
    return kind.feature_node(int(first), int(place), int(second), node.influence, node.activation)


@pytest.mark.parametrize("way", ["tunediff", "tunediff, separately, checkpointed"])
def test_every_term_of_adapters_that_learn_is_that_of_the_authors_trainer_step_for_step(way, monkeypatch):
    """Each takes its own steps from the same weights, so that gradients, their norm and the optimizer agree too."""
    folder = os.environ.get("TRANSCODER_ADAPTERS")
    if folder is None:
        pytest.skip("TRANSCODER_ADAPTERS names no checkout of the authors' code")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    adapters = importlib.import_module("adapters")
    shape, steps = adapters.SHAPES["tiny"], 12
    _, _, theirs = adapters.run(adapters.AUTHORS, shape, steps, folder=folder)
    _, _, mine = adapters.run(way, shape, steps)
    assert max(adapters.apart(mine, theirs).values()) < 1e-5
    learned = {name: [one[name] for one in mine if one[name] is not None] for name in adapters.TERMS}
    assert all(len(set(values)) > 2 for values in learned.values()) and learned["penalty"][-1] > 0
