// One attribution graph, drawn by layer and token: where its nodes lie, what its edges look like, and what of it is lit.

const GUTTER = 84, PITCH = 15; // room for the names of layers, and from node to node
const KIND_OF_NODE = { l: "logit", e: "embedding", a: "latent" };
const signOf = (weight) => (weight < 0 ? "lowers" : "raises");
const cut = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text);

// a packed graph with what is asked of it: for each node its edges in and out, by |weight|
function connected(graph) {
  const inputs = graph.layer.map(() => []), outputs = graph.layer.map(() => []);
  graph.weight.forEach((_, edge) => { inputs[graph.target[edge]].push(edge); outputs[graph.source[edge]].push(edge); });
  const kind = [...graph.kind].map((letter) => KIND_OF_NODE[letter]), sizes = graph.influence.map((v) => Math.abs(v ?? 0));
  const most = Math.max(highest(sizes.filter((_, n) => kind[n] === "latent")), 1e-30);
  return { ...graph, kind, inputs, outputs, nodes: kind.map((_, n) => n), largest: Math.abs(graph.weight[0] ?? 1),
    share: sizes.map((v) => Math.sqrt(Math.min(1, v / most))), token: graph.token.map((n) => graph.vocabulary[n]) };
}

// Where each node lies: rows are layers, from the embeddings below to the logits on top; columns are positions, as wide as
// the fullest of their cells, and spread over `room` where there is more of it.
function laidOut(graph, room) {
  const top = highest(graph.layer), layers = Array.from({ length: top + 2 }, (_, n) => top - n), positions = distinct(graph.position).sort((a, b) => a - b);
  const cells = new Map(layers.flatMap((layer) => positions.map((position) => [`${layer},${position}`, []]))), cellAt = (layer, position) => cells.get(`${layer},${position}`);
  const byShare = [...graph.nodes].sort((a, b) => graph.share[b] - graph.share[a]);
  for (const n of byShare) cellAt(graph.layer[n], graph.position[n]).push(n);
  const tokens = new Map(graph.nodes.filter((n) => graph.kind[n] !== "logit").map((n) => [graph.position[n], visible(graph.token[n])]));

  const stack = layers.length > 18 ? 1 : layers.length > 10 ? 2 : 3, least = Math.max(16, Math.min(52, 400 / layers.length));
  const fullest = (layer) => highest(positions.map((position) => cellAt(layer, position).length));
  let y = 6;
  const rows = new Map(layers.map((layer) => {
    const deep = layer === top ? 1 : Math.min(stack, Math.ceil(fullest(layer) / 4) || 1);
    const row = { y, deep, pitch: layer === top ? 50 : PITCH, high: layer === top ? 54 : Math.max(least, deep * PITCH + (stack > 1 ? 8 : 4)) };
    y += row.high;
    return [layer, row];
  }));

  const across = (layer, position) => rows.get(layer).pitch * Math.ceil(cellAt(layer, position).length / rows.get(layer).deep);
  const wanted = positions.map((position) => Math.max(highest(layers.map((layer) => across(layer, position))), 7 * Math.min(9, tokens.get(position)?.length ?? 0), 22) + 12);
  const spare = Math.max(0, room - GUTTER - 8 - wanted.reduce((sum, v) => sum + v, 0)) / positions.length;
  let x = GUTTER;
  const columns = new Map(positions.map((position, n) => {
    const column = { x, wide: wanted[n] + spare, token: tokens.get(position) ?? "" };
    x += column.wide;
    return [position, column];
  }));

  const places = [];
  for (const [layer, { y: above, high, deep, pitch }] of rows)
    for (const [position, { x: left, wide }] of columns) {
      const some = cellAt(layer, position), each = Math.ceil(some.length / deep), lines = Math.ceil(some.length / each);
      some.forEach((n, k) => {
        const line = Math.floor(k / each), here = Math.min(each, some.length - line * each);
        places[n] = { x: left + wide / 2 + ((k % each) - (here - 1) / 2) * pitch, y: layer === top ? above + 40 : above + high / 2 + (line - (lines - 1) / 2) * PITCH };
      });
    }
  return { places, columns, rows, top, wide: Math.round(x + 8), high: Math.round(y + 26) };
}

const sizeOf = (graph, n) => (graph.kind[n] === "latent" ? 2.8 + 4 * graph.share[n] : 4.5);

function shapeOf(graph, n, { x, y }, title) {
  const size = sizeOf(graph, n), kind = graph.kind[n], common = { class: `node ${kind}`, "data-node": n, title };
  if (kind === "latent") return drawn("circle", { ...common, "fill-opacity": (0.35 + 0.65 * graph.share[n]).toFixed(2), cx: x.toFixed(1), cy: y.toFixed(1), r: size.toFixed(1) });
  return drawn("rect", { ...common, x: x - size, y: y - size, width: 2 * size, height: 2 * size, rx: kind === "logit" ? 3 : 0 });
}

// the drawing of one graph; `draw` changes what of it is lit
function drawing(graph, title, room, { nameOf, onhover, onpick, onkey }) {
  const at = laidOut(graph, room), under = (event) => { const node = event.target.closest("[data-node]"); return node ? Number(node.dataset.node) : null; };
  const svg = drawn("svg", { viewBox: `0 0 ${at.wide} ${at.high}`, style: `width:${at.wide}px`, class: "attribution", role: "group",
    tabindex: 0, "aria-label": `${title}: arrow keys go from node to node, Escape leaves`, onpointerover: (event) => onhover(under(event)),
    onpointerleave: () => onhover(null), onclick: (event) => onpick(under(event)), onkeydown: (event) => onkey(event, at) });
  const edges = drawn("g", { fill: "none" }), nodes = drawn("g"), labels = drawn("g", { class: "layers" });
  for (const { x, wide, token } of at.columns.values())
    svg.append(drawn("line", { class: "axis faint", x1: x, x2: x, y1: 4, y2: at.high - 26 }),
      drawn("text", { class: "token", x: x + wide / 2, y: at.high - 9, "text-anchor": "middle", title: token }, cut(token, Math.max(3, Math.floor(wide / 6.9)))));
  labels.append(drawn("rect", { class: "ground", x: -1, y: 0, width: GUTTER - 8, height: at.high }));
  for (const [layer, { y, high }] of at.rows) {
    const name = layer < 0 ? "embedding" : layer === at.top ? "logits" : `${layer === at.top - 1 || at.rows.size < 12 ? "layer " : ""}${layer}`;
    svg.append(drawn("line", { class: "axis", x1: GUTTER, x2: at.wide, y1: y + high, y2: y + high }));
    labels.append(drawn("text", { x: GUTTER - 14, y: (layer === at.top ? y + 40 : y + high / 2) + 4, "text-anchor": "end" }, name));
  }
  const shapes = at.places.map((place, n) => shapeOf(graph, n, place, nameOf(n)));
  nodes.append(...shapes);
  for (const n of graph.nodes.filter((n) => graph.kind[n] === "logit")) {
    const { x, y } = at.places[n];
    nodes.append(drawn("text", { class: "name", x, y: y - 22, "text-anchor": "middle" }, cut(visible(graph.token[n]), 7)),
      drawn("text", { x, y: y - 9, "text-anchor": "middle" }, `${spelled(100 * graph.influence[n], 50)} %`));
  }
  svg.append(edges, nodes, labels);

  function line(edge, kind) {
    const [from, to] = [graph.source[edge], graph.target[edge]], [a, b] = [at.places[from], at.places[to]];
    const [ax, bx] = [a.x.toFixed(1), b.x.toFixed(1)], start = a.y - sizeOf(graph, from), end = b.y + sizeOf(graph, to), bend = (start - end) * 0.5;
    return drawn("path", { class: `edge ${signOf(graph.weight[edge])} ${kind}`, "stroke-width": (0.5 + 3.6 * Math.abs(graph.weight[edge] / graph.largest)).toFixed(2),
      d: `M${ax} ${start.toFixed(1)}C${ax} ${(start - bend).toFixed(1)} ${bx} ${(end + bend).toFixed(1)} ${bx} ${end.toFixed(1)}` });
  }

  function draw({ read, most, met }) {
    const own = read === null ? [] : [...graph.inputs[read], ...graph.outputs[read]].sort((a, b) => a - b).slice(0, most), mine = new Set(own);
    const some = Array.from({ length: Math.min(most, graph.weight.length) }, (_, edge) => edge).filter((edge) => !mine.has(edge));
    edges.replaceChildren(...some.map((edge) => line(edge, read === null ? "" : "far")), ...own.reverse().map((edge) => line(edge, "own")));
    const near = new Set([read, ...own.flatMap((edge) => [graph.source[edge], graph.target[edge]])]);
    shapes.forEach((shape, n) => {
      shape.classList.toggle("chosen", n === read);
      shape.classList.toggle("met", Boolean(met?.has(n)));
      shape.classList.toggle("dim", met !== null ? !met.has(n) && n !== read : read !== null && !near.has(n));
    });
  }

  return { svg, labels, draw, at };
}

// the nearest node that lies in the direction of an arrow key: along its row, or in the next row that has any
function neighbour({ places }, from, key) {
  const here = places[from], along = /Left|Right/.test(key), sign = /Right|Down/.test(key) ? 1 : -1;
  const far = places.map(({ x, y }) => {
    const [by, aside] = along ? [sign * (x - here.x), Math.abs(y - here.y)] : [sign * (y - here.y), Math.abs(x - here.x)];
    return by <= 0.5 || (along && aside > PITCH / 2) ? Infinity : along ? by : by * 1000 + aside;
  });
  const best = lowest(far);
  return best === Infinity ? null : far.indexOf(best);
}
