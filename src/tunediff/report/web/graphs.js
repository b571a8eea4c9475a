// Attribution graphs: from embeddings through latents to logits. One prompt at a time is drawn, by layer and token; a table
// holds the latents that matter over all of them.

const EDGES_AT_FIRST = 120, EDGES_AT_MOST = 400, LISTED = 12;
const share = (wide, kind) => element("span", { class: "weight" }, element("i", { class: kind, style: `width:${wide.toFixed(0)}%` }));

function attributionGraphs(latents, influence) {
  const { list } = DATA.graphs, index = placesIn(latents);
  const firesOn = (latent) => latents?.fires_on?.[index.get(latent)] ?? [];
  const summed = influence ? influential(influence, index, latents?.fires_on ? firesOn : null) : null;
  if (!list) return section("Attribution graphs", summed);
  let at = 0, graph = null, picture = null, chosen = null, hovered = null, most = EDGES_AT_FIRST, met = null;

  const isLatent = (n) => graph.kind[n] === "latent";
  const tokenOf = (n) => visible(graph.token[n]), nameOf = (n) => (isLatent(n) ? `latent ${graph.latent[n]}, layer ${graph.layer[n]}, at “${tokenOf(n)}”` : `${graph.kind[n]} of “${tokenOf(n)}”`);
  const measureOf = (n) => (isLatent(n) ? `activation ${spelled(graph.activation[n])}, influence` : graph.kind[n] === "logit" ? "probability" : "influence");
  const numbersOf = (n) => `${measureOf(n)} ${spelled(graph.influence[n])}`;
  function words(n) {
    const fires = firesOn(graph.latent[n]).map((token) => `“${visible(token)}”`).join(", ");
    return `${nameOf(n)}: ${numbersOf(n)}${fires ? `; fires on ${fires}` : ""}`;
  }

  const said = element("p", { class: "readout", role: "status" }), panel = element("div", { class: "reading-node" }), holder = element("div");
  const slide = () => picture?.labels.setAttribute("transform", `translate(${scroller.scrollLeft} 0)`); // layers stay in sight
  const scroller = element("div", { class: "graph", onscroll: slide }), count = element("small"), drawnEdges = element("output", { class: "soft" });
  const search = element("input", { type: "search", "aria-label": "search nodes", placeholder: "latent number, layer 2, or a token", oninput: look,
    onkeydown: (event) => { if (event.key === "Enter" && met?.size) pick([...met][([...met].indexOf(chosen) + 1) % met.size]); } });
  const slider = element("input", { type: "range", "aria-label": "edges by weight", min: 0, max: EDGES_AT_MOST, value: EDGES_AT_FIRST,
    oninput: () => { most = Number(slider.value); lit(); } });
  const entries = list.graph.map((name, n) => element("button", { type: "button", class: "graph-entry", title: `${name}: ${list.prompt[n]}`, onclick: () => open(n) },
    element("span", { class: "ending" }, element("span", {}, visible(list.prompt[n].slice(-240)))), element("b", {}, visible(list.target[n])), element("small", {}, spelled(list.probability[n]))));

  async function open(n) {
    at = n;
    entries.forEach((entry, k) => entry.setAttribute("aria-pressed", String(k === n)));
    const found = await unpacked(`graph-${n}`);
    if (at !== n) return; // another was chosen meanwhile
    [graph, chosen, hovered] = [connected(found), null, null];
    slider.max = Math.min(EDGES_AT_MOST, graph.weight.length);
    slider.value = most = Math.min(EDGES_AT_FIRST, graph.weight.length);
    paint();
    look();
    pick(null);
    scroller.scrollLeft = scroller.scrollWidth; // what is predicted stands at the end
  }

  function paint() {
    const fromEnd = scroller.scrollWidth - scroller.scrollLeft, title = `What leads to “${visible(list.target[at])}”, ${list.graph[at]}`;
    picture = drawing(graph, title, holder.clientWidth - 4 || 1100, { nameOf, onhover: (n) => { if (n !== hovered) { hovered = n; lit(); } }, onpick: pick, onkey });
    scroller.replaceChildren(picture.svg);
    const rows = () => [["source", "target", "weight"], graph.weight.map((weight, edge) => [nameOf(graph.source[edge]), nameOf(graph.target[edge]), weight])];
    const make = () => { const copy = picture.svg.cloneNode(true); copy.querySelector(".layers").removeAttribute("transform"); return aside(copy); };
    holder.replaceChildren(figure(`${title}: ${facts()}`, scroller, { rows, make }));
    scroller.scrollLeft = scroller.scrollWidth - fromEnd;
    slide();
  }

  function facts() {
    const error = list.completeness_error?.[at], nodes = graph.layer.length, edges = graph.weight.length;
    return [`${many(nodes + graph.left_out)} nodes`, graph.left_out ? `${many(nodes)} of them here` : null,
      `${many(graph.edges)} edges`, edges < graph.edges ? `the ${many(edges)} strongest of them here` : null,
      absent(error) ? null : `completeness error ${spelled(error)}`].filter(Boolean).join(", ");
  }

  function lit() {
    const read = hovered ?? chosen;
    picture.draw({ read, most, met });
    said.textContent = read === null ? "Hover a node to see its edges, click it to read it; or choose the graph and use the arrow keys." : words(read);
    drawnEdges.textContent = `${many(most)} of ${many(graph.weight.length)}`;
  }

  function pick(n) {
    [chosen, hovered] = [n, null];
    lit();
    read();
    if (n === null) return;
    const { x } = picture.at.places[n]; // a node that was reached from a list may lie out of sight
    if (x - GUTTER < scroller.scrollLeft || x + 20 > scroller.scrollLeft + scroller.clientWidth) scroller.scrollLeft = x - scroller.clientWidth / 2;
  }

  function onkey(event, places) {
    if (elsewhere(event)) return;
    if (event.key === "Escape" && chosen !== null) { event.stopPropagation(); pick(null); }
    if (!/^Arrow/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const next = chosen === null ? Math.max(0, graph.kind.indexOf("latent")) : neighbour(places, chosen, event.key);
    if (next !== null) pick(next);
  }

  function testOf(asked) {
    const typed = asked.trim(), layer = typed.match(/^(?:layer |l)(\d+)$/), bare = asTyped(asked), has = (token) => token.toLowerCase().includes(bare);
    if (layer) return (n) => isLatent(n) && graph.layer[n] === Number(layer[1]);
    if (/^\d+$/.test(typed)) return (n) => graph.latent[n] === Number(typed) || graph.token[n].trim() === typed;
    return (n) => has(graph.token[n]) || firesOn(graph.latent[n]).some(has);
  }

  function look() {
    const typed = search.value.toLowerCase().trimEnd(); // a space before it is one of the token's
    met = typed ? new Set(graph.nodes.filter(testOf(typed))) : null;
    count.textContent = met ? `${many(met.size)} of ${many(graph.nodes.length)} nodes` : "";
    lit();
  }

  // -- what is read of one node -----------------------------------------------------------------------------------------

  const tokens = (latent) => element("span", { class: "tokens" }, chips(firesOn(latent)));
  function entry(n, value, wide, kind) {
    const named = isLatent(n) ? `latent ${graph.latent[n]} · layer ${graph.layer[n]}` : graph.kind[n];
    return element("li", {}, element("button", { type: "button", onclick: () => pick(n) },
      share(Math.max(2, 100 * wide), kind), element("span", { class: "value" }, value),
      element("span", { class: "what" }, named, " ", element("small", {}, `${graph.kind[n] === "logit" ? "of" : "at"} ${tokenOf(n)}`), isLatent(n) ? tokens(graph.latent[n]) : null)));
  }

  function side(title, edges, end) {
    const weights = edges.map((edge) => graph.weight[edge]), more = edges.length - LISTED;
    const listed = edges.slice(0, LISTED).map((edge, k) => entry(graph[end][edge], signed(weights[k]), Math.abs(weights[k] / weights[0]), signOf(weights[k])));
    return element("div", {}, element("h4", {}, title), edges.length ? element("ol", {}, listed) : soft("none in this graph"),
      more > 0 ? element("small", {}, `and ${many(more)} weaker`) : null);
  }

  function readAll() {
    const some = graph.nodes.filter(isLatent).sort((a, b) => graph.share[b] - graph.share[a]), half = Math.min(LISTED, Math.ceil(some.length / 2));
    const part = (title, from) => element("div", {}, element("h4", {}, title),
      element("ol", {}, some.slice(from, from + half).map((k) => entry(k, spelled(graph.influence[k]), graph.share[k] ** 2, "latent"))));
    panel.replaceChildren(element("div", { class: "sides" }, part("Latents of the largest influence here", 0), part("\u00a0", half)));
  }

  async function read() {
    const n = chosen, mine = graph;
    if (n === null) { readAll(); return; }
    const latent = graph.latent[n], i = index.get(latent), title = `${nameOf(n)[0].toUpperCase()}${nameOf(n).slice(1)}`, examplesOf = element("div");
    panel.replaceChildren(element("header", {}, element("h3", {}, title), element("span", { class: "soft" }, `${numbersOf(n)}, position ${graph.position[n]}`), tokens(latent),
      i === undefined ? "" : element("a", { href: `#latent-${latent}` }, `open latent ${latent} below`), button("×", () => pick(null), { title: "close (Esc)" })),
    element("div", { class: "sides" }, side("Strongest inputs", graph.inputs[n], "source"), side("Strongest outputs", graph.outputs[n], "target")), examplesOf);
    if (i === undefined || !DATA.explored.latent?.tables.includes("examples")) return;
    const detail = await detailOf(latents, i, ""), vocabulary = await unpacked("vocabulary");
    if (chosen !== n || graph !== mine) return;
    const some = (detail.examples ? rowsOf(detail.examples) : []).filter((row) => row.kind === "strongest").slice(0, 4);
    examplesOf.replaceChildren(element("h4", {}, some.length ? "Its strongest examples" : "It fired on none of the tokens read for examples."),
      ...windows(some, vocabulary, DATA.explored.latent.segments, highest(some.map((row) => row.largest))));
  }

  // -- the section --------------------------------------------------------------------------------------------------------

  onWidth(holder, () => { if (graph) { paint(); lit(); } });
  open(0);
  return section("Attribution graphs",
    soft("What of the prompt and which latents lead to the token that is predicted. Rows are layers, columns the tokens of the prompt; a latent is larger and darker with its influence on the prediction. An edge says how much of a node's value another gives to it: green raises it, magenta and dashed lowers it, wider is more. The completeness error is what edges lack of the values they add up to, as a share of their size.",
      DATA.graphs.left_out ? ` ${many(DATA.graphs.left_out)} more graphs count in the table below and are not drawn.` : ""),
    element("div", { class: "spread" },
      element("div", { class: "graph-list", role: "group", "aria-label": "graphs" }, entries),
      element("div", { class: "filters" }, search, count, element("label", { class: "soft" }, "edges by weight ", slider), drawnEdges,
        element("span", { class: "keys" }, ["raises", "lowers"].map((sign) => element("span", { class: `sign ${sign}` }, sign)))),
      holder, said, panel),
    summed);
}

// -- latents by what they do over all graphs -------------------------------------------------------------------------------

function influential(columns, index, firesOn) {
  const heads = [["latent", "latent"], ["layer", "layer"], ["influence", "influence, over all graphs"], ["graphs", "in graphs"]];
  const rows = rowsOf(columns), top = highest(columns.influence.map(Math.abs)), most = 200, table = tableOf([], [], { id: "influence" });
  let by = "influence", falling = true;
  const fill = () => {
    table.tHead.rows[0].replaceChildren(...sorters(heads, by, falling, (name) => { [by, falling] = [name, name !== by || !falling]; fill(); }),
      ...(firesOn ? [headOf("fires on", true)] : []));
    table.tBodies[0].replaceChildren(...[...rows].sort(ordering((row) => row[by], falling)).slice(0, most).map((row) => element("tr", {},
      element("td", {}, index.has(row.latent) ? linkTo(row.latent) : String(row.latent)), element("td", {}, String(row.layer)),
      element("td", {}, share((100 * Math.abs(row.influence)) / top, "latent"), spelled(row.influence)), element("td", {}, String(row.graphs)),
      firesOn ? element("td", { class: "words tokens" }, chips(firesOn(row.latent))) : null)));
  };
  fill();
  return figure(`Latents by their influence, summed over all graphs: ${rows.length > most ? `${most} of ` : ""}${many(rows.length)}`,
    element("div", { class: "rows few", tabindex: -1 }, table), { make: null, kind: "broad", rows: taken(rows) });
}
