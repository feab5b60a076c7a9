// Puts it together: draws the first screen at once and the rest when idle, redraws on resize, saves figures, switches
// colours and models.

const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "opacity", "font-size", "font-weight", "font-family", "visibility"];

function save(blob, name) {
  const link = html(document.body, "a", { href: URL.createObjectURL(blob), download: name, hidden: "" });
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Other programs read plain rgb() only, not what color-mix() and light-dark() compute to.
function plainColour(value) {
  const parts = /^color\(srgb ([\d.e-]+) ([\d.e-]+) ([\d.e-]+)(?: \/ ([\d.]+))?\)$/.exec(value);
  if (!parts) return value;
  const [r, g, b] = parts.slice(1, 4).map((v) => Math.round(255 * v));
  return parts[4] ? `rgba(${r}, ${g}, ${b}, ${parts[4]})` : `rgb(${r}, ${g}, ${b})`;
}

// The figure as it looks now, standing alone: styles written out, a ground and its title added.
function standalone(figure) {
  const source = figure.querySelector(".plot svg");
  const copy = source.cloneNode(true);
  const nodes = [...source.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((node, i) => {
    const style = getComputedStyle(nodes[i]);
    node.removeAttribute("style");
    for (const name of KEPT) node.setAttribute(name, plainColour(style.getPropertyValue(name)));
  });
  copy.querySelectorAll(".overlay, .cursor, .cell-mark").forEach((node) => node.remove());
  copy.querySelectorAll("[class]").forEach((node) => node.removeAttribute("class"));
  const [, , width, height] = source.getAttribute("viewBox").split(" ").map(Number);
  const size = { width: width + 32, height: height + 58 };
  for (const [name, value] of Object.entries({ ...size, viewBox: `-16 -42 ${size.width} ${size.height}`, xmlns: SVG })) copy.setAttribute(name, value);
  const body = getComputedStyle(figure);
  const title = draw(null, "text", { x: 0, y: -18, "font-size": 15, "font-weight": 650, fill: body.color, "font-family": body.fontFamily }, figure.querySelector("h3").textContent);
  copy.prepend(draw(null, "rect", { x: -16, y: -42, ...size, fill: body.backgroundColor }), title);
  return { text: new XMLSerializer().serializeToString(copy), ...size };
}

async function saveFigure(figure, kind) {
  const { text, width, height } = standalone(figure);
  const name = `${figure.dataset.figure}.${kind}`;
  if (kind === "svg") return save(new Blob([text], { type: "image/svg+xml" }), name);
  const picture = new Image();
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  await picture.decode();
  const sheet = html(null, "canvas", { width: 3 * width, height: 3 * height });
  const pen = sheet.getContext("2d");
  pen.scale(3, 3);
  pen.drawImage(picture, 0, 0, width, height);
  const blob = await new Promise((done) => sheet.toBlob(done, "image/png"));
  save(blob, name);
  return blob;
}

const KINDS = { lines: drawLines, heat: drawHeat, steps: drawSteps, step_heat: drawStepHeat, plan: drawPlan, spans: drawSpans, matrix: drawMatrix, forest: drawForest, estimates: drawEstimates, plane: drawPlane };

function drawFigure(figure) {
  const spec = DATA.figures[figure.dataset.figure];
  const box = figure.querySelector(".plot");
  if (!box.clientWidth) return; // inside something closed
  KINDS[spec.kind](box, spec);
  figure.dataset.drawn = box.clientWidth;
}

function modeButtons(figure, spec) {
  if (spec.modes.length < 2) return;
  const box = figure.querySelector(".plot");
  const group = html(null, "div", { class: "modes", role: "group", "aria-label": "Scale" });
  for (const mode of spec.modes) {
    const button = html(group, "button", { type: "button", "aria-pressed": mode === spec.modes[0] }, MODES[mode]);
    button.addEventListener("click", () => {
      box.dataset.mode = mode;
      for (const other of group.children) other.setAttribute("aria-pressed", other === button);
      drawFigure(figure);
    });
  }
  figure.querySelector(".tools").prepend(group);
}

function modelChips(figures) {
  const tuned = DATA.switch ?? DATA.models.slice(1);
  const anchor = document.querySelector(".chips-place") ?? document.querySelector(".lead");
  if (tuned.length < 2 || !figures.length) return;
  const group = html(null, "div", { class: "chips", role: "group", "aria-label": "Models shown" });
  for (const name of tuned) {
    const chip = html(group, "button", { type: "button", "aria-pressed": "true" });
    html(chip, "span", { class: "dot m" + hue(name) });
    html(chip, "span", {}, name);
    chip.addEventListener("click", () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      if (hidden.size === tuned.length) hidden.clear();
      [...group.children].forEach((other, i) => other.setAttribute("aria-pressed", !hidden.has(tuned[i])));
      figures.filter((f) => f.dataset.drawn).forEach(drawFigure);
    });
  }
  anchor.append(group);
}

function themeButton() {
  const button = document.getElementById("theme");
  const looks = [["", "◐", "as the system"], ["light", "☀", "light"], ["dark", "☾", "dark"]];
  button.addEventListener("click", () => {
    const now = looks.findIndex(([look]) => look === (document.documentElement.dataset.theme ?? ""));
    const [look, sign, name] = looks[(now + 1) % looks.length];
    document.documentElement.dataset.theme = look;
    button.textContent = sign;
    button.setAttribute("aria-label", `Colours: ${name}`);
    button.title = `Colours: ${name}`;
  });
}

const WAIT = 100; // ms after which a busy browser is not waited for
const ONE = { timeRemaining: () => 0 }; // where a browser does not tell its idle time: one at a time
const whenIdle = window.requestIdleCallback ? (act) => requestIdleCallback(act, { timeout: WAIT }) : (act) => setTimeout(act, 1, ONE);
const shut = (node) => node.closest("details:not([open])");

// The first screen at once, then what the reader comes near, the rest when the browser is idle: whoever saves or
// photographs the page finds it whole. What is behind a click waits for it.
function inTurn(nodes, act) {
  const waiting = new Set(nodes);
  const take = (node) => {
    if (!waiting.has(node) || shut(node)) return;
    waiting.delete(node);
    watch.unobserve(node);
    act(node);
  };
  const watch = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => take(entry.target)), { rootMargin: "600px" });
  const rest = (idle) => {
    const open = [...waiting].filter((node) => !shut(node));
    for (const [place, node] of open.entries()) {
      if (place && idle.timeRemaining() <= 0) return whenIdle(rest);
      take(node);
    }
    document.documentElement.dataset.drawn = "all";
  };
  // one after the other: what is drawn pushes the next one down
  for (const node of nodes) if (node.getBoundingClientRect().top < innerHeight) take(node);
  waiting.forEach((node) => watch.observe(node));
  whenIdle(rest);
}

// A page that was saved with its figures drawn builds its switches and its table anew.
function clear() {
  document.querySelectorAll(".modes, .chips").forEach((node) => node.remove());
  document.querySelectorAll(".filters, .numbers").forEach((node) => node.replaceChildren());
  document.querySelectorAll("[data-drawn]").forEach((node) => delete node.dataset.drawn);
}

// On paper nothing can be opened: figures behind a click are shown while the page is printed.
function printing(figures) {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.more:not([open])")];
    for (const part of opened) part.open = true;
    figures.filter((figure) => !figure.dataset.drawn).forEach(drawFigure);
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
}

function start() {
  clear();
  const figures = [...document.querySelectorAll("[data-figure]")];
  const tables = [...document.querySelectorAll(".numbers")];
  for (const figure of figures) {
    modeButtons(figure, DATA.figures[figure.dataset.figure]);
    for (const button of figure.querySelectorAll("[data-save]")) button.addEventListener("click", () => saveFigure(figure, button.dataset.save));
  }
  modelChips(figures);
  themeButton();
  inTurn([...figures, ...tables], (node) => (tables.includes(node) ? buildTable(node, document.querySelector(".filters")) : drawFigure(node)));
  const resized = new ResizeObserver(() => {
    hideTip();
    for (const figure of figures)
      if (figure.dataset.drawn && +figure.dataset.drawn !== figure.querySelector(".plot").clientWidth) drawFigure(figure);
  });
  resized.observe(document.body);
  printing(figures);
  addEventListener("scroll", hideTip, { passive: true });
}
start();
