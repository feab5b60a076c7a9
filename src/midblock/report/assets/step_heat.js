// The map of gradients: optimizer steps across, the trained layers upwards as in the model.

const gradientName = (layer) => (layer < 0 ? "embedding" : layer < L ? String(layer) : "head");

// One column for each group of logged steps; `layer` is the column, as for cells by depth.
function columnScale(left, right) {
  const count = DATA.gradient.to.length;
  const step = (right - left) / count;
  const scale = (column) => left + (column + 0.5) * step;
  return Object.assign(scale, { step, left, right, low: 0, high: count - 1, invert: (x) => Math.floor((x - left) / step) });
}

function columnTicks(x) {
  const { from, to } = DATA.gradient;
  const round = wholeTicks(from[0], Math.max(to.at(-1), from[0] + 1), x.right - x.left);
  return round.map(({ value, label }) => ({ value: to.findIndex((step) => step >= value), label })).filter((tick) => tick.value >= 0);
}

function stackRows(top, tall) {
  const rows = DATA.gradient.layer.map((layer, row) => ({ layer, row, label: gradientName(layer) })).reverse();
  let y = top;
  rows.forEach((row, i) => {
    if (i && rows[i - 1].layer - row.layer > 1) y += 5; // frozen blocks lie between
    row.y = y;
    y += tall;
  });
  return { rows, bottom: y };
}

function drawStepHeat(box, spec) {
  const cells = DATA.gradient.value.flatMap((row, r) => row.flatMap((value, layer) => (value === null ? [] : [{ row: r, layer, value }])));
  const left = Math.ceil(Math.max(...DATA.gradient.layer.map((layer) => textWidth(gradientName(layer))))) + 12;
  const width = Math.max(box.clientWidth, 260);
  const x = columnScale(left, width - (width < 700 ? 8 : 2));
  const scale = heatScale(cells.map((cell) => cell.value));
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  const top = heatKey(svg, scale, "Gradient norm, blocks upwards", "L2", width);
  const tall = Math.max(6, Math.min(20, 300 / DATA.gradient.layer.length));
  const { rows, bottom } = stackRows(top, tall);
  const labels = draw(svg, "g", { class: "axis" });
  let free = Infinity; // lowest place not yet written on
  for (const row of [...rows].reverse()) {
    if (row.y + tall > free) continue;
    draw(labels, "text", { x: left - 8, y: row.y + tall / 2 + 4, "text-anchor": "end" }, row.label);
    free = row.y + tall - 12;
  }
  const gap = x.step > 6 ? 1 : 0;
  for (const cell of cells) {
    const at = rows[rows.length - 1 - cell.row].y;
    // overlapping by a hair leaves no seams between cells
    const rect = draw(svg, "rect", { class: "cell", x: (x(cell.layer) - x.step / 2).toFixed(2), y: at + 0.5, width: (x.step - gap + (gap ? 0 : 0.4)).toFixed(2), height: tall - 1 });
    rect.style.fill = ramp(scale(cell.value));
  }
  stepAxis(svg, x, bottom + 4, columnTicks(x), true);
  svg.setAttribute("height", bottom + 44);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 44}`);
  heatCursor(svg, cells, rows, x, top, bottom, tall, (cell) => {
    const layer = DATA.gradient.layer[cell.row];
    const [from, to] = [DATA.gradient.from[cell.layer], DATA.gradient.to[cell.layer]];
    const title = `${layerName(layer, true)} · step ${from === to ? to : `${from} to ${to}`}`;
    return { title, entries: [{ hue: 1, name: from === to ? "gradient norm" : "gradient norm, mean", value: number(cell.value) }] };
  });
  box.replaceChildren(svg);
}
