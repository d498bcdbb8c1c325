// The density of the tokens over probability and entropy, which is a brush: a rectangle drawn on it filters the rows.
//
// Axes as in maps/density.png: x is ln(p / (1 - p)), y the square root of H, so that both ends of p and the nats below 1 have room.

const X_RANGE = [logit(1e-7), logit(1 - 1e-5)];
const [X_BINS, Y_BINS] = [80, 50];
const X_TICKS = [[1e-6, "10⁻⁶"], [1e-4, "10⁻⁴"], [0.01, "0.01"], [0.1, "0.1"], [0.5, "0.5"], [0.9, "0.9"], [0.999, "0.999"]];
const FRAME = { left: 34, right: 6, top: 6, bottom: 22 };

function logit(p) {
  return Math.log(p) - Math.log1p(-p);
}

function makeDensity(canvas, page, onBrush) {
  const paint = canvas.getContext("2d");
  const probe = document.body.appendChild(make("i"));
  probe.hidden = true;
  const scale = canvas.width / 316;
  const [width, height] = [316, 200];
  const plot = { left: FRAME.left, top: FRAME.top, width: width - FRAME.left - FRAME.right, height: height - FRAME.top - FRAME.bottom };
  const greatestRoot = Math.sqrt(Math.log(Math.max(page.run.vocabSize, 2)));

  const clamp = (value) => Math.min(Math.max(value, 0), 1);
  const inside = (p) => Math.min(Math.max(p, 1e-30), 1 - 1e-16);
  const xOf = (p) => plot.left + plot.width * clamp((logit(inside(p)) - X_RANGE[0]) / (X_RANGE[1] - X_RANGE[0]));
  const yOf = (h) => plot.top + plot.height * (1 - clamp(Math.sqrt(Math.max(h, 0)) / greatestRoot));
  const pAt = (x) => {
    const at = (x - plot.left) / plot.width;
    if (at <= 0) return 0;
    if (at >= 1) return 1;
    return 1 / (1 + Math.exp(-(X_RANGE[0] + at * (X_RANGE[1] - X_RANGE[0]))));
  };
  const hAt = (y) => {
    const at = 1 - (y - plot.top) / plot.height;
    if (at <= 0) return 0;
    return at >= 1 ? Infinity : (at * greatestRoot) ** 2;
  };
  let cells = countCells(page.run, greatestRoot);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };

  function draw() {
    const { filters, run } = page;
    paint.setTransform(scale, 0, 0, scale, 0, 0);
    paint.clearRect(0, 0, width, height);
    const most = Math.log1p(cells.reduce((a, b) => Math.max(a, b), 1));
    const steps = Array.from({ length: STEPS }, (_, i) => colour(`--h${i + 1}`));
    const [cellWidth, cellHeight] = [plot.width / X_BINS, plot.height / Y_BINS];
    cells.forEach((n, i) => {
      if (n === 0) return;
      paint.fillStyle = steps[Math.max(1, Math.ceil((Math.log1p(n) / most) * STEPS)) - 1];
      const [x, y] = [i % X_BINS, Math.floor(i / X_BINS)];
      paint.fillRect(plot.left + x * cellWidth, plot.top + plot.height - (y + 1) * cellHeight, cellWidth + 0.3, cellHeight + 0.3);
    });
    const [ink, soft, rule] = [colour("--ink"), colour("--soft"), colour("--rule")];
    paint.strokeStyle = rule;
    paint.lineWidth = 1;
    paint.strokeRect(plot.left, plot.top, plot.width, plot.height);
    paint.fillStyle = soft;
    paint.font = "10px system-ui, sans-serif";
    paint.textAlign = "center";
    for (const [p, label] of X_TICKS) paint.fillText(label, xOf(p), height - 8);
    paint.textAlign = "right";
    for (const h of [0, 0.1, 0.5, 1, 2, 4, 8]) if (Math.sqrt(h) <= greatestRoot) paint.fillText(String(h), plot.left - 4, yOf(h) + 3);
    paint.textAlign = "left";
    paint.fillText("H", 2, plot.top + 10);
    paint.fillText("p", width - 9, height - 8);
    // The thresholds of the quadrants.
    paint.setLineDash([3, 3]);
    paint.strokeStyle = soft;
    const { p, entropy } = run.thresholds;
    paint.beginPath();
    if (p !== null) (paint.moveTo(xOf(p), plot.top), paint.lineTo(xOf(p), plot.top + plot.height));
    paint.moveTo(plot.left, yOf(entropy));
    paint.lineTo(plot.left + plot.width, yOf(entropy));
    paint.stroke();
    paint.setLineDash([]);
    if (isBrushed(filters)) {
      const [x0, x1] = [filters.p[0] <= 0 ? plot.left : xOf(filters.p[0]), filters.p[1] >= 1 ? plot.left + plot.width : xOf(filters.p[1])];
      const [y1, y0] = [yOf(filters.entropy[0]), filters.entropy[1] === Infinity ? plot.top : yOf(filters.entropy[1])];
      paint.strokeStyle = ink;
      paint.lineWidth = 2;
      paint.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    if (page.token >= 0) {
      paint.beginPath();
      paint.arc(xOf(Math.exp(run.logprob[page.token])), yOf(run.entropy[page.token]), 4, 0, 7);
      paint.lineWidth = 3;
      paint.strokeStyle = colour("--paper");
      paint.stroke();
      paint.lineWidth = 1.5;
      paint.strokeStyle = ink;
      paint.stroke();
    }
  }

  let from = null;
  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    from = placeOf(event);
    canvas.setPointerCapture(event.pointerId);
  });
  const drag = (event) => {
    if (!from) return;
    const to = placeOf(event);
    // A click takes the rectangle away.
    const isClick = Math.abs(to[0] - from[0]) < 4 && Math.abs(to[1] - from[1]) < 4;
    if (isClick) onBrush([0, 1], [0, Infinity]);
    else onBrush([from[0], to[0]].map(pAt).sort((a, b) => a - b), [from[1], to[1]].map(hAt).sort((a, b) => a - b));
  };
  canvas.addEventListener("pointermove", drag);
  canvas.addEventListener("pointerup", (event) => {
    drag(event);
    from = null;
  });
  canvas.addEventListener("pointercancel", () => (from = null));
  const recount = () => (cells = countCells(page.run, greatestRoot));
  return { draw, recount };
}

function isBrushed({ p, entropy }) {
  return p[0] > 0 || p[1] < 1 || entropy[0] > 0 || entropy[1] < Infinity;
}

function countCells(run, greatestRoot) {
  const cells = new Uint32Array(X_BINS * Y_BINS);
  const bin = (at, bins) => Math.min(Math.max(Math.floor(at * bins), 0), bins - 1);
  for (let token = 0; token < run.logprob.length; token++) {
    const logprob = run.logprob[token];
    const x = logprob >= 0 ? Infinity : logprob - Math.log(-Math.expm1(logprob));
    const y = Math.sqrt(Math.max(run.entropy[token], 0));
    cells[bin(y / greatestRoot, Y_BINS) * X_BINS + bin((x - X_RANGE[0]) / (X_RANGE[1] - X_RANGE[0]), X_BINS)]++;
  }
  return cells;
}
