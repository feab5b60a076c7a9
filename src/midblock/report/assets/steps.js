// Figures of the training log: panels stacked in one SVG, sharing the axis of optimizer steps, the legend and the cursor.

const FEW = 40; // logged steps up to which each is a mark

function stepScale(left, right) {
  const [low, last] = [DATA.steps.step[0], DATA.steps.step.at(-1)];
  const high = Math.max(last, low + 1);
  const scale = (step) => left + ((step - low) / (high - low)) * (right - left);
  return Object.assign(scale, { left, right, low, high, invert: (x) => low + ((x - left) / (right - left)) * (high - low) });
}

// What a panel shows; `layer` is the place on the horizontal axis, as for curves by depth.
function readSteps(panel) {
  const points = (values) => DATA.steps.step.map((layer, i) => ({ layer, v: values[i] })).filter((p) => p.v !== null);
  const lines = panel.lines.map((line) => {
    const raw = points(DATA.steps.raw[line.key]);
    const smooth = line.mark === "smooth" ? points(DATA.steps.smooth[line.key]) : raw;
    return { ...line, hue: line.look.slice(1), raw, points: smooth };
  });
  return { panel, lines, title: panel.title, unit: panel.unit };
}

function stepDomain(read) {
  const values = read.lines.flatMap((line) => line.raw.map((p) => p.v));
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const trend = read.lines.flatMap((line) => line.points.map((p) => p.v));
  const thin = read.lines.every((line) => line.mark === "thin");
  if (low > 0 && !thin && Math.max(...trend) / Math.min(...trend) > 300) return { low: low / 1.25, high: high * 1.25, log: true };
  if (low >= 0 && low < 0.15 * high) low = 0;
  if (high === low) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.05, high + Math.abs(high) * 0.05];
  const pad = 0.07 * (high - low);
  return { low: low === 0 ? 0 : low - pad, high: high + pad, log: false };
}

// A panel too low for many ticks writes them short.
function stepLevels(read, domain, top) {
  const y = verticalScale(domain, top, top + read.panel.height);
  if (read.panel.height < 80) y.ticks = y.ticks.map(({ value }) => ({ value, label: number(value, 3) }));
  return y;
}

function drawStepLine(group, line, x, y) {
  const dots = line.mark !== "thin" && line.raw.length <= FEW;
  const smooth = line.points.some((p, i) => p.v !== line.raw[i].v);
  if (smooth) draw(group, "path", { class: line.look + " raw", d: path(line.raw, x, y) });
  draw(group, "path", { class: `${line.look} ${line.mark === "thin" ? "thin" : "line"}`, d: path(line.points, x, y) });
  for (const p of dots || line.raw.length === 1 ? line.raw : []) draw(group, "circle", { class: line.look + " dot-mark", cx: x(p.layer), cy: y(p.v), r: 2.4 });
}

function stepAxis(svg, x, bottom, ticks, labelled) {
  const group = draw(svg, "g", { class: "axis" });
  draw(group, "line", { class: "base", x1: x.left, x2: x.right, y1: bottom, y2: bottom });
  for (const { value, label, at = x(value) } of ticks) {
    draw(group, "line", { class: "base", x1: at, x2: at, y1: bottom, y2: bottom + 4 });
    const anchor = at > x.right - 12 ? "end" : at < x.left + 12 ? "start" : "middle";
    if (labelled) draw(group, "text", { x: at, y: bottom + 16, "text-anchor": anchor }, label);
  }
  if (labelled) draw(group, "text", { x: (x.left + x.right) / 2, y: bottom + 33, "text-anchor": "middle" }, "optimizer step");
}

const wholeTicks = (low, high, room) =>
  ticksLinear(low, high, room / 80).map(({ value }) => ({ value, label: String(value) })).filter((tick) => Number.isInteger(tick.value));

// A rule where a pass over the examples ends and another begins.
function epochRules(svg, x, top, bottom) {
  const { step, epoch } = DATA.steps;
  const ends = step.filter((_, i) => i && i < step.length - 1 && epoch[i] !== null && epoch[i - 1] !== null && Math.floor(epoch[i]) > Math.floor(epoch[i - 1]));
  if (ends.length > 24) return;
  ends.forEach((at, i) => {
    svg.prepend(draw(null, "line", { class: "epoch", x1: x(at), x2: x(at), y1: top, y2: bottom }));
    if ((x.right - x.left) / (ends.length + 1) > 60 && x.right - x(at) > 50) draw(svg, "text", { class: "epoch-name", x: x(at) + 4, y: top + 9 }, `epoch ${i + 2}`);
  });
}

function drawSteps(box, spec) {
  const width = Math.max(260, box.clientWidth);
  const reads = spec.steps.map(readSteps);
  const domains = reads.map(stepDomain);
  const labels = reads.flatMap((read, i) => stepLevels(read, domains[i], 0).ticks.map((tick) => tick.label));
  const x = stepScale(Math.ceil(Math.max(...labels.map((label) => textWidth(label)))) + 12, width - (width < 700 ? 8 : 2));
  const svg = draw(null, "svg", { width, role: "group", "aria-label": spec.title });
  draw(svg, "title", {}, spec.title);
  draw(svg, "desc", {}, spec.caption);
  const named = reads.flatMap((read) => (read.lines.length > 1 || reads.length > 1 && read === reads[0] ? read.lines : []));
  let top = drawLegend(svg, named.map((line) => ({ kind: "line", look: line.look, name: line.name })), width, 0) + 6;
  const first = top + 26;
  reads.forEach((read, i) => {
    const y = stepLevels(read, domains[i], top + 26);
    frame(svg, x, y, read.title, [read.unit, y.log ? "log" : ""].filter(Boolean).join(", "), reads.length === 1);
    const group = draw(svg, "g", { class: "marks" });
    for (const line of read.lines) drawStepLine(group, line, x, y);
    const last = i === reads.length - 1;
    stepAxis(svg, x, y.bottom, wholeTicks(x.low, x.high, x.right - x.left), last);
    Object.assign(read, { y });
    top = y.bottom + (last ? 40 : 18);
  });
  epochRules(svg, x, first, top - 40);
  svg.setAttribute("height", top);
  svg.setAttribute("viewBox", `0 0 ${width} ${top}`);
  cursor(svg, reads, x, first - 22, top - 40, DATA.steps.step, { label: "Step", title: stepName, rows: (step) => stepRows(reads, step) });
  box.replaceChildren(svg);
}

function stepName(step) {
  const epoch = DATA.steps.epoch[DATA.steps.step.indexOf(step)];
  return `Step ${step}` + (epoch === null ? "" : ` · epoch ${number(epoch, 3)}`);
}

function stepRows(reads, step) {
  return reads.flatMap((read) =>
    read.lines.flatMap((line) => {
      const at = (points) => points.find((p) => p.layer === step)?.v ?? null;
      const [raw, smooth] = [at(line.raw), at(line.points)];
      if (raw === null) return [];
      return [{ hue: line.hue, name: line.name, value: number(raw) + (smooth === raw ? "" : ` (smoothed ${number(smooth)})`) }];
    }),
  );
}
