"""The blocks of numbers on README.md and bench/results.md: findings of studies -> markdown. Read by bench/publish.py."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet

import defences
import planted

ROOT = Path(__file__).resolve().parent.parent
RUNS, PLANTED = ROOT / "build" / "results", ROOT / "bench" / "planted.jsonl"
DEFENCES = ROOT / "bench" / "defences.jsonl"
OPTIONS = [
    "batchtopk_crosscoder", "topk_crosscoder", "delta_crosscoder", "unmasked_delta_crosscoder", "dfc", "jumprelu_crosscoder",
    "l1_crosscoder", "l1_crosscoder_unsquared", "shared_crosscoder", "linear_crosscoder", "sae", "tied_sae", "difference_sae",
]  # fmt: skip


class Findings:
    """Findings of the studies, from their folders or from what was kept of them. `used` are those that were asked for."""

    def __init__(self, kept: Mapping[str, Mapping[str, list]] | None = None):
        self.kept, self.used, self.read = kept, {}, {}

    def __call__(self, study: str, name: str) -> list:
        """Value, lower and upper bound of a finding; None three times where the study has it not."""
        found = [
            value if value is None or isinstance(value, int) else float(f"{value:.5g}")
            for value in self.of(study).get(name, [None] * 3)
        ]
        self.used.setdefault(study, {})[name] = found
        return found

    def of(self, study: str) -> Mapping[str, list]:
        """All that a study has found, or that was kept of it."""
        if self.kept is not None:
            return self.kept[study]
        if study not in self.read and (RUNS / study).is_dir():
            said = json.loads((RUNS / study / "findings.json").read_text())["findings"]
            self.read[study] = {f["name"]: [f["value"], f["low"], f["high"]] for f in said}
        elif study not in self.read:
            self.read[study] = json.loads((RUNS / f"{study}.json").read_text())
        return self.read[study]

    def asked(self) -> dict[str, dict]:
        """What was asked for, of every study in its own order."""
        made = {}
        for study, used in self.used.items():
            ordered = [name for name in self.of(study) if name in used]
            made[study] = {name: used[name] for name in [*ordered, *(name for name in used if name not in ordered)]}
        return made

    def table(self, study: str, name: str, columns: list[str]) -> Mapping[str, list]:
        """Columns of a table that a study has written."""
        if self.kept is not None:
            return self.kept[study][f"table {name}"]
        read = pyarrow.parquet.read_table(RUNS / study / "tables" / f"{name}.parquet", columns=columns).to_pydict()
        found = {
            name: [float(f"{value:.5g}") if isinstance(value, float) else value for value in values]
            for name, values in read.items()
        }
        self.used.setdefault(study, {})[f"table {name}"] = found
        return found

    def between(self, study: str, before: str, behind: str) -> list[str]:
        """The words between both ends, of the findings that have them."""
        long = len(before) + len(behind)
        names = [
            name for name in self.of(study) if name.startswith(before) and name.endswith(behind) and len(name) > long
        ]
        return [name.removeprefix(before).removesuffix(behind) for name in names]


def spoken(found: list, form: str = ".3f", times: float = 1.0) -> str:
    """A number with its interval, in words."""
    value, low, high = found
    if value is None:
        return "–"
    ends = "" if low is None or high is None else f" ({times * low:{form}} to {times * high:{form}})"
    return f"{times * value:{form}}{ends}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


# -- blocks: findings -> markdown ---------------------------------------------------------------------------------------


def fidelity(of: Findings) -> str:
    rows = []
    for word, name, form, times in (
        ("explained variance", "explained_variance", ".3f", 1),
        ("CE recovered", "ce_recovered", ".3f", 1),
        ("KL recovered", "kl_recovered", ".3f", 1),
        ("excess CE, %", "excess_ce", ".1f", 100),
    ):
        rows.append(
            [word, *(spoken(of("default", f"fidelity/{name}/{role}"), form, times) for role in ("base", "tuned"))]
        )
    return table(["`python train.py`, the default", "base", "tuned"], rows)


def kinds(of: Findings) -> str:
    count = {
        kind: of("default", f"geometry/count/{kind}")[0] for kind in ("shared", "base_only", "tuned_only", "other")
    }
    dead, l0 = (of("default", f"fidelity/{name}")[0] for name in ("dead_fraction", "l0/mean"))
    confirmed = {kind: of("default", f"latent_scaling/count/{kind}")[0] for kind in ("base_only", "tuned_only")}
    control = {
        name: sum(of("default", f"latent_scaling/control/{name}/{kind}")[0] for kind in ("base_only", "tuned_only"))
        for name in ("equal", "noise", "permuted")
    }
    seen = spoken(of("default", "latent_scaling/power"), ".0f", 100)
    return (
        f"L0 {l0:.1f}, dead fraction {dead:.0%}. Of the alive latents {count['shared']} are shared, {count['base_only']} base-only, "
        f"{count['tuned_only']} tuned-only, {count['other']} in between; latent scaling confirms {confirmed['base_only']} and "
        f"{confirmed['tuned_only']}. Of the same dictionary it confirms {control['equal']} on the base beside itself, {control['noise']} on the base\n"
        f"beside a copy with noise as large as the difference, and {control['permuted']} where the tuned model reads other tokens, so "
        f"that nothing is shared: {of('default', 'latent_scaling/control/permuted/share')[0]:.0%} of the latents there. Of directions that were planted in\n"
        f"a copy of the base it names {seen} %. A twin from another seed has {spoken(of('default', 'twin/matched/all'), '.0f', 100)} % of the latents too, and\n"
        f"latents that learned nothing {spoken(of('default', 'twin/matched_untrained'), '.0f', 100)} % (intervals over directions and latents)."
    )


def nulls(of: Findings) -> str:
    seeds = of("exclusives", "null_exclusives/runs")[0]
    confirmed = {name: of("exclusives", f"null_exclusives/{name}/confirmed") for name in ("equal", "noise", "pair")}
    rates = [
        f"{spoken(of('labels', f'null_labels/{kind}/trained/found'), '.0f', 100)} % {word}"
        for kind, word in (("round", "of those that go round the ends of documents"), ("within", "that stay within them"),
                           ("thinking", "that stay within the thinking and lean to its end"))
    ]  # fmt: skip
    return (
        f"Over {seeds} seeds of the dictionary, with half as many tokens, latent scaling confirms on the base beside itself\n"
        f"{spoken(confirmed['equal'], '.1f')} latents a run, beside a copy with noise as large as the difference {spoken(confirmed['noise'], '.1f')}, and on the pair {spoken(confirmed['pair'], '.1f')}.\n"
        f"Of labels that mean nothing, laid over the held-out text of the default study, are found at the 5 % level:\n{'; '.join(rates)}."
    )


def options(of: Findings) -> str:
    rows = []
    for option in OPTIONS:
        found = {
            role: of(f"option/{option}", f"fidelity/explained_variance/{role}")[0]
            for role in ("base", "tuned", "difference")
        }
        cells = [f"{found[role]:.3f}" if found[role] is not None else "–" for role in ("base", "tuned")]
        if found["difference"] is not None:
            cells = [f"{found['difference']:.3f} of the difference", ""]
        dead, l0 = (of(f"option/{option}", f"fidelity/{name}")[0] for name in ("dead_fraction", "l0/mean"))
        counts = [of(f"option/{option}", f"geometry/count/{kind}")[0] for kind in ("base_only", "shared", "tuned_only")]
        sure = [of(f"option/{option}", f"latent_scaling/count/{kind}")[0] for kind in ("base_only", "tuned_only")]
        rows.append(
            [
                f"`{option}`",
                *cells,
                f"{l0:.1f}",
                f"{dead:.0%}",
                *("–" if n is None else str(n) for n in (*counts, *sure)),
            ]
        )
    head = ["", "explained variance base", "tuned", "L0", "dead", "base-only", "shared", "tuned-only"]
    return table([*head, "confirmed base-only", "tuned-only"], rows)


def planted_table(_: Findings) -> str:
    return planted.tables(planted.Kept(PLANTED))


def planted_short(_: Findings) -> str:
    return planted.short(planted.Kept(PLANTED))


def defended(_: Findings) -> str:
    return defences.short(DEFENCES)


def defended_fully(_: Findings) -> str:
    return defences.full(DEFENCES)


def directions(of: Findings) -> str:
    """The 2 x 2 on the embedded pair, and whether the direction is needed."""
    cosines = {n: of("backtracking", f"directions/cosine/layer_{n}") for n in range(4)}
    rows = []
    for source, target in ((a, b) for b in ("tuned", "base") for a in ("base", "tuned")):
        where = f"direction_steering/{source}_to_{target}"
        cells = [spoken(of("backtracking", f"{where}/{name}"), ".1f") for name in ("rate", "change", "over_random")]
        strength = of("backtracking", f"{where}/strength")[0]
        rows.append([f"{source} into {target}", "–" if strength is None else f"{strength:g}", *cells])
    claim = {1.0: "holds", 0.0: "does not hold", None: "is underpowered"}[
        of("backtracking", "direction_steering/claim")[0]
    ]
    said = ", ".join(f"{spoken(found, '.2f')} after layer {n}" for n, found in cosines.items())
    return (
        f"On the embedded pair the cosine of the two vectors is {said}.\n"
        f"That the base's own direction raises hesitation in the tuned model and not in the base {claim}:\n\n"
        + table(["direction", "strength", "hesitations", "change", "less random directions"], rows)
    )


def layers(of: Findings) -> str:
    distance, cosine = (of("layers", f"layer_divergence/{name}") for name in ("l2/largest", "cosine/smallest"))
    at = of("layers", "layer_divergence/l2/largest_layer")[0]
    bits = {role: spoken(of("layers", f"tokenizers/bits_per_byte/{role}/shared"), ".2f") for role in ("base", "tuned")}
    return (
        f"On the embedded pair the residual streams part most after layer {at}: a mean distance of {spoken(distance, '.0f')}\n"
        f"(99 % over documents) and a cosine of {spoken(cosine)}. The tuned model needs {bits['tuned']} bits a byte of the\n"
        f"responses (95 %), the base {bits['base']}."
    )


def shown(of: Findings) -> str:
    """What the embedded pair shows of reasoning models."""
    own, base = "ablation/toy/unedited", "ablation/toy/other"
    says = lambda study, name, times=100.0: spoken(of(study, name), ".0f" if times > 1 else ".1f", times)  # noqa: E731
    l1, few = (of(f"option/{option}_crosscoder", "geometry/count/tuned_only")[0] for option in ("l1", "batchtopk"))
    sure = of("option/l1_crosscoder", "latent_scaling/count/tuned_only")[0]
    return f"""\
- *The behaviour.* Tuned, it solves {says("default", f"{own}/accuracy")} % of its problems, with {says("default", f"{own}/hesitations", 1.0)} hesitations per
  1,000 tokens; the base solves {says("default", f"{base}/accuracy")} % at once and {says("lora", "recovery/toy_step_by_step/accuracy/base")} % when asked to go step by step: most of
  the gain is a way of answering, as is said of real pairs.
- *Instruments that can fail.* Of directions planted in one model the default dictionary names {says("default", "latent_scaling/power")} %; another seed finds
  {says("default", "twin/matched/all")} % of its latents; L1 calls {l1:.0f} latents the tuned model's own, of which {sure:.0f} are confirmed, BatchTopK {few:.0f}.
- *What controls are for.* Without the ten latents that tell a hesitation it solves {says("default", "ablation/toy/zero/delta/accuracy")} %, without ten random ones
  that write as much {says("default", "ablation/toy/random_latents/zero/delta/accuracy")} %."""


def conditions(of: Findings, study: str, evaluation: str) -> str:
    """Every condition of an evaluation that lets a model solve the embedded pair's problems."""
    where, rows = f"{evaluation}/toy/", []
    for key in of.between(study, where, "/accuracy"):
        said = {
            name: of(study, f"{where}{key}/{name}")
            for name in ("accuracy", "hesitations", "tokens", "perplexity", "change")
        }
        rows.append(
            [
                f"`{key}`",
                spoken(said["accuracy"], ".2f"),
                spoken(said["hesitations"], ".1f"),
                spoken([said["tokens"][0], None, None], ".0f"),
                spoken([said["perplexity"][0], None, None], ".2f"),
                spoken(said["change"], ".0f"),
            ]
        )
    return table([evaluation, "right", "hesitations per 1,000 tokens", "tokens", "perplexity", "change"], rows)


def edits(of: Findings) -> str:
    return "\n\n".join(conditions(of, "default", name) for name in ("ablation", "patching"))


def steering(of: Findings) -> str:
    names = ["gate", "kind", "strength", "accuracy", "perplexity", "behaviour", "behaviour_low", "behaviour_high"]
    columns = of.table("default", "steering_sweep", names)
    at = {row[:3]: row[3:] for row in zip(*(columns[name] for name in names), strict=True)}
    rows = []
    for (gate, kind, strength), (right, perplexity, *rate) in at.items():
        if kind == "latents":
            beside = at.get((gate, "random_direction", strength))
            cells = [f"`{gate}`", f"{strength:g}", spoken(rate, ".0f"), f"{right:.2f}", f"{perplexity:.3g}"]
            rows.append([*cells, spoken(list(beside[2:]), ".1f") if beside else "–"])
    head = [
        "gate",
        "strength",
        "hesitations per 1,000 tokens",
        "right",
        "perplexity",
        "hesitations, 20 random directions",
    ]
    words = {1.0: "present", 0.0: "absent", None: "underpowered"}
    peaks = []
    for gate in of.between("default", "steering_sweep/", "/dip"):
        rate, strength, dip = (
            of("default", f"steering_sweep/{gate}/{name}") for name in ("peak", "peak_strength", "dip")
        )
        peaks.append([f"`{gate}`", spoken(rate, ".0f"), spoken(strength, "g"), words[dip[0]]])
    verdict = table(["gate", "rate at the peak of coherent text", "at strength", "oversteering dip"], peaks)
    return f"{table(head, rows)}\n\n{verdict}"


def closed(of: Findings) -> str:
    rows = []
    for name in of.between("default", "kl_patching/closed/", ""):
        if "/" not in name and not name.startswith("random_"):
            rows.append([f"`{name}`", spoken(of("default", f"kl_patching/closed/{name}"))])
    least, most = (of("default", f"kl_patching/closed/random_{word}")[0] for word in ("smallest", "largest"))
    kl = spoken(of("default", "kl_patching/kl/base"), ".2f")
    return (
        f"KL of the base's vectors: {kl} nats a token. Single draws of the random ones close {least:.2f} to {most:.2f}.\n\n"
        + table(["patched", "share of the KL that is closed"], rows)
    )


def needed(of: Findings) -> str:
    """What the ablation of the chosen latents does, beside its controls."""
    where = "ablation/toy"
    right = {
        key: spoken(of("default", f"{where}/{key}/accuracy"), ".0f", 100)
        for key in ("unedited", "zero/delta", "random_latents/zero/delta", "random_direction/zero/delta")
    }
    rate = {key: spoken(of("default", f"{where}/{key}/hesitations"), ".1f") for key in ("unedited", "zero/delta")}
    beyond = spoken(of("default", f"{where}/zero/delta/accuracy_over_random_latents"), ".0f", 100)
    _, low, high = of("default", f"{where}/zero/delta/accuracy_over_random_latents")
    words = {True: "is not told apart from what others do", False: "others do not do"}
    verdict = words[low <= 0 <= high]
    twin = f"{where}/twin/zero/delta"
    twins = spoken(of("default", f"{twin}/hesitations"), ".1f"), spoken(of("default", f"{twin}/accuracy"), ".0f", 100)
    patched = {
        key: spoken(of("default", f"patching/toy/{key}/accuracy"), ".0f", 100)
        for key in ("unedited", "patch/delta", "whole/patch")
    }
    return (
        f"Ten latents that tell best whether a hesitation follows, set to zero as the tuned model writes: {rate['zero/delta']} hesitations\n"
        f"per 1,000 tokens in place of {rate['unedited']}, and {right['zero/delta']} % of the problems right in place of {right['unedited']}; with as many latents that\n"
        f"write as much, 20 draws, {right['random_latents/zero/delta']} %, with random directions {right['random_direction/zero/delta']} %. Less those of the random latents\n"
        f"{beyond} points, which {verdict}. The ten that the same rule chooses of the twin: {twins[0]} hesitations, {twins[1]} % right.\n"
        f"The base solves {patched['unedited']} %, with the same latents patched from the tuned model {patched['patch/delta']} %, with the whole vector {patched['whole/patch']} %."
    )


def adapter(of: Findings) -> str:
    def cells(name: str, *who: str, form: str, times: float = 1.0) -> list[str]:
        return ["" if one == "-" else spoken(of("adapter", name.format(one)), form, times) for one in who]

    four = ("base", "hybrid", "adapter", "tuned")
    rows = [
        ["KL(tuned‖·), nats a token", *cells("replacement/kl/{}", "-", "hybrid", "adapter", form=".3f"), "0",
         spoken(of("adapter", "replacement/kl_recovered"), ".1f", 100)],
        ["the same at the worst cut", *cells("replacement/worst_kl/{}", "-", "hybrid", "adapter", "-", form=".3f"), ""],
        ["error of the residual stream (NMSE)", *cells("replacement/nmse/{}", "-", "hybrid", "adapter", form=".3f"), "0", ""],
    ]  # fmt: skip
    where = "adapter_recovery/toy"
    for word, name, form, times in (
        ("accuracy, %", "accuracy", ".1f", 100),
        ("tokens a response", "tokens", ".0f", 1),
        ("hesitations a response", "hesitations_per_response", ".2f", 1),
    ):
        gap = of("adapter", f"{where}/{name.removesuffix('_per_response')}/recovered_of_hybrid")
        rows.append([word, *cells(f"{where}/{{}}/{name}", *four, form=form, times=times), spoken(gap, ".0f", 100)])
    l0 = of("adapter", "replacement/l0")[0]
    return (
        table(["", *four, "of the hybrid's gap, %"], rows) + f"\n\nL0 is {l0:.1f} of 512 latents a layer, on average."
    )


def graphs(of: Findings) -> str:
    said = {
        name: of("adapter", f"attribution_graphs/{name}")[0]
        for name in ("completeness_error", "carrying", "carrying_share")
    }
    return (
        f"{said['carrying']} latents, {said['carrying_share']:.0%} of those that fire, carry four fifths of the influence. Edges, rest and constant\n"
        f"lack {said['completeness_error']:.0e} of the size of their targets in float32."
    )


def needed_sets(of: Findings) -> str:
    return conditions(of, "adapter", "latent_sets")


def recovered(of: Findings) -> str:
    right = {key: spoken(of("lora", f"recovery/{key}"), ".1f", 100) for key in (
        "toy/accuracy/base", "toy_step_by_step/accuracy/base", "toy/accuracy/lora", "toy/accuracy/full", "toy/recovered",
        "toy_step_by_step/recovered", "toy/tokens/recovered", "toy/hesitations/recovered")}  # fmt: skip
    return (
        f"Of 500 problems the embedded base solves {right['toy/accuracy/base']} % asked directly and {right['toy_step_by_step/accuracy/base']} % asked for steps,\n"
        f"the rank-1 LoRA {right['toy/accuracy/lora']} %, the fully tuned model {right['toy/accuracy/full']} %. So rank 1 recovers\n"
        f"{right['toy/recovered']} % of the gain over the direct answer, {right['toy_step_by_step/recovered']} % over the worked steps,\n"
        f"{right['toy/tokens/recovered']} % of the length and {right['toy/hesitations/recovered']} % of the hesitations."
    )


def lora_parts(of: Findings) -> str:
    groups = ["whole/base", "type/mlp", "type/attention"]
    groups += [f"layer/{name}" for name in of.between("lora", "lora_ablation/layer/", "/share")]
    measures = ("kl_full_ablated", "kl_ablated_full", "share", "over_random")
    rows = [
        [f"`{group}`", *(spoken(of("lora", f"lora_ablation/{group}/{name}"), ".2f") for name in measures)]
        for group in groups
    ]
    head = ["without the adapters of", "KL(full‖ablated), nats a token", "KL(ablated‖full)"]
    parts = table([*head, "share of the gain in cross-entropy lost", "KL over random adapters"], rows)
    return f"{parts}\n\n{conditions(of, 'lora', 'lora_ablation')}"


def lora_dictionaries(of: Findings) -> str:
    rows = []
    for study, word in (("lora", "k 16"), ("lora_k4", "k 4")):
        said = {name: of(study, f"fidelity/{name}") for name in (
            "explained_variance/tuned", "l0/mean", "dead_fraction", "ce_recovered/tuned", "kl_recovered/tuned")}  # fmt: skip
        forms = {"l0/mean": ".1f", "dead_fraction": ".2f"}
        rows.append([word, *(spoken(one, forms.get(name, ".3f")) for name, one in said.items())])
    return table(["", "explained variance", "L0", "dead", "CE recovered", "KL recovered"], rows)


def unit_kinds(of: Findings) -> str:
    rows = []
    for study, kind, word in (
        ("lora", "adapters", "adapter directions, either sign"),
        ("lora", "neurons", "MLP neurons, either sign"),
        ("lora", "latents", "latents, k 16"),
        ("lora_k4", "latents", "latents, k 4"),
    ):
        where = f"unit_comparison/{kind}"
        best = [of(study, f"{where}/{label}/auroc")[0] for label in of.between(study, f"{where}/", "/auroc")]
        said = {name: of(study, f"{where}/{name}") for name in ("equal_numbers", "telling")}
        cells = [
            f"{sum(best) / len(best):.2f}",
            spoken(said["equal_numbers"], ".2f"),
            spoken(said["telling"], ".0f", 100),
        ]
        rows.append([word, str(of(study, f"{where}/units")[0]), *cells])
    head = ["", "units", "mean AUROC of the best unit of a label", "best of equal numbers of units"]
    return table([*head, "units that tell a label (AUROC above 0.9), %"], rows)


BLOCKS: dict[str, Callable[[Findings], str]] = {
    "shown": shown,
    "fidelity": fidelity,
    "kinds": kinds,
    "nulls": nulls,
    "options": options,
    "planted": planted_short,
    "planted tables": planted_table,
    "layers": layers,
    "directions": directions,
    "defences": defended,
    "defences tables": defended_fully,
    "edits": edits,
    "steering": steering,
    "closed": closed,
    "needed": needed,
    "adapter": adapter,
    "graphs": graphs,
    "latent sets": needed_sets,
    "recovered": recovered,
    "lora parts": lora_parts,
    "lora dictionaries": lora_dictionaries,
    "unit kinds": unit_kinds,
}
