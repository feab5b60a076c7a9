// Correlations of depth curves: every curve against every other, and the few that go with the weight change.

const BOUNDED = { pearson: ["pearson_low", "pearson_high"], spearman: ["spearman_low", "spearman_high"] };
const COLUMN = { pearson: "pearson", spearman: "spearman", differences: "pearson_differences" };

// Orange below 0, the card's ground at 0, blue above: told apart without red and green, in light and dark.
const diverging = (r) => `color-mix(in srgb, var(${r < 0 ? "--m2" : "--m1"}) ${(100 * Math.min(1, Math.abs(r))).toFixed(1)}%, var(--card))`;

// Both halves of the square; `clear` where the interval leaves out 0 (or there is none to ask).
function matrixCells(mode) {
  const { a, b, n, n_effective, ...columns } = DATA.correlations.pairs;
  const [low, high] = (BOUNDED[mode] ?? []).map((name) => columns[name]);
  const cells = [];
  columns[COLUMN[mode]].forEach((r, i) => {
    if (r === null) return;
    const [least, most] = [low?.[i] ?? null, high?.[i] ?? null];
    const about = { r, least, most, n: n[i], effective: n_effective[i], clear: least === null || least > 0 || most < 0 };
    cells.push({ row: a[i], layer: b[i], ...about }, { row: b[i], layer: a[i], ...about });
  });
  return cells.sort((p, q) => p.row - q.row || p.layer - q.layer);
}

// The scale and, where there are intervals, the two looks of a cell; returns the height used.
function matrixKey(svg, bounded, room) {
  const group = draw(svg, "g", { class: "axis" });
  const bar = 150;
  for (let i = 0; i < 50; i++)
    draw(group, "rect", { x: 22 + (i * bar) / 50, y: 4, width: bar / 50 + 0.4, height: 9 }).style.fill = diverging((2 * (i + 0.5)) / 50 - 1);
  draw(group, "text", { x: 0, y: 12.5 }, "−1");
  draw(group, "text", { x: 22 + bar + 6, y: 12.5 }, "1");
  draw(group, "text", { x: 22 + bar / 2, y: 25, "text-anchor": "middle" }, "0");
  let [left, top] = room > 480 ? [22 + bar + 40, 2] : [0, 36];
  for (const [clear, name] of bounded ? [[true, "95 % interval excludes 0"], [false, "includes 0"]] : []) {
    drawCell(group, { r: 0.8, least: 0, clear }, left, top, 13);
    draw(group, "text", { x: left + 19, y: top + 10.5 }, name);
    left += textWidth(name) + 36;
  }
  return room > 480 || !bounded ? 34 : 58;
}

function drawCell(group, cell, left, top, size) {
  const rect = draw(group, "rect", { class: "cell", x: left + 0.5, y: top + 0.5, width: size - 1, height: size - 1, rx: 1.5 });
  rect.style.fill = diverging(cell.r);
  if (!cell.clear) rect.style.fillOpacity = 0.3;
  else if (cell.least !== null && size >= 9) draw(group, "circle", { class: "dot-in", cx: left + size / 2, cy: top + size / 2, r: Math.min(2.2, size / 7) }).style.fill = "var(--card)";
}

// Neighbours of one cluster, if more than one curve.
function clusterRuns() {
  const runs = [];
  DATA.correlations.clusters.forEach((cluster, i) => {
    const last = runs.at(-1);
    if (last?.cluster === cluster) last.to = i;
    else runs.push({ cluster, from: i, to: i });
  });
  return runs.filter((run) => run.to > run.from);
}

// Cut in the middle: names of curves differ at their ends too.
function squeezed(text, room, share = 0.45) {
  for (let kept = text.length; kept > 2; kept--) {
    const tail = Math.floor(kept * share);
    const cut = kept === text.length ? text : `${text.slice(0, kept - tail).trimEnd()}…${text.slice(text.length - tail).trimStart()}`;
    if (textWidth(cut) <= room) return cut;
  }
  return shortened(text, room);
}

// Names that a cut makes alike are cut elsewhere, where that tells more of them apart.
function apart(names, room) {
  const cuts = [0.45, 0.65, 0.25, 0.85].map((share) => names.map((name) => squeezed(name, room, share)));
  const alike = (cut, i) => cut.filter((text) => text === cut[i]).length;
  return names.map((_, i) => cuts.reduce((best, cut) => (alike(cut, i) < alike(best, i) ? cut : best))[i]);
}

function matrixLabels(svg, x, rows, room, size) {
  const group = draw(svg, "g", { class: "axis" });
  const foot = rows[0].y - 6;
  const short = apart(DATA.correlations.curves, room - 8);
  for (const row of rows) {
    const [name, cut] = [DATA.correlations.curves[row.row], short[row.row]];
    const beside = draw(group, "text", { x: x.left - 7, y: row.y + size / 2 + 3.8, "text-anchor": "end" }, cut);
    const at = x(row.row) + 3.8;
    const above = draw(group, "text", { transform: `translate(${at} ${foot}) rotate(-90)` }, cut);
    for (const text of [beside, above]) if (text.textContent !== name) draw(text, "title", {}, name);
  }
}

function drawMatrix(box, spec) {
  const { curves } = DATA.correlations;
  const mode = (box.dataset.mode ??= spec.modes[0]);
  const cells = matrixCells(mode);
  const room = Math.min(box.clientWidth < 700 ? 104 : 230, Math.ceil(Math.max(...curves.map((name) => textWidth(name)))) + 9);
  const size = Math.max(13, Math.min(curves.length < 12 ? 44 : 30, (box.clientWidth - room - 4) / curves.length));
  const width = Math.max(260, box.clientWidth, Math.ceil(room + size * curves.length + 4));
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  const top = matrixKey(svg, mode in BOUNDED, box.clientWidth) + room;
  const bottom = top + size * curves.length;
  const x = Object.assign((column) => room + (column + 0.5) * size, { step: size, left: room, right: room + size * curves.length, invert: (px) => Math.floor((px - room) / size) });
  const rows = curves.map((_, row) => ({ row, y: top + row * size }));
  matrixLabels(svg, x, rows, room, size);
  const marks = draw(svg, "g", { class: "marks" });
  for (const cell of cells) drawCell(marks, cell, x(cell.layer) - size / 2, rows[cell.row].y, size);
  for (const row of rows) draw(marks, "rect", { class: "frozen", x: x(row.row) - size / 2 + 0.5, y: row.y + 0.5, width: size - 1, height: size - 1, rx: 1.5 });
  for (const { from, to } of clusterRuns()) {
    const side = (to - from + 1) * size;
    draw(marks, "rect", { class: "cell-frame", x: x(from) - size / 2, y: rows[from].y, width: side, height: side, rx: 2 }).style.cssText = "fill: none; stroke: var(--ink); stroke-width: 1.4";
  }
  svg.setAttribute("height", bottom + 6);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 6}`);
  heatCursor(svg, cells, rows, x, top, bottom, size, (cell) => matrixTold(cell, mode));
  box.replaceChildren(svg);
  box.classList.toggle("wider", width > box.clientWidth);
  const [area, mark] = [svg.querySelector(".overlay"), svg.querySelector(".cell-mark")];
  area.style.touchAction = "auto"; // the matrix may be wider than the screen
  area.addEventListener("keyup", () => {
    const [at, frame] = [mark.getBoundingClientRect(), box.getBoundingClientRect()];
    if (at.left < frame.left) box.scrollLeft -= frame.left - at.left;
    if (at.right > frame.right) box.scrollLeft += at.right - frame.right;
  });
}

function matrixTold(cell, mode) {
  const [one, other] = [cell.row, cell.layer].map((curve) => DATA.correlations.curves[curve]);
  const rows = [{ hue: cell.r < 0 ? 2 : 1, name: { pearson: "Pearson r", spearman: "Spearman r", differences: "r of differences" }[mode], value: number(cell.r, 3) + rounded(cell.least, cell.most) }];
  rows.push({ hue: 0, look: "swatch", name: "blocks", value: `${cell.n}${cell.effective === null || mode === "differences" ? "" : `, count for ${number(cell.effective, 3)}`}` });
  return { title: `${one} with ${other}`, entries: rows };
}
const rounded = (low, high) => (low === null || high === null ? "" : ` [${number(low, 3)}, ${number(high, 3)}]`);

// The curves that go with the weight change: a dot and its interval each, on one axis from -1 to 1.
function drawForest(box, spec) {
  const width = Math.max(260, box.clientWidth);
  const rows = forestRows(width - 190 < 330);
  const { narrow, after, room } = forestRoom(rows, width);
  const [left, right] = narrow ? [10, width - 10] : [room, Math.min(width - after, room + 560)];
  const at = (r) => left + ((r + 1) / 2) * (right - left);
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  const [axis, marks] = [draw(svg, "g", { class: "axis" }), draw(svg, "g", { class: "marks" })];
  const bottom = rows.at(-1).y + rows.at(-1).tall + 4;
  for (const r of [-1, -0.5, 0, 0.5, 1]) {
    draw(axis, "line", { class: r ? "rule" : "base", x1: at(r), x2: at(r), y1: rows[0].y, y2: bottom });
    draw(axis, "text", { x: at(r), y: bottom + 14, "text-anchor": "middle" }, number(r));
  }
  for (const { entry, text, heading, y, tall } of rows) {
    const [r, low, high] = entry.value;
    const [look, middle] = [r < 0 ? "m2" : "m1", y + (narrow ? 25 : tall / 2)];
    if (heading) {
      const title = draw(axis, "text", { class: "y-title", x: 0, y: y - 9 });
      draw(title, "tspan", { class: "strong" }, shortened(`Pearson r with ${entry.change}`, 0.88 * width)); // bold is wider than it is measured
    }
    const name = squeezed(entry.name, narrow ? width - after : room - 10);
    const label = draw(axis, "text", narrow ? { x: 0, y: y + 12 } : { x: left - 9, y: middle + 4, "text-anchor": "end" }, name);
    if (name !== entry.name) draw(label, "title", {}, entry.name);
    draw(axis, "text", narrow ? { x: width, y: y + 12, "text-anchor": "end" } : { x: right + 12, y: middle + 4 }, text);
    draw(marks, "line", { class: `${look} line`, x1: at(low), x2: at(high), y1: middle, y2: middle });
    draw(marks, "circle", { class: `${look} bar`, cx: at(r), cy: middle, r: 4 });
  }
  svg.setAttribute("height", bottom + 22);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 22}`);
  forestCursor(svg, rows, width, bottom);
  box.replaceChildren(svg);
}

// Where the axis would be too short, names and numbers stand above it.
function forestRoom(rows, width) {
  const after = Math.ceil(Math.max(...rows.map((row) => textWidth(row.text)))) + 14;
  const room = Math.min((width - after) * 0.5, Math.ceil(Math.max(...rows.map((row) => textWidth(row.entry.name)))) + 14);
  return { narrow: rows[0].tall > 22, after, room };
}

// Lines from top to bottom, with a heading above the first of each tuned model.
function forestRows(narrow) {
  const tall = narrow ? 36 : 22;
  let y = 0;
  return DATA.correlations.strongest.map((entry, row, all) => {
    const heading = entry.change !== all[row - 1]?.change;
    y += heading ? 26 : 0;
    const [r, low, high] = entry.value;
    return { entry, row, heading, layer: 0, tall, y: (y += tall) - tall, text: number(r, 3) + rounded(low, high) };
  });
}

function forestCursor(svg, rows, width, bottom) {
  const whole = Object.assign(() => width / 2, { step: width, left: 0, right: width, invert: () => 0 });
  heatCursor(svg, rows, rows, whole, rows[0].y, bottom, rows[0].tall, ({ entry, text }) => ({
    title: `${entry.curve} with ${entry.change}`,
    entries: [
      { hue: entry.value[0] < 0 ? 2 : 1, name: "Pearson r", value: text },
      { hue: 0, look: "swatch", name: "blocks", value: `${entry.n}, count for ${number(entry.n_effective, 3)}` },
    ],
  }));
  svg.querySelector(".cell-mark").style.display = "none"; // a frame around a line of text says no more than the line
}
