// What a person decided: per row a verdict (drop or keep), masked spans of turns, and a note. Held in the page until it is exported.
//
// decisions.jsonl begins with {"decisions": 1, "run": .., "data": [{"path", "sha256", "format"}, ..]}, and "maps" and "roles" where the rows were
// read by some; then one object a line:
//   {"row": R, "action": "drop" | "keep"}
//   {"row": R, "action": "mask", "turn": T, "begin": B, "end": E}     bytes of the turn's text in UTF-8; without them the whole turn
//   {"row": R, "action": "note", "text": ".."}
// Rows are those of the data set, whether the page shows them or not.

function makeDecisions(run) {
  const byRow = new Map();
  const past = [];
  let unsaved = false;
  const empty = () => ({ verdict: null, masks: [], note: "" });
  const isEmpty = (decision) => !decision.verdict && decision.masks.length === 0 && !decision.note;

  const of = (row) => byRow.get(row) ?? empty();
  const put = (row, decision) => (isEmpty(decision) ? byRow.delete(row) : byRow.set(row, decision));
  const replaceAll = (decisions) => {
    byRow.clear();
    for (const [row, decision] of decisions) byRow.set(row, decision);
  };
  const change = (row, decision) => {
    const before = of(row);
    past.push(() => put(row, before));
    put(row, decision);
    unsaved = true;
  };

  return {
    of,
    get unsaved() { return unsaved; },
    get canUndo() { return past.length > 0; },
    setVerdict(row, verdict) {
      const before = of(row);
      change(row, { ...before, verdict: before.verdict === verdict ? null : verdict });
    },
    setNote(row, note) {
      if (of(row).note !== note) change(row, { ...of(row), note });
    },
    // Masks spans {turn, begin, end} of different turns, or takes their masks away where all of them are masked already. An end of Infinity stands
    // for the whole turn, with what the template puts behind its text; `lengthOf` gives the bytes of a turn.
    toggleMasks(row, spans, lengthOf) {
      const before = of(row);
      const holds = (mask, { turn, begin, end }) => mask.turn === turn && mask.begin <= begin && end <= mask.end;
      const isMasked = spans.every((span) => before.masks.some((mask) => holds(mask, span)));
      const toggled = (masks, span) => {
        const own = masks.filter((mask) => mask.turn === span.turn);
        const ending = (mask) => ({ ...mask, end: span.end === Infinity ? mask.end : Math.min(mask.end, lengthOf(span.turn)) });
        const left = isMasked ? own.flatMap((mask) => without(ending(mask), span.begin, span.end)) : joined([...own, span]);
        return [...masks.filter((mask) => mask.turn !== span.turn), ...left];
      };
      const masks = spans.reduce(toggled, before.masks).toSorted((a, b) => a.turn - b.turn || a.begin - b.begin);
      change(row, { ...before, masks });
    },
    undo() {
      past.pop()?.();
      unsaved = true;
    },
    counts() {
      const all = [...byRow.values()];
      return {
        dropped: all.filter((decision) => decision.verdict === "drop").length,
        kept: all.filter((decision) => decision.verdict === "keep").length,
        masks: all.reduce((n, decision) => n + decision.masks.length, 0),
        notes: all.filter((decision) => decision.note).length,
      };
    },
    exported() {
      unsaved = false;
      return linesOf(run, byRow);
    },
    // Lays the decisions of a file over those of the page, row by row; all of them, or none and an error. Gives the number of rows in the file, and of
    // other rows, whose decisions stay.
    readBack(text) {
      const read = parseDecisions(text, run);
      const before = [...byRow];
      const staying = before.filter(([row]) => !read.has(row)).length;
      past.push(() => replaceAll(before));
      for (const [row, decision] of read) byRow.set(row, decision);
      unsaved = staying > 0;
      return [read.size, staying];
    },
  };
}

function linesOf(run, byRow) {
  const data = run.data.map(({ path, sha256, format }) => ({ path, sha256, format }));
  const { maps, roles } = readingOf(run.read);
  const lines = [{ decisions: 1, run: run.identity, data, ...(maps.length ? { maps } : {}), ...(roles.length ? { roles } : {}) }];
  for (const row of [...byRow.keys()].sort((a, b) => a - b)) {
    const { verdict, masks, note } = byRow.get(row);
    if (verdict) lines.push({ row, action: verdict });
    for (const { turn, begin, end } of masks) lines.push({ row, action: "mask", turn, ...(end < Infinity ? { begin, end } : {}) });
    if (note) lines.push({ row, action: "note", text: note });
  }
  return lines.map((line) => JSON.stringify(line) + "\n").join("");
}

// The rules of --map and --role in one order.
function readingOf(read) {
  return { maps: (read?.maps ?? []).toSorted(), roles: (read?.roles ?? []).toSorted() };
}

function parseDecisions(text, run) {
  const byRow = new Map();
  const lines = text.split("\n");
  const wrong = (number, what) => new Error(`line ${number}: ${what}, found ${lines[number - 1].slice(0, 80) || "nothing"}`);
  const isCount = (value) => Number.isInteger(value) && value >= 0;
  const places = new Map(Array.from(run.row, (number, place) => [number, place]));
  const turnsOfNumber = (number) => (places.has(number) ? turnsOfRow(run, places.get(number)) : []);
  lines.forEach((line, idx) => {
    if (idx > 0 && line.trim() === "") return;
    let object;
    try {
      object = JSON.parse(line);
    } catch {
      throw wrong(idx + 1, "expected a JSON object");
    }
    if (idx === 0) {
      if (object?.decisions !== 1) throw wrong(1, 'expected {"decisions": 1, ..}');
      const hashes = (files) => (files ?? []).map((file) => file?.sha256).join();
      if (hashes(object.data) !== hashes(run.data)) {
        throw wrong(1, "expected decisions about this run's data files; these are about others");
      }
      // Rows and turns are numbered as they were read.
      const reading = (files, read) => JSON.stringify([files.map(({ format }) => format ?? null), readingOf(read)]);
      if (object.run !== run.identity && reading(object.data, object) !== reading(run.data, run.read)) {
        throw wrong(1, "expected decisions about these rows; these were made for a run that read the files differently, or does not say how");
      }
      return;
    }
    if (!isCount(object?.row)) throw wrong(idx + 1, 'expected a "row"');
    if (!hasRow(run, object.row)) throw wrong(idx + 1, `expected a row of the run, whose last one is ${run.numbers.at(-1)}`);
    const decision = byRow.get(object.row) ?? { verdict: null, masks: [], note: "" };
    const { action, turn, begin, end } = object;
    if (action === "drop" || action === "keep") {
      decision.verdict = action;
    } else if (action === "mask" && isCount(turn) && begin === undefined && end === undefined) {
      decision.masks.push({ turn, begin: 0, end: Infinity });
    } else if (action === "mask" && [turn, begin, end].every(isCount) && begin < end) {
      decision.masks.push({ turn, begin, end });
    } else if (action === "note" && typeof object.text === "string") {
      decision.note = object.text;
    } else {
      throw wrong(idx + 1, "expected an action: drop, keep, mask with a turn and perhaps begin and end, or note with text");
    }
    const misfit = action === "mask" && misfitOf(object, turnsOfNumber(object.row));
    if (misfit) throw wrong(idx + 1, misfit);
    byRow.set(object.row, decision);
  });
  return byRow;
}

// What does not fit of a mask to the turns of its row; none of which are at hand where the page does not hold the row or its text.
function misfitOf({ turn, begin, end }, turns) {
  if (!turns.length) return undefined;
  if (turn >= turns.length) return `expected a turn of the row, which has ${turns.length} (counted from 0)`;
  const { bytes } = turns[turn];
  if (end > bytes.length) return `expected a span within the ${count(bytes.length, "byte")} of turn ${turn}`;
  const cuts = (byte) => (bytes[byte] & 0xc0) === 0x80;
  return cuts(begin) || cuts(end) ? `expected a span of whole characters of turn ${turn}` : undefined;
}

// Spans of one turn without overlaps, in order.
function joined(spans) {
  const sorted = spans.toSorted((a, b) => a.begin - b.begin);
  const result = [];
  for (const span of sorted) {
    const last = result.at(-1);
    if (last && span.begin <= last.end) last.end = Math.max(last.end, span.end);
    else result.push({ ...span });
  }
  return result;
}

// What is left of a span without begin..end.
function without(span, begin, end) {
  const left = { ...span, end: Math.min(span.end, begin) };
  const right = { ...span, begin: Math.max(span.begin, end) };
  return [left, right].filter((part) => part.begin < part.end);
}
