// Marks inside a panel: curves, bands, bars and references. A NaN is a gap; a layer not measured is bridged by dots.

const WIDEST = 60; // pixels for all bars of a block

// Runs of neighbouring layers with a value; `broken` ones end at a NaN, the rest at layers that were not measured.
function runsOf(points, keys) {
  const runs = [];
  let run = null;
  for (const point of points) {
    const whole = keys.every((key) => point[key] !== null);
    const last = run?.at(-1);
    if (!whole) run = null;
    else if (last && point.layer === last.layer + 1 && point.layer < L) run.push(point);
    else runs.push((run = Object.assign([point], { bridged: Boolean(last) })));
  }
  return runs;
}
const path = (points, x, y, key = "v") => points.map((p, i) => `${i ? "L" : "M"}${x(p.layer).toFixed(1)} ${y(p[key]).toFixed(1)}`).join("");

function drawBand(group, points, x, y, look) {
  const usable = y.log ? points.map((p) => (p.lo === null ? p : { ...p, lo: Math.max(p.lo, y.low) })) : points;
  for (const run of runsOf(usable, ["lo", "hi"])) {
    if (run.length === 1) {
      draw(group, "line", { class: look + " whisker", x1: x(run[0].layer), x2: x(run[0].layer), y1: y(run[0].lo), y2: y(run[0].hi) });
    } else {
      const back = path([...run].reverse(), x, y, "lo").replace("M", "L");
      draw(group, "path", { class: look + " band", d: path(run, x, y, "hi") + back + "Z" });
    }
  }
}

function drawCurve(group, points, x, y, look) {
  const usable = y.log ? points.map((p) => (p.v > 0 ? p : { ...p, v: null })) : points;
  let before = null;
  for (const run of runsOf(usable, ["v"])) {
    if (run.bridged) draw(group, "path", { class: look + " bridge", d: path([before, run[0]], x, y) });
    if (run.length > 1) draw(group, "path", { class: look + " line", d: path(run, x, y) });
    else draw(group, "circle", { class: look + " dot-mark", cx: x(run[0].layer), cy: y(run[0].v), r: 2.6 });
    before = run.at(-1);
  }
}

// A point that is not measured in full is hollow; the tip says why.
function drawUnsure(group, points, x, y, look) {
  for (const point of points)
    if (doubt(point.state) && y(point.v) !== null) draw(group, "circle", { class: look + " unsure", cx: x(point.layer), cy: y(point.v), r: 2.8 });
}

function drawBars(group, lines, x, y) {
  const width = Math.min(x.step * 0.78, WIDEST) / lines.length;
  lines.forEach((line, place) => {
    for (const point of line.points) {
      if (point.v === null) continue;
      const left = x(point.layer) + (place - lines.length / 2) * width;
      const [top, foot] = [Math.min(y(point.v), y(0)), Math.max(y(point.v), y(0))];
      const gap = Math.min(1, width * 0.12);
      draw(group, "rect", { class: `m${line.hue} bar${doubt(point.state) ? " unsure" : ""}`, x: left + gap / 2, y: top, width: width - gap, height: Math.max(0.5, foot - top), rx: Math.min(2, width / 4) });
      if (point.lo !== null && point.hi !== null)
        draw(group, "line", { class: "error", x1: left + width / 2, x2: left + width / 2, y1: y(point.lo), y2: y(point.hi) });
    }
  });
}

function drawSplit(group, read, x, y) {
  const base = read.lines.find((line) => line.model === DATA.models[0]);
  if (!base || !read.split.length) return;
  const floor = new Map(read.split[0].points.map((p) => [p.layer, p.v]));
  const points = base.points.map((p) => {
    const half = floor.get(p.layer) ?? null;
    const none = half === null || p.v === null;
    return { ...p, lo: none ? null : p.v - half, hi: none ? null : p.v + half };
  });
  drawBand(group, points, x, y, "split");
}

function drawMarks(svg, read, x, y, mode) {
  const group = draw(svg, "g", { class: "marks" });
  if (nullShown(read, y, mode))
    for (const line of read.null) { drawBand(group, line.points, x, y, "null"); drawCurve(group, line.points, x, y, "null"); }
  else noteNull(group, read, x, y);
  drawSplit(group, read, x, y);
  if (read.panel.zero && y(0) !== null) draw(group, "line", { class: "base", x1: x.left, x2: x.right, y1: y(0), y2: y(0) });
  for (const line of read.random) {
    drawBand(group, line.points, x, y, "random");
    drawCurve(group, line.points, x, y, "random");
  }
  if (read.bars) drawBars(group, read.lines, x, y);
  else {
    for (const line of read.seeds) drawBand(group, line.points, x, y, `m${line.hue} seeds`);
    for (const line of read.lines) drawBand(group, line.points, x, y, "m" + line.hue);
    for (const line of read.floor) drawCurve(group, line.points, x, y, "floor");
    for (const line of read.beside) drawCurve(group, line.points, x, y, `m${line.hue} beside`);
    for (const line of read.lines) drawCurve(group, line.points, x, y, `m${line.hue}${repeats(line.model) ? " again" : ""}`);
    for (const line of read.lines) drawUnsure(group, line.points, x, y, "m" + line.hue);
  }
  drawPointed(group, read, x, y);
}

// A depth pointed out: a rule down from its curve, a triangle on the axis, its interval along the axis.
function drawPointed(group, read, x, y) {
  read.marks.forEach((mark, i) => {
    const look = "m" + hue(mark.model);
    const at = x(mark.layer);
    const height = read.lines.find((line) => line.model === mark.model)?.points.find((p) => p.layer === mark.layer)?.v ?? null;
    if (height !== null && y(height) !== null) draw(group, "line", { class: look + " pointed", x1: at, x2: at, y1: y(height), y2: y.bottom });
    if (mark.low !== null && mark.high !== null && mark.high > mark.low)
      draw(group, "line", { class: look + " reach", x1: x(mark.low), x2: x(mark.high), y1: y.bottom - 5 - 5 * i, y2: y.bottom - 5 - 5 * i });
    const same = read.marks.filter((other) => other.layer === mark.layer);
    const beside = at + 9 * (same.indexOf(mark) - (same.length - 1) / 2); // triangles of one block stand side by side
    const triangle = draw(group, "path", { class: look + " centre", d: `M${beside} ${y.bottom - 1}l5 8h-10Z` });
    draw(triangle, "title", {}, `${mark.model}: ${mark.name}, block ${mark.layer}`);
  });
}

// Zoomed in, the null is drawn only if it lies within the curves' own range.
function nullShown(read, { low, high }, mode) {
  if (mode !== "zoom" || !read.null.length) return read.null.length > 0;
  const [least, most] = nullEnds(read);
  return least < high && most > low;
}
function nullEnds(read) {
  const points = read.null.flatMap((line) => line.points).filter((p) => p.v !== null);
  return [Math.min(...points.map((p) => p.lo ?? p.v)), Math.max(...points.map((p) => p.hi ?? p.v))];
}

function noteNull(group, read, x, y) {
  if (!read.null.length) return;
  const ends = nullEnds(read);
  const where = ends[1] <= y.low ? "below this axis ↓" : "above this axis ↑";
  const text = `null (95 %): ${number(ends[0], 2)} to ${number(ends[1], 2)} ${where}`;
  draw(group, "text", { class: "note", x: x.left + 6, y: y.bottom - 7 }, text);
}
