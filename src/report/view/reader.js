// The row in full: its turns, and in what is learnt every token with the colour of what the user wants to see.

const AT_ONCE = 3000;

// Puts the turns of `row` of `run` into `place`; gives the steps that draw their tokens.
function stepsOfRow(page, run, row, place) {
  const [begin, end] = tokensOfRow(run, row);
  const turns = turnsOfRow(run, row);
  const byTurn = new Map();
  for (let token = begin; token < end; token++) {
    if (!byTurn.has(run.turn[token])) byTurn.set(run.turn[token], []);
    byTurn.get(run.turn[token]).push(token);
  }
  const numbers = turns.length ? turns.map((_, number) => number) : [...byTurn.keys()];
  const work = [];
  for (const number of numbers) {
    const tokens = byTurn.get(number) ?? [];
    const element = place.appendChild(make("article", tokens.length ? "turn" : "turn unlearnt"));
    const role = turns[number]?.role ?? "learnt";
    element.append(make("div", "role", `${number} ${role}`));
    const text = element.appendChild(make("div", "text"));
    text.dir = "auto";
    if (!tokens.length) {
      showText(text, decode(turns[number].bytes, 0, turns[number].bytes.length), page.dots);
      foldIfLong(text);
    } else if (turns[number]) {
      work.push(() => drawTokens(page, run, turns[number].bytes, tokens, text));
    } else {
      work.push(() => drawWords(page, run, tokens, text));
    }
  }
  return work.flatMap((draw) => draw());
}

// Each step draws up to AT_ONCE tokens: the first now, so that the first screen of a long row is there at once, the others when the browser
// has time, unless another row is drawn by then. `whenDone` is called where some came later.
function runInSlices(steps, page, whenDone) {
  const drawn = ++page.drawing;
  const next = () => {
    if (page.drawing !== drawn) return;
    steps.shift()();
    if (steps.length) setTimeout(next);
    else whenDone();
  };
  steps.shift()?.();
  // Rows of a few turns of usual length are drawn whole.
  while (steps.length && steps.length < 24 && steps[0].isShort) steps.shift()();
  if (steps.length) setTimeout(next);
}

function foldIfLong(text) {
  if (text.textContent.length < 900) return;
  text.classList.add("folded");
  text.parentElement.append(make("span"), button("Show all of it", () => text.classList.toggle("folded")));
}

function button(text, onClick) {
  const element = make("button", "", text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

// Of tokens that share a character the first shows it, and the others their bytes, in signs.
function drawTokens(page, run, bytes, tokens, place) {
  const steps = [];
  let at = 0;
  for (let from = 0; from < tokens.length; from += AT_ONCE) {
    const slice = tokens.slice(from, from + AT_ONCE);
    const isLast = from + AT_ONCE >= tokens.length;
    const step = () => {
      const fragment = new DocumentFragment();
      const plain = (begin, end) => {
        if (begin >= end) return;
        const span = make("span", "soft");
        showText(span, decode(bytes, begin, end), page.dots);
        fragment.append(span);
      };
      for (const token of slice) {
        const [begin, end] = [run.begin[token], run.end[token]];
        const span = tokenSpan(page, run, token);
        if (begin === end) {
          showText(span, run.words[run.word[token]], page.dots);
        } else {
          plain(at, begin);
          // The bytes that end a character of the token before, and what begins with this one.
          const head = Math.min(boundaryFrom(bytes, begin), end);
          if (head > begin) span.append(make("span", "sign", hex(bytes, begin, head)));
          if (head < end) showText(span, decode(bytes, head, boundaryFrom(bytes, end)), page.dots);
          at = end;
        }
        fragment.append(span);
      }
      if (isLast) plain(at, bytes.length);
      place.append(fragment);
    };
    step.isShort = tokens.length <= 200;
    steps.push(step);
  }
  return steps;
}

// Where the texts are not at hand, the tokens alone.
function drawWords(page, run, tokens, place) {
  const step = () => {
    for (const token of tokens) {
      const span = tokenSpan(page, run, token);
      showText(span, run.words[run.word[token]], page.dots);
      place.append(span);
    }
  };
  return [step];
}

function tokenSpan(page, run, token) {
  const span = make("span", "token");
  span.dataset.token = token;
  if (run === page.run) {
    span.tabIndex = -1;
    page.spans.set(token, span);
  } else {
    span.dataset.after = "";
  }
  paintToken(page, run, token, span);
  return span;
}

// The classes that say what a token is under the measure, the filters and the decisions.
function paintToken(page, run, token, span) {
  const classes = ["token"];
  if (isOfTemplate(run, token) && run.turnFrom.at(-1) > 0) classes.push("template");
  classes.push(`q${run.quadrant[token]}`);
  const { measure } = page;
  if (measure.id === "change") {
    const change = changeOf(page, run, token);
    if (Math.abs(change) >= 0.05) classes.push(change > 0 ? "better" : "worse");
    span.style.setProperty("--much", Math.min(Math.abs(change) / 3, 1).toFixed(2));
  } else if (measure.at) {
    const step = stepOf(measure.at(run, token, page));
    if (step > 0) classes.push(`h${step}`);
  }
  if (run === page.run) {
    if (page.passes?.[token]) classes.push("matched");
    if (isMasked(page, token)) classes.push("masked");
    if (token === page.token) classes.push("current");
    else if (isChosen(page, token)) classes.push("chosen");
  }
  span.className = classes.join(" ");
}

function isChosen(page, token) {
  const [from, to] = chosenTokens(page);
  return from !== to && token >= from && token <= to;
}

// First and last token of the selection; both are the current one where nothing else is selected.
function chosenTokens(page) {
  const anchor = page.anchor < 0 ? page.token : page.anchor;
  return [Math.min(anchor, page.token), Math.max(anchor, page.token)];
}

function isMasked(page, token) {
  const { run } = page;
  const { masks } = page.decisions.of(run.row[run.rowOfToken[token]]);
  const [turn, begin, end] = [run.turn[token], run.begin[token], run.end[token]];
  return masks.some((mask) => mask.turn === turn && (mask.end === Infinity || (begin < end && mask.begin < end && begin < mask.end)));
}

// Of each turn with selected tokens the whole, or the bytes from the first to the last of them, widened to whole characters; no span of a turn in
// which they have none.
function chosenSpans(page, areWhole) {
  const { run } = page;
  const [from, to] = chosenTokens(page);
  const turns = turnsOfRow(run, run.rowOfToken[from]);
  const spans = new Map();
  for (let token = from; token <= to; token++) {
    const turn = run.turn[token];
    const { begin, end } = spans.get(turn) ?? { begin: Infinity, end: 0 };
    if (areWhole) spans.set(turn, { turn, begin: 0, end: Infinity });
    else if (run.begin[token] < run.end[token]) spans.set(turn, { turn, begin: Math.min(begin, run.begin[token]), end: Math.max(end, run.end[token]) });
  }
  const widened = ({ turn, begin, end }) => {
    const bytes = turns[turn]?.bytes;
    if (!bytes || areWhole) return { turn, begin, end };
    while (!isBoundary(bytes, begin)) begin--;
    return { turn, begin, end: boundaryFrom(bytes, end) };
  };
  return [...spans.values()].map(widened);
}
