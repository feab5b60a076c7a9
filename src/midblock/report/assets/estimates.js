// Numbers with intervals that lie at no depth: dots in rows on one axis ("estimates"), and points in a plane ("plane").

function estimateTicks(values, zero) {
  const known = values.filter((v) => v !== null);
  let [low, high] = [Math.min(...known, ...(zero ? [0] : [])), Math.max(...known, ...(zero ? [0] : []))];
  if (!known.length) [low, high] = [0, 1];
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  return { low: low < 0 || low - air > 0 || zero ? low - air : Math.min(low, 0), high: high + air };
}

// A heading above the first row of each group.
function estimateRows(rows, narrow) {
  const tall = narrow ? 36 : 22;
  let y = 0;
  return rows.map((entry, row, all) => {
    const heading = entry.group !== all[row - 1]?.group;
    y += heading ? 26 : 0;
    const [value, low, high] = entry.value;
    return { entry, row, heading, layer: 0, tall, y: (y += tall) - tall, text: number(value, 3) + rounded(low, high) };
  });
}

function drawEstimates(box, spec) {
  const width = Math.max(260, box.clientWidth);
  const rows = estimateRows(spec.data.rows, width - 190 < 330);
  const after = Math.ceil(Math.max(...rows.map((row) => textWidth(row.text)))) + 14;
  const room = Math.min((width - after) * 0.5, Math.ceil(Math.max(...rows.map((row) => textWidth(row.entry.name)))) + 14);
  const narrow = rows[0].tall > 22;
  const [left, right] = narrow ? [10, width - 10] : [room, Math.min(width - after, room + 560)];
  const { low: least, high: most } = estimateTicks(rows.flatMap((row) => row.entry.value), spec.data.zero);
  const at = (v) => left + ((v - least) / (most - least)) * (right - left);
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  const [axis, marks] = [draw(svg, "g", { class: "axis" }), draw(svg, "g", { class: "marks" })];
  const bottom = rows.at(-1).y + rows.at(-1).tall + 4;
  for (const tick of ticksLinear(least, most, Math.max(2, (right - left) / 80))) {
    draw(axis, "line", { class: tick.value ? "rule" : "base", x1: at(tick.value), x2: at(tick.value), y1: rows[0].y, y2: bottom });
    draw(axis, "text", { x: at(tick.value), y: bottom + 14, "text-anchor": "middle" }, tick.label);
  }
  for (const { entry, text, heading, y, tall } of rows) {
    const [value, low, high] = entry.value;
    const middle = y + (narrow ? 25 : tall / 2);
    if (heading) draw(draw(axis, "text", { class: "y-title", x: 0, y: y - 9 }), "tspan", { class: "strong" }, shortened(entry.group, 0.88 * width));
    const name = shortened(entry.name, narrow ? width - after : room - 10);
    const label = draw(axis, "text", narrow ? { x: 0, y: y + 12 } : { x: left - 9, y: middle + 4, "text-anchor": "end" }, name);
    if (name !== entry.name) draw(label, "title", {}, entry.name);
    draw(axis, "text", narrow ? { x: width, y: y + 12, "text-anchor": "end" } : { x: right + 12, y: middle + 4 }, text);
    if (low !== null && high !== null) draw(marks, "line", { class: `${entry.look} line`, x1: at(low), x2: at(high), y1: middle, y2: middle });
    if (value !== null) draw(marks, "circle", { class: `${entry.look} bar`, cx: at(value), cy: middle, r: 4 });
  }
  svg.setAttribute("height", bottom + 22);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 22}`);
  box.replaceChildren(svg);
}

// Gain to the right, loss upwards, both with their intervals; the dashed line is where they are equal.
function drawPlane(box, spec) {
  const width = Math.max(260, box.clientWidth);
  const points = spec.data.points;
  const [height, left, top] = [Math.min(340, Math.round(0.75 * width)), 52, 24];
  const [right, bottom] = [width - 14, height - 44];
  const across = estimateTicks(points.flatMap((p) => p.x), true);
  const x = (v) => left + ((v - across.low) / (across.high - across.low)) * (right - left);
  const y = verticalScale({ ...estimateTicks(points.flatMap((p) => p.y), true), log: false }, top, bottom);
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  const axis = draw(svg, "g", { class: "axis" });
  for (const tick of y.ticks) {
    draw(axis, "line", { class: tick.value ? "rule" : "base", x1: left, x2: right, y1: y(tick.value), y2: y(tick.value) });
    draw(axis, "text", { x: left - 7, y: y(tick.value) + 4, "text-anchor": "end" }, tick.label);
  }
  for (const tick of ticksLinear(across.low, across.high, Math.max(2, (right - left) / 80))) {
    draw(axis, "line", { class: tick.value ? "rule" : "base", x1: x(tick.value), x2: x(tick.value), y1: top, y2: bottom });
    draw(axis, "text", { x: x(tick.value), y: bottom + 15, "text-anchor": "middle" }, tick.label);
  }
  draw(axis, "text", { x: (left + right) / 2, y: bottom + 32, "text-anchor": "middle" }, "gain on target tasks");
  draw(axis, "text", { class: "y-title", x: 0, y: 11 }, "loss on other tasks");
  const [from, to] = [Math.max(across.low, y.low), Math.min(across.high, y.high)];
  const marks = draw(svg, "g", { class: "marks" });
  if (from < to) draw(marks, "line", { class: "m0 thin again line", x1: x(from), x2: x(to), y1: y(from), y2: y(to) });
  for (const point of points) {
    const [[gain, least, most], [loss, low, high]] = [point.x, point.y];
    if (least !== null && most !== null) draw(marks, "line", { class: `${point.look} line`, x1: x(least), x2: x(most), y1: y(loss), y2: y(loss) });
    if (low !== null && high !== null) draw(marks, "line", { class: `${point.look} line`, x1: x(gain), x2: x(gain), y1: y(low), y2: y(high) });
    const dot = draw(marks, "circle", { class: `${point.look} bar`, cx: x(gain), cy: y(loss), r: 5 });
    draw(dot, "title", {}, `${point.name}: gain ${number(gain, 3)}${rounded(least, most)}, loss ${number(loss, 3)}${rounded(low, high)}`);
    const room = right - x(gain) > 90;
    draw(marks, "text", { x: x(gain) + (room ? 9 : -9), y: y(loss) - 8, "text-anchor": room ? "start" : "end" }, shortened(point.name, 140));
  }
  svg.setAttribute("height", height);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  box.replaceChildren(svg);
}
