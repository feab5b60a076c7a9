// The heat map of weight change: layers across, projections down; metric and model chosen by the reader.

const ramp = (share) =>
  share < 0.5
    ? `color-mix(in srgb, var(--heat1) ${(200 * share).toFixed(1)}%, var(--heat0))`
    : `color-mix(in srgb, var(--heat2) ${(200 * share - 100).toFixed(1)}%, var(--heat1))`;

function heatCells(spec, metric) {
  const rowOf = new Map(spec.rows.flatMap(([, modules], row) => modules.map((module) => [module, row])));
  const cells = [];
  for (const s of DATA.series)
    if (s.metric === metric && rowOf.has(s.module) && drawnIn(spec, s.model))
      s.layer.forEach((layer, i) => s.value[i] === null || cells.push({ model: s.model, module: s.module, row: rowOf.get(s.module), layer, value: s.value[i] }));
  const moved = spec.data?.blank?.includes(metric) ? cells.filter((cell) => cell.value !== 0) : [];
  return moved.length ? moved : cells;
}

function heatScale(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low < 0) {
    const most = Math.max(-low, high); // no change is the middle, whichever way the most goes
    return Object.assign((v) => 0.5 + v / most / 2, { from: -most, high: most, log: false, fill: (share) => diverging(2 * share - 1) });
  }
  const log = low > 0 && high / low > 100;
  const from = log ? low : 0;
  const at = log ? Math.log : (v) => v;
  const span = at(high) - at(from) || 1;
  return Object.assign((v) => Math.max(0, Math.min(1, (at(v) - at(from)) / span)), { from, high, log, fill: ramp });
}

function heatControls(box, spec, models) {
  const tools = box.parentElement.querySelector(".tools");
  if (tools.querySelector("select")) return;
  const choose = (key, label, options) => {
    const select = html(null, "select", { "aria-label": label });
    for (const [value, text] of options) html(select, "option", { value }, text);
    select.addEventListener("change", () => { box.dataset[key] = select.value; drawHeat(box, spec); });
    return select;
  };
  const selects = [choose("metric", "Metric", spec.metrics.map((m) => [m, DATA.metrics[m].title]))];
  if (models.length > 1) selects.push(choose("model", "Model", models.map((m) => [m, m])));
  tools.prepend(...selects);
}

function drawHeat(box, spec) {
  const metric = (box.dataset.metric ??= spec.metrics[0]);
  const cells = heatCells(spec, metric);
  const models = DATA.models.filter((name) => cells.some((cell) => cell.model === name));
  heatControls(box, spec, models);
  const model = models.includes(box.dataset.model) ? box.dataset.model : models[0];
  const rows = spec.rows.map(([label, modules], row) => ({ label, modules, row })).filter((r) => cells.some((c) => c.row === r.row));
  const left = Math.ceil(Math.max(...rows.map((r) => textWidth(r.label)))) + 10;
  const width = Math.max(box.clientWidth, left + (L + 2) * 7);
  const x = depthScale(left, width - (width < 700 ? 11 : 2));
  const scale = heatScale(cells.map((cell) => cell.value));
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, `${spec.title}: ${DATA.metrics[metric].title}, ${model}`);
  draw(svg, "desc", {}, spec.caption);
  const top = heatKey(svg, scale, `${DATA.metrics[metric].title} · ${model}`, DATA.metrics[metric].unit, width);
  const tall = 21;
  let y = top;
  let previous = null;
  for (const row of rows) {
    if (previous !== null && heatPart(row) !== heatPart(previous)) y += 7;
    Object.assign(row, { y });
    draw(draw(svg, "g", { class: "axis" }), "text", { x: left - 8, y: y + tall / 2 + 4, "text-anchor": "end" }, row.label);
    previous = row;
    y += tall;
  }
  const shown = cells.filter((cell) => cell.model === model).sort((a, b) => a.row - b.row || a.layer - b.layer);
  const gap = Math.min(1.5, x.step * 0.12);
  for (const cell of shown) {
    const at = rows.find((row) => row.row === cell.row).y;
    const rect = draw(svg, "rect", { class: "cell", x: x(cell.layer) - x.step / 2 + gap / 2, y: at + 0.75, width: x.step - gap, height: tall - 1.5, rx: 1.5 });
    rect.style.fill = scale.fill(scale(cell.value));
  }
  const ends = { first: shown.some((c) => c.layer < 0), last: shown.some((c) => c.layer >= L) ? "head" : null };
  depthAxis(svg, x, y + 4, ends, true);
  svg.setAttribute("height", y + 44);
  svg.setAttribute("viewBox", `0 0 ${width} ${y + 44}`);
  heatCursor(svg, shown, rows, x, top, y, tall, (cell) => ({
    title: `${layerName(cell.layer, true)} · ${cell.module}`,
    entries: [{ hue: hue(cell.model), name: cell.model, value: number(cell.value) }],
  }));
  box.replaceChildren(svg);
}
const heatPart = (row) => (/_proj/.test(row.label) ? 0 : ["attention", "mlp", "norm", "block"].includes(row.label) ? 1 : /embed|head/.test(row.label) ? 2 : 0);

function heatKey(svg, scale, name, unit, width) {
  const group = draw(svg, "g", { class: "axis" });
  const title = draw(group, "text", { class: "y-title", x: 0, y: 12 });
  draw(title, "tspan", { class: "strong" }, shortened(name, width - 10));
  const [bar, left] = [Math.min(220, width * 0.42), textWidth(number(scale.from, 2)) + 6];
  for (let i = 0; i < 40; i++)
    draw(group, "rect", { x: left + (i * bar) / 40, y: 22, width: bar / 40 + 0.4, height: 9 }).style.fill = scale.fill((i + 0.5) / 40);
  draw(group, "text", { x: 0, y: 30.5 }, number(scale.from, 2));
  draw(group, "text", { x: left + bar + 6, y: 30.5 }, `${number(scale.high, 2)}  ${unit}${scale.log ? ", log" : ""}`);
  return 44;
}

// Cells have a column (`layer`) and a row; `told` says what stands in one.
function heatCursor(svg, cells, rows, x, top, bottom, tall, told) {
  const mark = draw(svg, "rect", { class: "cell-mark", width: x.step, height: tall, visibility: "hidden" });
  const area = draw(svg, "rect", {
    class: "overlay", x: x.left, y: top, width: x.right - x.left, height: bottom - top, tabindex: 0, role: "slider",
    "aria-label": "Cell", "aria-valuemin": 0, "aria-valuemax": cells.length, "aria-valuenow": 0,
  });
  const leave = () => { mark.setAttribute("visibility", "hidden"); hideTip(); };
  let here = cells[0];
  const show = (cell, px, py) => {
    here = cell;
    const row = rows.find((r) => r.row === cell.row);
    for (const [name, value] of [["x", x(cell.layer) - x.step / 2], ["y", row.y], ["visibility", "visible"]]) mark.setAttribute(name, value);
    const { title, entries } = told(cell);
    area.setAttribute("aria-valuenow", cells.indexOf(cell));
    area.setAttribute("aria-valuetext", `${title}: ${asText(entries)}`);
    showTip(title, entries, px, py);
  };
  const find = (layer, row) => cells.find((c) => c.layer === layer && c.row === row);
  const pointed = (event) => {
    const frame = svg.getBoundingClientRect();
    const row = rows.find((r) => event.clientY - frame.top >= r.y && event.clientY - frame.top < r.y + tall);
    const cell = row && find(x.invert(event.clientX - frame.left), row.row);
    cell ? show(cell, event.clientX, event.clientY) : leave();
  };
  const keyed = (cell) => {
    const frame = svg.getBoundingClientRect();
    show(cell, frame.left + x(cell.layer), frame.top + rows.find((r) => r.row === cell.row).y + tall / 2);
  };
  for (const name of ["pointermove", "pointerdown"]) area.addEventListener(name, pointed);
  area.addEventListener("pointerleave", leave);
  area.addEventListener("blur", leave);
  area.addEventListener("focus", () => here && area.matches(":focus-visible") && keyed(here));
  area.addEventListener("keydown", (event) => {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.key === "Escape") leave();
    if (!way || !here) return;
    event.preventDefault();
    const place = rows.findIndex((r) => r.row === here.row) + way[1];
    const along = cells.filter((c) => c.row === here.row && (c.layer - here.layer) * way[0] > 0);
    const beside = rows[place] && cells.filter((c) => c.row === rows[place].row);
    const near = (options) => options.reduce((a, b) => (Math.abs(b.layer - here.layer) < Math.abs(a.layer - here.layer) ? b : a));
    const options = way[0] ? along : beside;
    if (options?.length) keyed(near(options));
  });
}
