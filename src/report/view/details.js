// What is known of one token.

function drawDetails(place, page, run, token) {
  place.replaceChildren();
  if (token < 0) {
    place.append(make("h2", "", "Point at a token, or select one with ← and →."));
    return;
  }
  const word = (idx) => quotedToken(run.words[idx]);
  const side = run === page.after ? "after · " : page.after ? "before · " : "";
  const heading = make("h2", "", `${side}turn ${run.turn[token]} · token ${run.pos[token]}`);
  const target = make("p", "target");
  const code = make("code", "", word(run.word[token]));
  code.dir = "auto";
  target.append(isolatedNode(code), make("span", `is-q${run.quadrant[token]}`, ` ${QUADRANTS[run.quadrant[token]]}`));
  place.append(heading, target, expectation(run, token, word));
  place.append(choices(run, token, word));

  const facts = [
    ["entropy H", `${nats(run.entropy[token])} nats`],
    ["surplus -ln p - H", `${nats(surplusOf(run, token))} nats`],
    ["surplus / sd", nats(surplusOf(run, token) / Math.sqrt(Math.max(run.varentropy[token], 1e-6)))],
    ["tail", percent(run.tail[token])],
    ["gradient", run.grad[token].toFixed(3)],
  ];
  if (run.kinds && run.kind[token]) facts.unshift(["kind", run.kinds[run.kind[token]] + evidenceOf(run, token)]);
  const part = { [REASONING]: "the reasoning", [TOOL_CALL]: "a tool call" }[run.part[token]];
  if (part) facts.unshift(["part of", part]);
  if (page.after) facts.push(["change of ln p", changeText(changeOf(page, run, token))]);
  place.append(table(facts));

  const weights = make("details");
  weights.open = page.measure.id === "weight";
  weights.append(make("summary", "", "Weight under each loss"));
  weights.append(table(run.gates.map((gate) => [gate.name, weightOf(gate.weight, run, token).toFixed(3)])));
  place.append(weights);
}

function expectation(run, token, word) {
  const line = make("p", "expected");
  if (run.top[token] === run.word[token]) {
    line.append("The model expected this token.");
    return line;
  }
  const code = make("code", "", word(run.top[token]));
  line.append("The model expected ", isolatedNode(code), ` (${percent(Math.exp(run.topLogprob[token]))}).`);
  return line;
}

// The model's first choices with their ranks and probabilities, and the target among them or below.
function choices(run, token, word) {
  const list = [[run.top[token], run.topLogprob[token], 1], ...alternativesOf(run, token)];
  if (!list.some(([idx]) => idx === run.word[token])) list.push([run.word[token], run.logprob[token], run.rank[token]]);
  const body = make("table", "choices");
  for (const [idx, logprob, rank] of list) {
    const p = Math.exp(logprob);
    const row = body.appendChild(make("tr", idx === run.word[token] ? "is-target" : ""));
    const name = make("td");
    name.append(isolatedNode(make("code", "", word(idx))));
    const bar = make("td", "bar-cell");
    const amount = bar.appendChild(make("span", "amount"));
    amount.style.width = `${(100 * p).toFixed(1)}%`;
    row.append(make("td", "soft", thousands(rank)), name, bar, make("td", "", percent(p)));
  }
  body.setAttribute("aria-label", "Rank, token, probability");
  return body;
}

// Word, ln p and rank of the choices after the first. Tokens that the model was sure of have none.
function alternativesOf(run, token) {
  const list = [];
  if (!run.alternativesFrom) return list;
  for (let i = run.alternativesFrom[token]; i < run.alternativesFrom[token + 1]; i++) {
    list.push([run.alternative[i], -run.alternativeSurprise[i] / 1000, list.length + 2]);
  }
  return list;
}

function evidenceOf(run, token) {
  if (run.kinds[run.kind[token]] === UNKNOWN_KIND) return ": unknown without conflicts.parquet";
  const evidence = run.evidences[run.evidence[token]];
  return evidence ? `: ${oneLine(evidence)}` : ": none of the rules fits";
}

function isolatedNode(node) {
  const bdi = make("bdi");
  bdi.append(node);
  return bdi;
}

function table(facts) {
  const body = make("table");
  for (const [name, value] of facts) {
    const row = body.appendChild(make("tr"));
    row.append(make("th", "", name), make("td", "", value));
    row.firstChild.scope = "row";
  }
  return body;
}
