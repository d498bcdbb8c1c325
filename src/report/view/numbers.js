// Numbers of a token: what the colours show, what the gates weigh, and how people read them.

const QUADRANTS = ["confident conflict", "uncertain", "confident", "hesitant"];
const STEPS = 10;

// What the colour can show: `at` places a token from 0 (paper) to 1 (stands out most), `ends` are the two ends of the legend.
const MEASURES = [
  {
    id: "surplus", name: "surplus", about: "-ln p - H: how far the loss exceeds what the model expected, in nats",
    ends: ["0", "8 nats"], at: (run, token) => surplusOf(run, token) / 8,
  },
  {
    id: "p", name: "p", about: "probability of the data's token",
    ends: ["p 1", "0"], at: (run, token) => 1 - Math.exp(run.logprob[token]),
  },
  {
    id: "entropy", name: "H", about: "entropy of the model's prediction",
    ends: ["0", "6 nats"], at: (run, token) => run.entropy[token] / 6,
  },
  {
    id: "tail", name: "tail", about: "probability of a token no more likely than the data's",
    ends: ["1", "10⁻⁵"], at: (run, token) => -Math.log10(Math.max(run.tail[token], 1e-9)) / 5,
  },
  { id: "quadrant", name: "quadrant", about: "low or high p by low or high H, under the run's thresholds" },
  {
    id: "weight", name: "weight", about: "the factor of the token's gradient under a loss",
    ends: ["0", "1 or more"], at: (run, token, page) => weightOf(run.gates[page.gate].weight, run, token),
  },
];
const CHANGE = { id: "change", name: "change", about: "ln p after minus ln p before" };

// The functions of `Weight` in the program's diagnosis/gate/weight.rs, by the names that it gives them.
function weightOf(weight, run, token) {
  const [logprob, entropy, topk, grad] = [run.logprob[token], run.entropy[token], run.entropyTopk[token], run.grad[token]];
  switch (weight.function) {
    case "one": return 1;
    case "power": return (weight.scale * topk) ** weight.exponent;
    case "sigmoid": return 1 / (1 + Math.exp(-weight.slope * ((weight.scale ?? 1) * topk - weight.center)));
    case "above": return topk > weight.threshold ? 1 : 0;
    case "outside_corner": return logprob <= weight.logprob && entropy <= weight.entropy ? 0 : 1;
    case "likely": return logprob >= weight.logprob ? 1 : 0;
    case "probability": return Math.exp(logprob);
    case "deft": {
      const p = Math.exp(logprob);
      const concentration = Math.min(Math.max(grad * grad - 1 + 2 * p, Math.min(p * p, 1)), 1);
      return Math.exp(concentration * logprob);
    }
    case "tempered": return Math.max(Math.exp(logprob / weight.tau), 0.01);
    // The model at hand is the earlier one, too, so that p / p_old is 1.
    case "ratio": return weight.most >= 1 ? 1 : 0;
    default: throw new Error(`unknown weight ${weight.function}`);
  }
}

// The step of colour, 0 (none) to STEPS.
function stepOf(at) {
  return Math.round(Math.min(Math.max(at, 0), 1) * STEPS) || 0;
}

function percent(p) {
  if (p >= 0.9995 && p < 1) return "> 99.9 %";
  if (p >= 0.1) return (100 * p).toFixed(p >= 0.995 ? 1 : 0) + " %";
  if (p >= 0.0001) return (100 * p).toPrecision(2) + " %";
  if (p === 0 || Number.isNaN(p)) return String(p);
  const [factor, exponent] = p.toExponential(1).split("e-");
  return `${factor}·10⁻${Array.from(exponent, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
}

function nats(value) {
  return (Object.is(Math.round(value * 100), -0) ? 0 : value).toFixed(2).replace("-", "−");
}

function thousands(n) {
  return n.toLocaleString("en-US");
}

// One rule of words for one and many.
function count(n, one) {
  return `${thousands(n)} ${one}${n === 1 ? "" : "s"}`;
}
