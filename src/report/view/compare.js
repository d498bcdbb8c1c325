// Two runs side by side: which row of the second belongs to a row of the first, which token to which, and what changed.
//
// Rows are paired by their numbers where both runs read the same data files in the same way, else by their ids, else by their numbers.
// Tokens are paired within a row where turn, bytes and text are the same, and so is all that the model reads before them; other tokens (another
// answer, the same answer to another question or behind other reasoning, another tokenizer) have no partner and no change.

// What became of a token: it was known (p of 1/2 or more) and is not the first choice any more, or it was not the first choice and is known now.
const MOVED = ["", "known, then lost", "newly known"];
const KNOWN = Math.log(0.5);

function movedOf(before, token, after, partner) {
  if (before.logprob[token] >= KNOWN && after.top[partner] !== after.word[partner]) return 1;
  return before.top[token] !== before.word[token] && after.logprob[partner] >= KNOWN ? 2 : 0;
}

function compareRuns(before, after) {
  const read = (run) => JSON.stringify([run.data.map(({ sha256 }) => sha256), run.read]);
  const haveIds = before.ids.some((id) => id !== null) && after.ids.some((id) => id !== null);
  const isSameData = read(before) === read(after);
  const by = !isSameData && haveIds ? "id" : "number";
  // Runs that write their rows in the same way give the same text the same tokens, of which the fingerprint is a hash.
  const canTell = !isSameData && before.rendering === after.rendering && before.fingerprint && after.fingerprint;
  const areOthers = (row, partner) => canTell && before.fingerprint[row] !== after.fingerprint[partner];
  const partingOf = (row, partner) => {
    if (canTell && !areOthers(row, partner)) return NOWHERE;
    return partingOfTurns(turnsOfRow(before, row), turnsOfRow(after, partner)) ?? (canTell ? AT_START : NOWHERE);
  };
  const keys = (run) => (by === "id" ? run.ids : Array.from(run.row));
  // An id that several rows of a run have says of none of them which row it is (diagnosis/paired.rs).
  const places = new Map();
  const twice = new Set();
  keys(after).forEach((key, row) => (places.has(key) ? twice.add(key) : places.set(key, row)));
  const seen = new Set();
  keys(before).forEach((key) => (seen.has(key) ? twice.add(key) : seen.add(key)));
  const rowOf = Int32Array.from(keys(before), (key) => (key === null || twice.has(key) ? -1 : places.get(key) ?? -1));

  const tokenOf = new Int32Array(before.logprob.length).fill(-1);
  const ofRow = new Float64Array(before.row.length).fill(NaN);
  const [lossOfRow, squares, sizes] = [0, 0, 0].map(() => new Float64Array(before.row.length));
  const moved = new Uint8Array(before.logprob.length);
  const movedCounts = MOVED.map(() => 0);
  let [shared, total] = [0, 0];
  for (let row = 0; row < rowOf.length; row++) {
    if (rowOf[row] < 0) continue;
    const partners = new Map();
    const [from, to] = tokensOfRow(after, rowOf[row]);
    for (let token = from; token < to; token++) {
      const key = keyOfToken(after, token);
      if (partners.has(key)) partners.get(key).push(token);
      else partners.set(key, [token]);
    }
    const [begin, end] = tokensOfRow(before, row);
    const parting = partingOf(row, rowOf[row]);
    // Before the texts part, a template may still write a turn in another way for what comes later, such as without its reasoning, or move the system
    // prompt behind it. Then the tokens stand elsewhere in the sequence.
    const areInPlace = areOthers(row, rowOf[row]);
    let [n, sum] = [0, 0];
    for (let token = begin; token < end; token++) {
      if (standsBehind(before, token, parting)) continue;
      // Where several have one place, each is the partner of one.
      const partner = partners.get(keyOfToken(before, token))?.shift();
      if (partner === undefined || (areInPlace && before.pos[token] !== after.pos[partner])) continue;
      tokenOf[token] = partner;
      n++;
      const change = after.logprob[partner] - before.logprob[token];
      sum += change;
      squares[row] += change * change;
      moved[token] = movedOf(before, token, after, partner);
      movedCounts[moved[token]]++;
    }
    [sizes[row], lossOfRow[row]] = [n, -sum];
    if (n > 0) ofRow[row] = sum / n;
    shared += n;
    total += sum;
  }
  const backTokens = new Int32Array(after.logprob.length).fill(-1);
  tokenOf.forEach((partner, token) => partner >= 0 && (backTokens[partner] = token));
  return {
    by, rowOf, tokenOf, backTokens, ofRow, lossOfRow, moved, movedCounts, shared,
    textOfRow: (row) => rowChangeText(ofRow[row], squares[row], sizes[row]),
    mean: shared ? total / shared : NaN,
    conflictsAfter: (row) => (rowOf[row] < 0 ? undefined : after.conflicts[rowOf[row]]),
  };
}

// What training did to a row, as `diagnose diff` says it: an interval by Student's t over its tokens, taken as drawn one by one.
function rowChangeText(mean, squares, n) {
  if (!(n > 1)) return n === 1 ? `change of ln p ${changeText(mean)}` : "";
  const reach = studentT(n - 1) * Math.sqrt(Math.max(squares / n - mean * mean, 0) / (n - 1));
  const verdict = mean - reach > 0 ? "helped" : mean + reach < 0 ? "hurt" : "wasted";
  return `${verdict}: change of ln p ${changeText(mean)} (${changeText(mean - reach)} to ${changeText(mean + reach)})`;
}

// The 97.5 % quantile (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5).
function studentT(n) {
  if (n < 3) return [NaN, 12.706204736432095, 4.302652729911275][n];
  const x = 1.959963984540054;
  return x + (x ** 3 + x) / (4 * n) + (5 * x ** 5 + 16 * x ** 3 + 3 * x) / (96 * n ** 2) +
    (3 * x ** 7 + 19 * x ** 5 + 17 * x ** 3 - 15 * x) / (384 * n ** 3) +
    (79 * x ** 9 + 776 * x ** 7 + 1482 * x ** 5 - 1920 * x ** 3 - 945 * x) / (92160 * n ** 4);
}

// Where the texts of a row part, of two runs: the turn and its byte, -1 before the first.
const [AT_START, NOWHERE] = [[0, -1], [Infinity, 0]];

// The same by the turns; undefined where these are the same, or where one run's are not at hand.
function partingOfTurns(before, after) {
  const shared = Math.min(before.length, after.length);
  for (let turn = 0; turn < shared; turn++) {
    const [own, other] = [before[turn], after[turn]];
    if (own.role !== other.role || own.beside !== other.beside) return [turn, -1];
    let byte = 0;
    while (byte < own.bytes.length && own.bytes[byte] === other.bytes[byte]) byte++;
    if (byte < own.bytes.length || byte < other.bytes.length) return [turn, byte];
  }
  return shared > 0 && before.length !== after.length ? [shared, -1] : undefined;
}

// A token beside the content of a turn stands at its end.
function standsBehind(run, token, [turn, byte]) {
  if (run.turn[token] !== turn) return run.turn[token] > turn;
  return run.begin[token] > byte || run.begin[token] === run.end[token];
}

// Tokens beside the content have no bytes: their place in the sequence stands for them.
function keyOfToken(run, token) {
  const place = run.begin[token] === run.end[token] ? `p${run.pos[token]}` : `${run.begin[token]}-${run.end[token]}`;
  return `${run.turn[token]} ${place} ${run.words[run.word[token]]}`;
}

// ln p after less before, of a token of either run.
function changeOf(page, run, token) {
  if (run === page.run) {
    const partner = page.changes.tokenOf[token];
    return partner < 0 ? NaN : page.after.logprob[partner] - run.logprob[token];
  }
  const partner = page.changes.backTokens[token];
  return partner < 0 ? NaN : run.logprob[token] - page.run.logprob[partner];
}
