// The ranked rows as a virtual list: only the lines in sight exist, and a line is filled again when another row comes to its place.

const LINE_HEIGHT = 19;
const BEYOND = 12;
// Of the text before a line's token: it should not push the token itself out of sight.
const BYTES_BEFORE = 14;

function makeList(element, head, page, onChoose) {
  const space = element.appendChild(make("div", "space"));
  const lines = [];
  const [kind, change] = [page.run.kinds ? ["kind"] : [], page.after ? ["change"] : []];
  const columns = ["", "#", "source", "t", ...kind, "sharpest token in context", "n", "nats", ...change];
  const rightAligned = new Set(["#", "n", "nats", "change"]);
  for (const name of columns) head.append(make("span", rightAligned.has(name) ? "number" : "", name));

  function lineAt(slot) {
    if (!lines[slot]) {
      const line = make("div", "line");
      line.setAttribute("role", "option");
      lines[slot] = { element: element.appendChild(line), place: -1, version: -1 };
    }
    return lines[slot];
  }

  let version = 0;
  let waits = false;
  function paint() {
    waits = false;
    const { rows } = page;
    const first = Math.max(0, Math.floor(element.scrollTop / LINE_HEIGHT) - BEYOND);
    const last = Math.min(rows.length, Math.ceil((element.scrollTop + element.clientHeight) / LINE_HEIGHT) + BEYOND);
    const slots = Math.max(lines.length, Math.ceil(element.clientHeight / LINE_HEIGHT) + 2 * BEYOND + 2);
    const used = new Set();
    for (let place = first; place < last; place++) {
      const slot = place % slots;
      used.add(slot);
      const line = lineAt(slot);
      if (line.place === place && line.version === version) continue;
      Object.assign(line, { place, version });
      fillLine(line.element, page, place);
    }
    lines.forEach((line, slot) => (line.element.hidden = !used.has(slot)));
  }
  const soon = () => {
    if (!waits) requestAnimationFrame(paint);
    waits = true;
  };
  element.addEventListener("scroll", soon, { passive: true });
  new ResizeObserver(soon).observe(element);
  element.addEventListener("click", (event) => {
    const line = event.target.closest(".line");
    if (line) onChoose(Number(line.dataset.place));
  });

  return {
    // All lines anew: other rows, another order, other decisions.
    refresh() {
      version++;
      space.style.height = `${page.rows.length * LINE_HEIGHT}px`;
      paint();
    },
    reveal(place) {
      // With one line to spare on either side.
      const highest = (place - 1) * LINE_HEIGHT;
      const lowest = (place + 2) * LINE_HEIGHT - element.clientHeight;
      element.scrollTop = Math.max(Math.min(element.scrollTop, highest), lowest);
      paint();
      element.setAttribute("aria-activedescendant", `line-${place}`);
    },
  };
}

function fillLine(line, page, place) {
  const { run, rows } = page;
  const row = rows[place];
  const token = tokenToShow(page, row);
  const decision = page.decisions.of(run.row[row]);
  const source = run.sources[run.source[row]];
  line.id = `line-${place}`;
  line.dataset.place = place;
  line.style.transform = `translateY(${place * LINE_HEIGHT}px)`;
  line.className = "line" + (decision.verdict === "drop" ? " dropped" : "") + (run.sampled[row] ? " sampled" : "");
  line.setAttribute("aria-selected", String(row === page.row));
  line.setAttribute("aria-setsize", rows.length);
  line.setAttribute("aria-posinset", place + 1);
  const cells = [
    make("span", "verdict", verdictSign(decision)),
    make("span", "number soft rank", String(place + 1)),
    isolated("source soft", oneLine(source)),
    make("span", "number soft", token < 0 ? "" : String(run.turn[token])),
  ];
  if (run.kinds) cells.push(kindCell(run, token));
  cells.push(snippet(run, row, token));
  const n = page.after ? `${run.conflicts[row]} → ${page.changes.conflictsAfter(row) ?? "–"}` : String(run.conflicts[row]);
  cells.push(make("span", "number", n), make("span", "number", run.conflictSurplus[row].toFixed(1)));
  if (page.after) cells.push(make("span", "number", changeText(page.changes.ofRow[row])));
  line.replaceChildren(...cells);
}

function kindCell(run, token) {
  const kind = token < 0 ? 0 : run.kind[token];
  return make("span", run.kindsOfForm.includes(kind) ? "kind soft" : "kind", run.kinds[kind]);
}

// The token that a line shows: the sharpest of those that pass the filters.
function tokenToShow(page, row) {
  const { run, passes } = page;
  if (!passes || page.sharpest[row] < 0 || passes[page.sharpest[row]]) return page.sharpest[row];
  let best = -1;
  const [begin, end] = tokensOfRow(run, row);
  for (let token = begin; token < end; token++) if (passes[token] && (best < 0 || isSharper(run, token, best))) best = token;
  return best;
}

function verdictSign({ verdict, masks, note }) {
  if (verdict) return verdict === "drop" ? "✗" : "✓";
  return masks.length ? "▨" : note ? "✎" : "";
}

function changeText(change) {
  return change === undefined || Number.isNaN(change) ? "–" : (change > 0 ? "+" : "") + nats(change);
}

function isolated(className, text) {
  const bdi = make("bdi", className, text);
  bdi.dir = "auto";
  return bdi;
}

// Some words before the token, the token marked, and what follows.
function snippet(run, row, token) {
  const bdi = isolated("snippet", "");
  if (token < 0) return bdi;
  const bytes = turnsOfRow(run, row)[run.turn[token]]?.bytes;
  const [before, itself, after] = bytes && !run.part[token] ? aroundInText(run, token, bytes) : aroundInWords(run, row, token);
  const isBlank = itself.trim() === "";
  const space = isBlank ? "" : itself.slice(0, itself.length - itself.trimStart().length);
  const marked = isBlank ? quotedToken(itself) : oneLine(itself.slice(space.length));
  bdi.append(oneLine(before + space), make("mark", "", marked), oneLine(after));
  return bdi;
}

function aroundInText(run, token, bytes) {
  let [begin, end] = [run.begin[token], run.end[token]];
  const isTemplate = begin === end;
  if (isTemplate) begin = end = textPlaceOf(run, token, bytes);
  while (!isBoundary(bytes, begin)) begin--;
  end = boundaryFrom(bytes, end);
  const from = boundaryFrom(bytes, Math.max(0, begin - BYTES_BEFORE));
  const to = boundaryFrom(bytes, Math.min(bytes.length, end + 90));
  const itself = isTemplate ? run.words[run.word[token]] : decode(bytes, begin, end);
  return [(from > 0 ? "…" : "") + decode(bytes, from, begin), itself, decode(bytes, end, to)];
}

// Where a token of the template stands in the turn's text: behind the token before it.
function textPlaceOf(run, token, bytes) {
  const row = run.rowOfToken[token];
  for (let other = token - 1; other >= run.tokenFrom[row] && run.turn[other] === run.turn[token]; other--) {
    if (run.end[other] > run.begin[other]) return run.end[other];
  }
  const [, end] = tokensOfRow(run, row);
  for (let other = token + 1; other < end && run.turn[other] === run.turn[token]; other++) {
    if (run.end[other] > run.begin[other]) return run.begin[other];
  }
  return bytes.length;
}

// The tokens of the turn around one: where the texts are not at hand, and in reasoning and tool calls, which are no part of them.
function aroundInWords(run, row, token) {
  let [begin, end] = [token, token + 1];
  const [first, last] = tokensOfRow(run, row);
  while (begin > first && run.turn[begin - 1] === run.turn[token]) begin--;
  while (end < last && run.turn[end] === run.turn[token]) end++;
  const words = (from, to) => Array.from(run.word.subarray(from, to), (word) => run.words[word]).join("");
  return [words(Math.max(begin, token - 6), token), words(token, token + 1), words(token + 1, Math.min(end, token + 20))];
}
