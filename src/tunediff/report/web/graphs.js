// Attribution graphs: from embeddings through latents to logits. One prompt at a time is drawn, by layer and token; a table
// holds the latents that matter over all of them.

const EDGES_AT_FIRST = 120, EDGES_AT_MOST = 400, LISTED = 12;
const positive = (weight) => `${weight > 0 ? "+" : ""}${spelled(weight)}`;

function attributionGraphs(latents, influence) {
  const { list } = DATA.graphs, index = new Map((latents?.latent ?? []).map((latent, i) => [latent, i]));
  if (!list) return section("Attribution graphs", influence ? influential(influence, latents, index) : null);
  let at = 0, graph = null, picture = null, chosen = null, hovered = null, most = EDGES_AT_FIRST, met = null, asked = 0;
  const firesOn = (latent) => latents?.fires_on?.[index.get(latent)] ?? [];
  const nameOf = (n) => ({ latent: () => `latent ${graph.latent[n]}, layer ${graph.layer[n]}, at “${visible(graph.token[n])}”`, embedding: () => `embedding of “${visible(graph.token[n])}”`, logit: () => `logit of “${visible(graph.token[n])}”` })[graph.kind[n]]();
  const numbersOf = (n) => (graph.kind[n] === "logit" ? `probability ${spelled(graph.influence[n])}` : `${graph.kind[n] === "latent" ? `activation ${spelled(graph.activation[n])}, ` : ""}influence ${spelled(graph.influence[n])}`);
  const words = (n) => `${nameOf(n)}: ${numbersOf(n)}${firesOn(graph.latent[n]).length ? `; fires on ${firesOn(graph.latent[n]).map((token) => `“${visible(token)}”`).join(", ")}` : ""}`;

  const said = element("p", { class: "readout", role: "status" }), scroller = element("div", { class: "graph" }), panel = element("div", { class: "reading-node" }), holder = element("div");
  const search = element("input", { type: "search", "aria-label": "search nodes", placeholder: "latent number, layer 2, or a token" }), count = element("small");
  const slider = element("input", { type: "range", "aria-label": "edges by weight", min: 0, max: EDGES_AT_MOST, value: EDGES_AT_FIRST }), drawnEdges = element("output", { class: "soft" });
  const entries = list.graph.map((name, n) => element("button", { type: "button", class: "graph-entry", title: `${name}: ${list.prompt[n]}`, onclick: () => open(n) },
    element("span", { class: "ending" }, element("span", {}, visible(list.prompt[n].slice(-240)))), element("b", {}, visible(list.target[n])), element("small", {}, spelled(list.probability[n]))));

  async function open(n) {
    const mine = (asked += 1);
    at = n;
    entries.forEach((entry, k) => entry.setAttribute("aria-pressed", String(k === n)));
    const found = await unpacked(`graph-${n}`);
    if (mine !== asked) return; // another was chosen meanwhile
    [graph, chosen, hovered] = [connected(found), null, null];
    slider.max = Math.min(EDGES_AT_MOST, graph.weight.length);
    slider.value = most = Math.min(EDGES_AT_FIRST, graph.weight.length);
    paint();
    look();
    pick(null);
    scroller.scrollLeft = scroller.scrollWidth; // what is predicted stands at the end
  }

  function paint() {
    const fromEnd = scroller.scrollWidth - scroller.scrollLeft;
    const title = `What leads to “${visible(list.target[at])}”, ${list.graph[at]}`;
    picture = drawing(graph, title, holder.clientWidth - 4 || 1100, { nameOf, onhover: (n) => { if (n !== hovered) { hovered = n; lit(); } }, onpick: pick, onkey });
    scroller.replaceChildren(picture.svg);
    const taken = () => [["source", "target", "weight"], graph.weight.map((weight, edge) => [nameOf(graph.source[edge]), nameOf(graph.target[edge]), weight])];
    const alone = () => { const copy = picture.svg.cloneNode(true); copy.querySelector(".layers").removeAttribute("transform"); return aside(copy); };
    holder.replaceChildren(figure(`${title}: ${facts()}`, scroller, { rows: taken, make: alone }));
    scroller.scrollLeft = scroller.scrollWidth - fromEnd;
    slide();
  }

  function facts() {
    const error = list.completeness_error?.[at], kept = graph.weight.length < graph.edges ? `, the ${graph.weight.length.toLocaleString("en-US")} strongest of them here` : "";
    return `${(graph.layer.length + graph.left_out).toLocaleString("en-US")} nodes${graph.left_out ? `, ${graph.layer.length.toLocaleString("en-US")} of them here` : ""}, ${graph.edges.toLocaleString("en-US")} edges${kept}${error === null || error === undefined ? "" : `, completeness error ${spelled(error)}`}`;
  }

  function lit() {
    picture.draw({ read: hovered ?? chosen, most, met });
    const shown = hovered ?? chosen;
    said.textContent = shown === null ? "Hover a node to see its edges, click it to read it; or choose the graph and use the arrow keys." : words(shown);
    drawnEdges.textContent = `${most.toLocaleString("en-US")} of ${graph.weight.length.toLocaleString("en-US")}`;
  }

  function pick(n) {
    chosen = n;
    lit();
    read();
    if (n === null) return;
    const { x } = picture.at.places[n]; // a node that was reached from a list may lie out of sight
    if (x - GUTTER < scroller.scrollLeft || x + 20 > scroller.scrollLeft + scroller.clientWidth) scroller.scrollLeft = x - scroller.clientWidth / 2;
  }

  function onkey(event, places) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && chosen !== null) { event.stopPropagation(); pick(null); }
    if (!/^Arrow/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const next = chosen === null ? Math.max(0, graph.kind.indexOf("latent")) : neighbour(places, chosen, event.key);
    if (next !== null) { hovered = null; pick(next); }
  }

  function look() {
    const typed = search.value.trim().toLowerCase(), layer = typed.match(/^(?:layer |l)(\d+)$/), bare = typed.replaceAll("␣", " ");
    const test = layer ? (n) => graph.kind[n] === "latent" && graph.layer[n] === Number(layer[1]) : /^\d+$/.test(typed) ? (n) => graph.latent[n] === Number(typed) || graph.token[n].trim() === typed
      : (n) => graph.token[n].toLowerCase().includes(bare) || firesOn(graph.latent[n]).some((token) => token.toLowerCase().includes(bare));
    met = typed ? new Set(graph.layer.map((_, n) => n).filter(test)) : null;
    count.textContent = met ? `${met.size.toLocaleString("en-US")} of ${graph.layer.length.toLocaleString("en-US")} nodes` : "";
    lit();
  }

  // -- what is read of one node -----------------------------------------------------------------------------------------

  const link = (latent) => (index.has(latent) ? element("a", { href: `#latent-${latent}` }, `open latent ${latent} below`) : null);
  const chips = (latent) => element("span", { class: "tokens" }, firesOn(latent).map((token) => element("span", {}, visible(token))));
  const entry = (n, value, share, sign) => element("li", {}, element("button", { type: "button", onclick: () => { hovered = null; pick(n); } },
    element("span", { class: "weight" }, element("i", { class: sign, style: `width:${Math.max(2, 100 * share).toFixed(0)}%` })), element("span", { class: "value" }, value),
    element("span", { class: "what" }, graph.kind[n] === "latent" ? `latent ${graph.latent[n]} · layer ${graph.layer[n]}` : graph.kind[n], " ", element("small", {}, `at ${visible(graph.token[n])}`.replace(/^at /, graph.kind[n] === "logit" ? "of " : "at ")), graph.kind[n] === "latent" ? chips(graph.latent[n]) : null)));

  function side(title, edges, end) {
    const first = Math.abs(graph.weight[edges[0]] ?? 1), more = edges.length - LISTED;
    return element("div", {}, element("h4", {}, title), edges.length ? element("ol", {}, edges.slice(0, LISTED).map((edge) => entry(graph[end][edge], positive(graph.weight[edge]), Math.abs(graph.weight[edge]) / first, signOf(graph.weight[edge])))) : element("p", { class: "soft" }, "none in this graph"),
      more > 0 ? element("small", {}, `and ${more.toLocaleString("en-US")} weaker`) : null);
  }

  async function read() {
    const n = chosen, mine = graph;
    if (n === null) {
      const some = graph.layer.map((_, k) => k).filter((k) => graph.kind[k] === "latent").sort((a, b) => graph.share[b] - graph.share[a]), half = Math.min(LISTED, Math.ceil(some.length / 2));
      const part = (from) => element("ol", {}, some.slice(from, from + half).map((k) => entry(k, spelled(graph.influence[k]), graph.share[k] ** 2, "latent")));
      panel.replaceChildren(element("div", { class: "sides" }, element("div", {}, element("h4", {}, "Latents of the largest influence here"), part(0)), element("div", {}, element("h4", {}, "\u00a0"), part(half))));
      return;
    }
    const title = `${nameOf(n)[0].toUpperCase()}${nameOf(n).slice(1)}`, examplesOf = element("div");
    panel.replaceChildren(element("header", {}, element("h3", {}, title), element("span", { class: "soft" }, `${numbersOf(n)}, position ${graph.position[n]}`), chips(graph.latent[n]), link(graph.latent[n]),
      element("button", { type: "button", title: "close (Esc)", onclick: () => pick(null) }, "×")),
      element("div", { class: "sides" }, side("Strongest inputs", graph.inputs[n], "source"), side("Strongest outputs", graph.outputs[n], "target")), examplesOf);
    const i = index.get(graph.latent[n]);
    if (i === undefined || !DATA.explored.latent?.tables.includes("examples")) return;
    const chunk = await unpacked(`details-${Math.floor(i / DATA.chunk)}`), vocabulary = await unpacked("vocabulary"), rows = rowsOf(chunk?.[graph.latent[n]]?.examples);
    if (chosen !== n || graph !== mine) return;
    const some = (rows ?? []).filter((row) => (row.kind ?? "strongest") === "strongest").slice(0, 4), top = Math.max(...some.map((row) => row.largest));
    examplesOf.replaceChildren(element("h4", {}, some.length ? "Its strongest examples" : "It fired on none of the tokens read for examples."), ...some.map((row) => example(row, vocabulary, top, DATA.explored.latent.segments)));
  }

  // -- the section --------------------------------------------------------------------------------------------------------

  const slide = () => picture?.labels.setAttribute("transform", `translate(${scroller.scrollLeft} 0)`); // layers stay in sight
  scroller.addEventListener("scroll", slide);
  search.addEventListener("input", look);
  search.addEventListener("keydown", (event) => { if (event.key === "Enter" && met?.size) pick([...met][([...met].indexOf(chosen) + 1) % met.size]); });
  slider.addEventListener("input", () => { most = Number(slider.value); lit(); });
  let wide = 0;
  new ResizeObserver(() => {
    if (!graph || Math.abs(holder.clientWidth - wide) < 4) return;
    wide = holder.clientWidth;
    paint();
    lit();
  }).observe(holder);
  open(0);
  return section("Attribution graphs",
    element("p", { class: "soft" }, "What of the prompt and which latents lead to the token that is predicted. Rows are layers, columns the tokens of the prompt; a latent is larger and darker with its influence on the prediction. An edge says how much of a node's value another gives to it: green raises it, magenta and dashed lowers it, wider is more. The completeness error is what edges lack of the values they add up to, as a share of their size.", DATA.graphs.left_out ? ` ${DATA.graphs.left_out.toLocaleString("en-US")} more graphs count in the table below and are not drawn.` : ""),
    element("div", { class: "spread" },
      element("div", { class: "graph-list", role: "group", "aria-label": "graphs" }, entries),
      element("div", { class: "filters" }, search, count, element("label", { class: "soft" }, "edges by weight ", slider), drawnEdges,
        element("span", { class: "keys" }, ["raises", "lowers"].map((sign) => element("span", { class: `sign ${sign}` }, sign)))),
      holder, said, panel),
    influence ? influential(influence, latents, index) : null);
}

// -- latents by what they do over all graphs -------------------------------------------------------------------------------

function influential(columns, latents, index) {
  const heads = [["latent", "latent"], ["layer", "layer"], ["influence", "influence, over all graphs"], ["graphs", "in graphs"]], rows = rowsOf(columns), top = highest(columns.influence.map(Math.abs)), most = 200;
  let by = "influence", up = false;
  const head = element("tr"), body = element("tbody"), peaks = latents?.fires_on;
  const fill = () => {
    rows.sort((a, b) => (up ? 1 : -1) * (a[by] - b[by]) || b.influence - a.influence);
    head.replaceChildren(...heads.map(([name, word]) => element("th", { "aria-sort": name !== by ? null : up ? "ascending" : "descending" }, element("button", { type: "button", onclick: () => { [by, up] = [name, name === by ? !up : false]; fill(); } }, word))), ...(peaks ? [element("th", { class: "words" }, "fires on")] : []));
    body.replaceChildren(...rows.slice(0, most).map((row) => element("tr", {}, element("td", {}, index.has(row.latent) ? element("a", { href: `#latent-${row.latent}` }, String(row.latent)) : String(row.latent)), element("td", {}, String(row.layer)),
      element("td", {}, element("span", { class: "weight" }, element("i", { class: "latent", style: `width:${((100 * Math.abs(row.influence)) / top).toFixed(0)}%` })), spelled(row.influence)), element("td", {}, String(row.graphs)),
      peaks ? element("td", { class: "words tokens" }, (peaks[index.get(row.latent)] ?? []).map((token) => element("span", {}, visible(token)))) : null)));
  };
  fill();
  const names = Object.keys(columns);
  return figure(`Latents by their influence, summed over all graphs: ${rows.length > most ? `${most} of ` : ""}${rows.length.toLocaleString("en-US")}`, element("div", { class: "rows few", tabindex: -1 }, element("table", { id: "influence" }, element("thead", {}, head), body)),
    { make: null, kind: "broad", rows: () => [names, rows.map((row) => names.map((name) => row[name]))] });
}
