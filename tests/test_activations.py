"""Shuffling, exact positions, stored shards, and what must stop."""

import errno
import json
import shutil

import pytest
import torch

from tunediff.activations import (
    ActivationError,
    Live,
    LiveRows,
    Reader,
    ShuffledRows,
    Stored,
    StoredRows,
    Wanted,
    harvest,
    store,
    stored,
    take,
)
from tunediff.shapes import Refused, Rows, Stream
from tunediff.text import Text
from tunediff.toy import language

STREAM = Stream("base", "resid_post", 0, 1)


class Counting:
    """Rows 0, 1, 2, ... in blocks of uneven size; `document` of a row is its value // 10."""

    streams, broken = [STREAM], {}

    def __init__(self, total=None):
        self.at, self.total = 0, total

    def __iter__(self):
        return self

    def __next__(self):
        size = 7 + self.at % 5
        values = torch.arange(self.at, self.at + size, dtype=torch.float32)[:, None]
        self.at += size
        return Rows(values)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def shuffled(source=None, admits=None, **settings):
    settings = {"batch": 16, "capacity": 128, "steps": 40, "seed": 0, **settings}
    return ShuffledRows(source or Counting(), [Reader([STREAM], admits)], **settings)


def batches_of(stream, reader=0):
    return [drawn.of(reader) for drawn in stream]


def text():
    return Text(lambda: language.rows(0, "trace"), held_out=0.1, context=256, window=16, tokens_per_batch=512)


def test_no_row_is_delivered_twice_and_none_is_lost_for_long():
    delivered = torch.cat([rows.values for rows in batches_of(shuffled())])[:, 0].long()
    assert len(delivered) == len(delivered.unique()) == 16 * 40
    assert delivered.max() < 16 * 40 + 128 + 12


def test_neighbours_in_a_batch_come_from_different_documents():
    for rows in batches_of(shuffled())[3:]:
        documents = (rows.values[:, 0] // 10).long()
        assert (documents[1:] == documents[:-1]).float().mean() < 0.3


def test_the_same_seed_gives_the_same_batches():
    first, second, other = shuffled(), shuffled(), shuffled(seed=1)
    pairs = list(zip(*map(batches_of, (first, second, other)), strict=True))
    assert all(torch.equal(a.values, b.values) for a, b, _ in pairs)
    assert not all(torch.equal(a.values, c.values) for a, _, c in pairs)


@pytest.mark.parametrize("cut", [1, 4, 17])
def test_batches_go_on_exactly_from_a_saved_position(pair, cut):
    streams = pair.streams("resid_post", 1)

    def stream():
        source = LiveRows(pair, text(), streams, dtype=torch.float32, moments=True)
        reader = Reader(streams, lambda values: values[:, 0] > -1.0, moments=True)
        return ShuffledRows(source, [reader], batch=32, capacity=256, steps=24, seed=3)

    whole = batches_of(stream())
    cut_short = stream()
    for _, _ in zip(range(cut), cut_short, strict=False):
        pass
    resumed = stream()
    resumed.load_state_dict(cut_short.state_dict())
    rest = batches_of(resumed)
    assert len(rest) == 24 - cut == len(resumed)
    for a, b in zip(whole[cut:], rest, strict=True):
        assert torch.equal(a.values, b.values) and torch.equal(a.moments, b.moments)
    assert len(cut_short) == 24


def test_turned_away_rows_are_counted_and_never_delivered():
    stream = shuffled(admits=lambda values: values[:, 0] % 5 != 0)
    delivered = torch.cat([rows.values for rows in batches_of(stream)])[:, 0]
    assert (delivered % 5 != 0).all()
    assert abs(stream.dropped[0] / stream.seen - 0.2) < 0.01
    assert "tokens were left out as attention sinks" in stream.left_out(0) and shuffled().left_out(0) is None


def test_a_reader_gets_its_own_streams_and_what_another_turns_away_is_nothing_to_it(pair):
    streams = pair.streams("resid_post", [0, 1])
    odd = [streams[3], streams[0]]
    readers = [Reader(streams, lambda values: values[:, 0] > 0), Reader(odd, moments=True)]
    common = {"batch": 32, "capacity": 256, "steps": 12, "seed": 0}

    def source():
        return LiveRows(pair, text(), streams, dtype=torch.float32, moments=True)

    together = ShuffledRows(source(), readers, **common)
    whole = ShuffledRows(source(), [Reader(streams, moments=True)], **common)
    for drawn, other in zip(together, whole, strict=True):
        everything, some, swapped = other.of(0), drawn.of(0), drawn.of(1)
        assert torch.equal(some.values, everything.values[everything.values[:, 0] > 0]) and some.moments is None
        assert torch.equal(swapped.values, torch.cat([everything.values[:, 96:], everything.values[:, :32]], dim=1))
        assert torch.equal(swapped.moments, everything.moments[:, [3, 0]])


@pytest.mark.parametrize("kind", ["live", "stored"])
def test_the_parts_of_two_processes_are_the_batches_of_one(pair, tmp_path, kind, monkeypatch):
    monkeypatch.setitem(StoredRows.__init__.__kwdefaults__, "block", 100)
    streams = pair.streams("resid_post", 1)
    activations = Live(512) if kind == "live" else Stored(512, str(tmp_path), dtype="float32")

    def stream(**place):
        source = activations.source(pair, text(), Wanted(streams, 3000, True, "k", **place))
        return ShuffledRows(source, [Reader(streams, moments=True)], batch=64, capacity=512, steps=30, seed=0)

    parts = zip(*(stream(rank=rank, processes=2) for rank in (0, 1)), stream(), strict=True)
    lengths = []
    for first, second, whole in parts:
        assert torch.equal(first.places, whole.places) and torch.equal(second.places, whole.places)
        held = torch.cat([first.of(0).values, second.of(0).values])
        assert torch.equal(held.sort(dim=0).values, whole.of(0).values.sort(dim=0).values)
        lengths.append(len(first.of(0).values))
    assert 0.3 < sum(lengths) / (30 * 64) < 0.7


def test_a_loader_that_stops_fetching_gives_its_first_rows_again_and_goes_on_from_a_saved_position(pair):
    streams = pair.streams("resid_post", 1)

    def source(distinct):
        return Live(buffer=512, distinct=distinct).source(pair, text(), Wanted(streams, 2000, False, "k"))

    stopped, whole, resumed = source(600), source(None), source(600)
    rows = [next(stopped).values for _ in range(12)]
    other = [next(whole).values for _ in range(12)]
    period = next(n for n in range(1, 12) if sum(map(len, rows[:n])) >= 600)
    assert all(torch.equal(one, two) for one, two in zip(rows[:period], other, strict=False))
    assert all(torch.equal(one, two) for one, two in zip(rows[period:], rows, strict=False))
    assert len(rows[period]) != len(other[period]) or not torch.equal(rows[period], other[period])
    for _ in range(period - 1):
        next(resumed)
    again = source(600)
    again.load_state_dict(resumed.state_dict())
    assert torch.equal(next(again).values, rows[period - 1]) and torch.equal(next(again).values, rows[0])


def test_stored_rows_are_the_live_rows(pair, tmp_path):
    streams = pair.streams("resid_post", [0, 1])
    live = Live(buffer=512, dtype="bfloat16").source(pair, text(), Wanted(streams, 2000, True, "k"))
    kept = Stored(buffer=512, folder=str(tmp_path)).source(pair, text(), Wanted(streams, 2000, True, "k"))
    reader = Reader(streams, moments=True)
    batches = [ShuffledRows(s, [reader], batch=64, capacity=512, steps=20, seed=0) for s in (live, kept)]
    for a, b in zip(*map(batches_of, batches), strict=True):
        assert torch.equal(a.values, b.values)
        assert torch.allclose(a.moments, b.moments)


def test_stored_rows_are_contiguous_bfloat16_with_a_checksum(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stored, "SHARD_ROWS", 100)
    with caplog.at_level("INFO"):
        folder = store(Counting(), tmp_path / "k", tokens=250, width=1, moments=0)
    assert "Storing 250 tokens x 1 values" in caplog.text and "GB free" in caplog.text
    index = json.loads((folder / "index.json").read_text())
    assert index["rows"] == sum(block["rows"] for block in index["blocks"]) >= 250
    raw = torch.frombuffer(bytearray((folder / "shard-00000.bin").read_bytes()), dtype=torch.bfloat16)
    assert torch.equal(raw, torch.arange(len(raw)).bfloat16())
    source = StoredRows(folder, [STREAM], dtype=torch.float32, block=30)
    first = take(source, 300).values[:, 0]  # past the end it begins again
    assert torch.equal(first[index["rows"] :], first[: 300 - index["rows"]])
    shard = folder / "shard-00001.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ActivationError, match="does not match its checksum"):
        take(StoredRows(folder, [STREAM], dtype=torch.float32), 250)
    shard.write_bytes(b"\0")
    with pytest.raises(Refused, match=r"shard-00001.bin is not there with its \d+ bytes"):
        StoredRows(folder, [STREAM], dtype=torch.float32)


def test_a_full_disk_is_said_before_and_while_writing(tmp_path, monkeypatch):
    few = shutil._ntuple_diskusage(10**9, 10**9, 100)
    with monkeypatch.context() as m:
        m.setattr(stored.shutil, "disk_usage", lambda _: few)
        with pytest.raises(ActivationError, match=r"needs 0.00 GB, but .* has 0.00 GB free. Lower budget.tokens"):
            store(Counting(), tmp_path / "a", tokens=500, width=1, moments=0)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ActivationError, match="stopped after 0 of 500 tokens: No space left on device"):
        store(Counting(), tmp_path / "b", tokens=500, width=1, moments=0)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["lock"]


def test_a_value_that_is_not_finite_stops_with_layer_and_document(pair):
    streams = pair.streams("resid_post", 2)
    with torch.no_grad():
        pair.models["tuned"].model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    batch = next(text().batches(pair.tokenizers))
    with pytest.raises(
        ActivationError, match=r"tuned.resid_post.2 gives a value that is not finite at token \d+ of document \d+"
    ):
        harvest(pair, batch, streams)
    broken = {}
    rows = harvest(pair, batch, pair.streams("resid_post", [0, 2]), broken=broken)
    assert list(broken) == [streams[1]] and torch.isfinite(rows.values[:, :96]).all()


def test_moments_are_those_of_each_sequence(pair):
    streams = pair.streams("resid_post", 1)
    batch = next(text().batches(pair.tokenizers))
    rows = harvest(pair, batch, streams, moments=True)
    for sequence in batch.sequence.unique():
        here = batch.sequence == sequence
        base = rows.values[here][:, :32]
        assert torch.allclose(rows.moments[here][0, 0], torch.stack([base.mean(), base.std(correction=0)]), atol=1e-5)


def test_a_buffer_too_small_to_shuffle_is_refused():
    with pytest.raises(ActivationError, match="activations.buffer=20 must hold at least two batches of 16"):
        shuffled(capacity=20)
