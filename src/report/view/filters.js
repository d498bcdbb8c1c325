// What is asked for -> the rows to show, in their order.
//
// A row passes if its source and text do, and one and the same of its tokens passes everything that is asked of tokens: quadrants, kind,
// group (the same kind, target and choice), what became of it in the second run, turn, and the rectangle of p and H.

const ORDERS = [
  {
    id: "sharpest", name: "sharpest conflict",
    about: "the largest surplus of any conflict about content; then rows whose conflicts are all about form " +
      "(template, format, wording); then rows without any",
  },
  { id: "surplus", name: "conflict surplus", about: "the surplus of all conflicts", of: (page, row) => page.run.conflictSurplus[row] },
  { id: "loss", name: "conflict loss", about: "the loss of all conflicts", of: (page, row) => page.run.conflictLoss[row] },
  { id: "grad", name: "conflict gradient", about: "the gradient of all conflicts", of: (page, row) => page.run.conflictGrad[row] },
  { id: "conflicts", name: "conflicts", about: "how many conflicts", of: (page, row) => page.run.conflicts[row] },
  { id: "mean", name: "mean -ln p", about: "the mean loss of all tokens", of: (page, row) => -page.run.meanLogprob[row] },
  {
    id: "change", name: "change", about: "how far the mean of ln p has changed", compared: true,
    of: (page, row) => Math.abs(page.changes.ofRow[row]),
  },
  {
    id: "lost", name: "nats lost", about: "the total increase in loss: size times count", compared: true,
    of: (page, row) => (Number.isNaN(page.changes.ofRow[row]) ? NaN : page.changes.lossOfRow[row]),
  },
  { id: "file", name: "order of the file", about: "as in the data", of: (page, row) => -page.run.row[row] },
];

function noFilters() {
  return { text: "", source: null, turn: null, kind: null, group: null, moved: null, quadrants: [true, true, true, true], p: [0, 1], entropy: [0, Infinity] };
}

function asksOfTokens(filters) {
  const { quadrants, kind, group, moved, turn, p, entropy } = filters;
  return kind !== null || group !== null || moved !== null || turn !== null || !quadrants.every(Boolean) || p[0] > 0 || p[1] < 1 || entropy[0] > 0 || entropy[1] < Infinity;
}

// 1 for each token that passes.
function passingTokens(run, filters, changes) {
  const passes = new Uint8Array(run.logprob.length);
  const { quadrants, kind, group, moved, turn, entropy } = filters;
  // Compared as logarithms, in which the table has them; a rectangle that reaches the edge takes in what lies on it.
  const [low, high] = [filters.p[0] <= 0 ? -Infinity : Math.log(filters.p[0]), filters.p[1] >= 1 ? Infinity : Math.log(filters.p[1])];
  for (let token = 0; token < passes.length; token++) {
    const logprob = run.logprob[token];
    const h = Math.max(run.entropy[token], 0);
    passes[token] =
      quadrants[run.quadrant[token]] && logprob >= low && logprob <= high && h >= entropy[0] && h <= entropy[1] &&
      (turn === null || run.turn[token] === turn) && (kind === null || run.kind[token] === kind) &&
      (group === null || groupKey(run, token) === group) && (moved === null || changes.moved[token] === moved) ? 1 : 0;
  }
  return passes;
}

// Indices of the rows to show.
function chosenRows(page) {
  const { run, filters, passes } = page;
  const wanted = filters.text.toLowerCase();
  const rows = [];
  for (let row = 0; row < run.row.length; row++) {
    if (filters.source !== null && run.source[row] !== filters.source) continue;
    if (passes && !passes.subarray(...tokensOfRow(run, row)).includes(1)) continue;
    if (wanted && !searchText(page, row).includes(wanted)) continue;
    rows.push(row);
  }
  const scores = scoresOf(page);
  return rows.sort((a, b) => (scores[a] === scores[b] ? run.row[a] - run.row[b] : scores[b] - scores[a]));
}

// What has no number, such as the change of a row without a partner, comes last.
function scoresOf(page) {
  const { run, order } = page;
  const of = ORDERS.find(({ id }) => id === order).of ?? ((page, row) => sharpness(run, page.sharpest[row]));
  return Float64Array.from(run.row, (_, row) => of(page, row)).map((score) => (Number.isNaN(score) ? -Infinity : score));
}

function sharpness(run, token) {
  return token < 0 ? -4e9 : surplusOf(run, token) + (weightinessOf(run, token) - 2) * 1e9;
}

// All that can be searched of a row, in small letters; made when it is first asked for.
function searchText(page, row) {
  const { run, searchTexts } = page;
  if (searchTexts[row] === undefined) {
    const turns = turnsOfRow(run, row).map(({ bytes }) => decode(bytes, 0, bytes.length));
    const [begin, end] = tokensOfRow(run, row);
    // Without the turns all tokens, otherwise those of the reasoning and the calls, which no content holds.
    let beside = "";
    for (let token = begin; token < end; token++) {
      if (turns.length && !run.part[token]) continue;
      const goesOn = token > begin && run.pos[token] === run.pos[token - 1] + 1 && !(turns.length && !run.part[token - 1]);
      beside += (goesOn ? "" : "\n") + run.words[run.word[token]];
    }
    searchTexts[row] = `${run.ids[row] ?? ""}\n${turns.join("\n")}${beside}`.toLowerCase();
  }
  return searchTexts[row];
}
