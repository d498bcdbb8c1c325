// The tables of a run that is larger than what the page holds -> all its rows, in place of those that were chosen for it.
//
// tokens.parquet is enough; rows.parquet adds ids, files and lines, conflicts.parquet the kinds. The texts are those that the page
// has: of the other rows the tokens stand alone, and without conflicts.parquet the kinds of their conflicts are unknown.

const READ_TABLES = ["tokens", "rows", "conflicts"];
const UNKNOWN_KIND = "unknown";

async function wholeRun(files, run) {
  const tables = {};
  for (const file of files) {
    const table = await openTable(file).catch((error) => { throw new Error(`${file.name}: ${error.message}`); });
    const what = table.known.get("diagnose.table");
    if (!what) throw new Error(`${file.name} does not say which table it is: sort the run again with this version of the program`);
    if (!READ_TABLES.includes(what)) throw new Error(`${file.name} is the table ${what}; expected tokens.parquet, rows.parquet or conflicts.parquet`);
    if (table.known.get("diagnose.identity") !== run.identity) throw new Error(`${file.name} belongs to another run`);
    if (table.known.get("diagnose.thresholds") !== run.thresholdsKey) throw new Error(`${file.name} is sorted by different thresholds than this page`);
    if (tables[what]) throw new Error(`${file.name} and ${tables[what].name} are both ${what}.parquet`);
    tables[what] = { table, name: file.name };
  }
  if (tables.conflicts && !run.kinds) throw new Error("this page has no kinds of conflict: write it again with diagnose view");
  if (!tables.tokens) throw new Error("tokens.parquet is missing: it has the tokens of all rows");
  const read = async (what, names) => {
    const { table, name } = tables[what];
    const columns = {};
    for (const column of names) {
      columns[column] = await table.column(column).catch((error) => { throw new Error(`${name}: ${error.message}`); });
    }
    return columns;
  };
  const names = ["row", "turn", "pos", "source", "token_id", "token", "begin", "end", "logprob", "entropy", "entropy_topk", "rank", "tail", "varentropy", "grad", "top_id", "top", "top_logprob", "quadrant"];
  const tokens = await read("tokens", names);
  const rows = rowsOfTokens(tokens);
  const whole = { ...rows, ...tokenArrays(tokens), ...wordsOf(tokens, run) };
  Object.assign(whole, tables.rows ? aboutRows(await read("rows", ["row", "id", "path", "line", "tokens", "supervised", "truncated"]), rows) : keptRows(run, rows));
  Object.assign(whole, keptTexts(run, rows), keptParts(run, rows), keptAlternatives(run, rows, whole));
  if (run.kinds) Object.assign(whole, tables.conflicts ? kindsOf(await read("conflicts", ["row", "pos", "kind", "evidence"]), tokens, run) : keptKinds(run, rows, whole));
  return { ...whole, sources: tokens.source.texts, rowsOfRun: rows.row.length, isWhole: true };
}

function tokenArrays(tokens) {
  const codes = tokens.quadrant.texts.map((name) => ["confident_conflict", "uncertain", "confident", "hesitant"].indexOf(name));
  if (codes.includes(-1)) throw new Error("the quadrants have names that this page does not know");
  return {
    turn: tokens.turn, pos: tokens.pos, begin: tokens.begin, end: tokens.end, logprob: tokens.logprob, entropy: tokens.entropy,
    entropyTopk: tokens.entropy_topk, rank: tokens.rank, tail: tokens.tail, varentropy: tokens.varentropy, grad: tokens.grad,
    topLogprob: tokens.top_logprob, quadrant: Uint8Array.from(tokens.quadrant.codes, (code) => codes[code]),
  };
}

// The rows, in their order, and the sums over their tokens.
function rowsOfTokens(tokens) {
  const [numbers, from] = [[], []];
  for (let token = 0; token < tokens.row.length; token++) {
    const last = numbers.at(-1);
    if (token > 0 && tokens.row[token] === last) continue;
    if (token > 0 && tokens.row[token] < last) throw new Error("the tokens are not in the order of their rows");
    numbers.push(tokens.row[token]);
    from.push(token);
  }
  from.push(tokens.row.length);
  const sums = (of) => Float32Array.from(numbers, (_, row) => {
    let sum = 0;
    for (let token = from[row]; token < from[row + 1]; token++) sum += of(token);
    return sum;
  });
  const conflict = tokens.quadrant.texts.indexOf("confident_conflict");
  const ofConflicts = (of) => sums((token) => (tokens.quadrant.codes[token] === conflict ? of(token) : 0));
  const supervised = Uint32Array.from(numbers, (_, row) => from[row + 1] - from[row]);
  return {
    row: Uint32Array.from(numbers), tokenFrom: Uint32Array.from(from), supervised,
    source: Uint32Array.from(numbers, (_, row) => tokens.source.codes[from[row]]),
    sampled: new Uint8Array(numbers.length),
    conflicts: ofConflicts(() => 1),
    conflictLoss: ofConflicts((token) => -tokens.logprob[token]),
    conflictSurplus: ofConflicts((token) => -tokens.logprob[token] - tokens.entropy[token]),
    conflictGrad: ofConflicts((token) => tokens.grad[token]),
    meanLogprob: sums((token) => tokens.logprob[token]).map((sum, row) => sum / supervised[row]),
  };
}

// The texts of the tokens, one place for each id.
function wordsOf(tokens, run) {
  const [words, places, byText] = [[], new Map(), new Map()];
  const placeOf = (id, text) => {
    if (!places.has(id)) {
      places.set(id, words.push(text) - 1);
      if (!byText.has(text)) byText.set(text, words.length - 1);
    }
    return places.get(id);
  };
  const take = (ids, { codes, texts }) => Uint32Array.from(ids, (id, i) => placeOf(id, texts[codes[i]]));
  const [word, top] = [take(tokens.token_id, tokens.token), take(tokens.top_id, tokens.top)];
  // The choices after the first are known by their texts.
  const alternativeWord = run.words.map((text) => byText.get(text) ?? words.push(text) - 1);
  return { words, word, top, alternativeWord };
}

function aboutRows(table, rows) {
  const places = new Map(Array.from(table.row, (number, place) => [number, place]));
  const of = Array.from(rows.row, (number) => {
    if (!places.has(number)) throw new Error(`rows.parquet has no row ${number}`);
    return places.get(number);
  });
  const text = ({ codes, texts }, place) => (codes[place] === NOTHING ? null : texts[codes[place]]);
  return {
    ids: of.map((place) => text(table.id, place)),
    paths: table.path.texts, path: Uint32Array.from(of, (place) => table.path.codes[place]),
    line: Float64Array.from(of, (place) => table.line[place]),
    tokens: Uint32Array.from(of, (place) => table.tokens[place]),
    truncated: Uint8Array.from(of, (place) => table.truncated[place]),
  };
}

// Of rows that the page holds what it knows; of the others the number is all.
function oldRows(run, rows) {
  const places = new Map(Array.from(run.row, (number, place) => [number, place]));
  return Array.from(rows.row, (number) => places.get(number) ?? -1);
}

function keptRows(run, rows) {
  const old = oldRows(run, rows);
  const paths = [...run.paths, ""];
  return {
    ids: old.map((place) => (place < 0 ? null : run.ids[place])),
    paths, path: Uint32Array.from(old, (place) => (place < 0 ? paths.length - 1 : run.path[place])),
    line: Float64Array.from(old, (place) => (place < 0 ? NaN : run.line[place])),
    tokens: Float64Array.from(old, (place) => (place < 0 ? NaN : run.tokens[place])),
    truncated: Uint8Array.from(old, (place) => (place < 0 ? 0 : run.truncated[place])),
  };
}

// Rows stand in the order of their numbers on both sides, so that the turns of the page's rows stay one behind the other.
function keptTexts(run, rows) {
  let end = 0;
  const ends = oldRows(run, rows).map((place) => (end = place < 0 ? end : run.turnFrom[place + 1]));
  return { turnFrom: Uint32Array.from([0, ...ends]) };
}

function keptParts(run, rows) {
  const part = new Uint8Array(rows.tokenFrom.at(-1));
  oldRows(run, rows).forEach((place, row) => {
    if (place >= 0) part.set(run.part.subarray(...tokensOfRow(run, place)), rows.tokenFrom[row]);
  });
  return { part };
}

function keptAlternatives(run, rows, { alternativeWord }) {
  if (!run.alternativesFrom) return {};
  const from = new Uint32Array(rows.tokenFrom.at(-1) + 1);
  oldRows(run, rows).forEach((place, row) => {
    const shift = place < 0 ? 0 : run.tokenFrom[place] - rows.tokenFrom[row];
    for (let token = rows.tokenFrom[row]; token < rows.tokenFrom[row + 1]; token++) {
      from[token + 1] = place < 0 ? from[token] : run.alternativesFrom[token + shift + 1];
    }
  });
  return { alternativesFrom: from, alternative: Uint32Array.from(run.alternative, (word) => alternativeWord[word]) };
}

function kindsOf(conflicts, tokens, run) {
  const [kind, evidence] = [new Uint8Array(tokens.row.length), new Uint32Array(tokens.row.length)];
  const kinds = run.kinds.filter((name) => name !== UNKNOWN_KIND);
  const codes = conflicts.kind.texts.map((name) => kinds.indexOf(name));
  if (codes.includes(-1)) throw new Error("conflicts.parquet names kinds that this page does not know");
  let token = 0;
  for (let i = 0; i < conflicts.row.length; i++) {
    const isBefore = () => tokens.row[token] < conflicts.row[i] || (tokens.row[token] === conflicts.row[i] && tokens.pos[token] < conflicts.pos[i]);
    while (token < kind.length && isBefore()) token++;
    if (tokens.row[token] !== conflicts.row[i] || tokens.pos[token] !== conflicts.pos[i]) throw new Error("conflicts.parquet names tokens that do not exist");
    kind[token] = codes[conflicts.kind.codes[i]];
    evidence[token] = conflicts.evidence.codes[i];
  }
  return { kinds, kind, evidence, evidences: conflicts.evidence.texts };
}

// The conflicts of rows that the page did not hold have a kind, but nobody has said which.
function keptKinds(run, rows, { quadrant }) {
  const [kind, evidence] = [new Uint8Array(rows.tokenFrom.at(-1)), new Uint32Array(rows.tokenFrom.at(-1))];
  const kinds = run.kinds.includes(UNKNOWN_KIND) ? run.kinds : [...run.kinds, UNKNOWN_KIND];
  const unknown = kinds.indexOf(UNKNOWN_KIND);
  const [evidences, none] = run.evidences.includes("") ? [run.evidences, run.evidences.indexOf("")] : [[...run.evidences, ""], run.evidences.length];
  oldRows(run, rows).forEach((place, row) => {
    if (place < 0) {
      for (let token = rows.tokenFrom[row]; token < rows.tokenFrom[row + 1]; token++) {
        if (quadrant[token] === 0) kind[token] = unknown;
        evidence[token] = none;
      }
      return;
    }
    kind.set(run.kind.subarray(...tokensOfRow(run, place)), rows.tokenFrom[row]);
    evidence.set(run.evidence.subarray(...tokensOfRow(run, place)), rows.tokenFrom[row]);
  });
  return { kinds, kind, evidence, evidences };
}
