// Figures of curves and bars by depth: panels stacked in one SVG, sharing the depth axis, the legend and the cursor.

const NARROWEST = 5; // thinner bars are drawn as curves
const MODES = {
  zoom: "Zoom", full: "With null", distance: "1 − value, log",
  accuracy: "Accuracy", nll: "NLL", perplexity: "Perplexity", exact_match: "Exact match",
  pearson: "Pearson", spearman: "Spearman", differences: "Of differences",
};

// The thirds' shares are written only while a single model is shown.
function sharesOf(read) {
  const models = DATA.models.filter((name) => DATA.depths[name] && !hidden.has(name));
  return read.panel.depth && models.length === 1 ? DATA.depths[models[0]][read.panel.depth].thirds : null;
}

function drawDepths(svg, read, x, y) {
  const kind = read.panel.depth;
  const models = DATA.models.filter((name) => DATA.depths[name] && !hidden.has(name));
  if (!kind || !models.length) return;
  sharesOf(read)?.forEach((share, i) => {
    const at = x((L * (2 * i + 1)) / 6 - 0.5);
    draw(svg, "text", { class: "share", x: at, y: y.top - 6, "text-anchor": "middle" }, `${Math.round(100 * share)} %`);
  });
  const centres = models.filter((name) => DATA.depths[name][kind].center !== null);
  for (const name of centres) {
    const at = x(DATA.depths[name][kind].center * L - 0.5);
    const mark = draw(svg, "path", { class: `m${hue(name)} centre`, d: `M${at} ${y.bottom - 1}l5 8h-10Z` });
    draw(mark, "title", {}, `${name}: centre of change`);
  }
}

// Legend entries wrap like words; returns the height used.
function drawLegend(svg, entries, width, top) {
  const group = draw(svg, "g", { class: "legend" });
  let [left, line] = [0, 0];
  for (const entry of entries) {
    const name = shortened(entry.name, Math.min(width - 30, entry.kind === "unsure" ? 520 : 260));
    const wide = 24 + textWidth(name) + 16;
    if (left && left + wide > width) [left, line] = [0, line + 1];
    const y = top + line * 18 + 8;
    if (entry.kind === "line") draw(group, "line", { class: entry.look + " line", x1: left, x2: left + 18, y1: y, y2: y });
    else if (entry.kind === "unsure") draw(group, "circle", { class: entry.look + " unsure", cx: left + 9, cy: y, r: 2.8 });
    else if (entry.kind === "centre") draw(group, "path", { class: entry.look, d: `M${left + 9} ${y - 4}l5 8h-10Z` });
    else draw(group, "rect", { class: `${entry.look} ${entry.kind}`, x: left, y: y - 5, width: 18, height: 10, rx: 2 });
    const text = draw(group, "text", { x: left + 24, y: y + 3.8 }, name);
    if (name !== entry.name) draw(text, "title", {}, entry.name);
    left += wide;
  }
  return entries.length ? (line + 1) * 18 : 0;
}

function legendOf(reads, domains, mode, bandName) {
  const entries = new Map();
  const note = (key, entry) => entries.has(key) || entries.set(key, entry);
  const lined = reads.some((read) => !read.bars);
  for (const read of reads)
    for (const line of read.lines) {
      const kind = lined ? "line" : "bar";
      note("m:" + line.name, { kind, look: `m${line.hue}${repeats(line.model) && lined ? " again" : ""}`, name: line.name });
    }
  const some = (kind) => reads.some((read) => read[kind].length);
  const bands = reads.some((read) => read.lines.some((line) => line.points.some((p) => p.lo !== null)));
  if (bands) note("band", { kind: "band", look: "m0", name: bandName });
  if (reads.some((read, i) => nullShown(read, domains[i], mode))) note("null", { kind: "band", look: "null", name: "null, 95 %" });
  if (some("floor")) note("floor", { kind: "line", look: "floor", name: "precision floor" });
  if (some("beside")) note("beside", { kind: "line", look: "m0 beside", name: "over all tokens, sinks too" });
  if (some("split")) note("split", { kind: "band", look: "split", name: "± split floor" });
  if (some("random")) note("random", { kind: "line", look: "random", name: reads.some((read) => read.panel.metric.startsWith("steer")) ? "random directions of the same norm" : "random changes of the same size" });
  const drawn = reads.flatMap((read) => read.lines.flatMap((line) => line.points.filter((p) => p.v !== null)));
  const unsure = [...new Set(drawn.map((p) => doubt(p.state)).filter(Boolean))];
  if (unsure.length) note("unsure", { kind: "unsure", look: "m0", name: `hollow: ${unsure.join(", or ")}` });
  const samples = reads.flatMap((read) => (read.bars ? [] : read.seeds)).flatMap((line) => line.points.map((p) => p.n));
  if (samples.length) note("seeds", { kind: "band", look: "m0 seeds", name: `range over ${Math.max(...samples)} samples` });
  const marked = reads.flatMap((read) => read.marks)[0];
  if (marked) note("marked", { kind: "centre", look: "m0 centre", name: marked.name });
  return [...entries.values()];
}

function drawLines(box, spec) {
  const width = Math.max(260, box.clientWidth);
  const mode = spec.modes.length ? (box.dataset.mode ??= spec.modes[0]) : "zoom";
  const reads = spec.panels.map((panel) => readPanel(panel, mode, spec));
  const domains = reads.map((read) => domainOf(read, mode));
  const labels = domains.flatMap((d, i) => verticalScale(d, 0, reads[i].panel.height).ticks.map((t) => t.label));
  const x = depthScale(Math.ceil(Math.max(...labels.map((label) => textWidth(label)))) + 12, width - (width < 700 ? 11 : 2));
  for (const read of reads) read.bars = read.panel.mark === "bars" && (x.step * 0.78) / read.lines.length >= NARROWEST;
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  let top = drawLegend(svg, legendOf(reads, domains, mode, spec.data?.band ?? "95 % interval"), width, 0) + (spec.thirds ? 26 : 6);
  const first = top;
  const layers = new Set(reads.flatMap((r) => r.lines.flatMap((l) => l.points.map((p) => p.layer))));
  const ends = { first: layers.has(-1), last: layers.has(L) ? (reads.some((r) => r.panel.module === "residual") ? "norm" : "head") : null };
  reads.forEach((read, i) => {
    const strip = spec.thirds && sharesOf(read) ? 18 : 0;
    const y = verticalScale(domains[i], top + 26 + strip, top + 26 + strip + read.panel.height);
    Object.assign(y, { strip });
    frame(svg, x, y, read.title, y.log && mode !== "distance" ? read.unit + ", log" : read.unit, reads.length === 1);
    drawMarks(svg, read, x, y, mode);
    const lastPanel = i === reads.length - 1;
    depthAxis(svg, x, y.bottom, ends, lastPanel);
    if (spec.thirds) drawDepths(svg, read, x, y);
    Object.assign(read, { y });
    top = y.bottom + (lastPanel ? 40 : 18);
  });
  if (spec.thirds) thirds(svg, x, first - 20, top - 40);
  svg.setAttribute("height", top);
  svg.setAttribute("viewBox", `0 0 ${width} ${top}`);
  const bare = reads.every((read) => read.panel.module !== "residual");
  cursor(svg, reads, x, first, top - 40, [...layers].sort((a, b) => a - b), {
    label: "Depth",
    title: (layer) => `${layerName(layer, bare)} · depth ${number((layer + 1) / L, 2)}`,
    rows: (layer) => rowsAt(reads, layer),
  });
  box.replaceChildren(svg);
}

// The cursor along the horizontal axis: follows the pointer, or the arrow keys once focused. `told` says what is there.
function cursor(svg, reads, x, top, bottom, layers, told) {
  if (!layers.length) return;
  const group = draw(svg, "g", { class: "cursor", visibility: "hidden" });
  const area = draw(svg, "rect", {
    class: "overlay", x: x.left, y: top, width: x.right - x.left, height: bottom - top, tabindex: 0, role: "slider",
    "aria-label": told.label, "aria-valuemin": layers[0], "aria-valuemax": layers.at(-1), "aria-valuenow": layers[0],
  });
  let here = layers[0];
  const show = (layer, px, py) => {
    here = layer;
    const [title, rows] = [told.title(layer), told.rows(layer)];
    group.replaceChildren();
    draw(group, "line", { x1: x(layer), x2: x(layer), y1: top + 22, y2: bottom });
    for (const read of reads) for (const line of read.bars ? [] : read.lines) {
      const point = line.points.find((p) => p.layer === layer);
      if (point && read.y(point.v) !== null) draw(group, "circle", { class: "m" + line.hue, cx: x(layer), cy: read.y(point.v), r: 3.5 });
    }
    group.setAttribute("visibility", "visible");
    area.setAttribute("aria-valuenow", layer);
    area.setAttribute("aria-valuetext", `${title}: ${asText(rows)}`);
    showTip(title, rows, px, py);
  };
  const leave = () => { group.setAttribute("visibility", "hidden"); hideTip(); };
  const nearest = (event) => {
    const wanted = x.invert(event.clientX - svg.getBoundingClientRect().left);
    return layers.reduce((best, layer) => (Math.abs(layer - wanted) < Math.abs(best - wanted) ? layer : best));
  };
  const keyed = (layer) => {
    const frame = svg.getBoundingClientRect();
    show(layer, frame.left + x(layer), frame.top + (top + bottom) / 2);
  };
  for (const name of ["pointermove", "pointerdown"]) area.addEventListener(name, (e) => show(nearest(e), e.clientX, e.clientY));
  area.addEventListener("pointerleave", leave);
  area.addEventListener("blur", leave);
  area.addEventListener("focus", () => area.matches(":focus-visible") && keyed(here));
  area.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5, Home: -layers.length, End: layers.length }[event.key];
    if (event.key === "Escape") leave();
    if (!step) return;
    event.preventDefault();
    keyed(layers[Math.max(0, Math.min(layers.length - 1, layers.indexOf(here) + step))]);
  });
}

function rowsAt(reads, layer) {
  const rows = [];
  for (const read of reads) {
    const before = rows.length;
    const push = (line, look, name) => {
      const point = line.points.find((p) => p.layer === layer);
      if (!point || point.v === null) return;
      const n = point.n && !look && read.panel.module === "residual" ? ` n=${point.n}` : "";
      rows.push({ hue: line.hue, look, name, value: number(point.v) + interval(point.lo, point.hi) + n });
      if (!look && doubt(point.state)) rows.push({ head: doubt(point.state) });
    };
    for (const line of read.lines) push(line, null, line.name);
    for (const line of read.null) push(line, "swatch null", "null");
    for (const line of read.floor) push(line, "swatch floor", "precision floor");
    for (const line of read.beside) push(line, "swatch beside", read.beside.length > 1 ? `all tokens, ${line.model}` : "all tokens");
    for (const line of read.split) push(line, "swatch split", "split floor");
    for (const line of read.random) push(line, "swatch random", read.random.length > 1 ? `random, ${line.model}` : "random");
    for (const line of read.bars ? [] : read.seeds) push(line, "swatch seeds", read.seeds.length > 1 ? `samples, ${line.model}` : "samples");
    if (reads.length > 1 && rows.length > before) rows.splice(before, 0, { head: `${read.title}, ${read.unit}` });
  }
  return rows;
}
