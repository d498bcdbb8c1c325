// Two runs side by side: which row of the second belongs to a row of the first, which token to which, and what changed.
//
// Rows are paired by their numbers where both runs read the same data files, else by their ids, else by their numbers. Tokens are paired
// within a row where turn, bytes and text are the same; other tokens (another answer, another tokenizer) have no partner and no change.

function compareRuns(before, after) {
  const hashes = (run) => run.data.map(({ sha256 }) => sha256).join();
  const haveIds = before.ids.some((id) => id !== null) && after.ids.some((id) => id !== null);
  const by = hashes(before) !== hashes(after) && haveIds ? "id" : "number";
  const keys = (run) => (by === "id" ? run.ids : Array.from(run.row));
  const places = new Map();
  const twice = new Set();
  keys(after).forEach((key, row) => (places.has(key) ? twice.add(key) : places.set(key, row)));
  const rowOf = Int32Array.from(keys(before), (key) => (key === null || twice.has(key) ? -1 : places.get(key) ?? -1));

  const tokenOf = new Int32Array(before.logprob.length).fill(-1);
  const ofRow = new Float64Array(before.row.length).fill(NaN);
  let [shared, total] = [0, 0];
  for (let row = 0; row < rowOf.length; row++) {
    if (rowOf[row] < 0) continue;
    const partners = new Map();
    const [from, to] = tokensOfRow(after, rowOf[row]);
    for (let token = from; token < to; token++) partners.set(keyOfToken(after, token), token);
    const [begin, end] = tokensOfRow(before, row);
    let [n, sum] = [0, 0];
    for (let token = begin; token < end; token++) {
      const partner = partners.get(keyOfToken(before, token));
      if (partner === undefined) continue;
      tokenOf[token] = partner;
      n++;
      sum += after.logprob[partner] - before.logprob[token];
    }
    if (n > 0) ofRow[row] = sum / n;
    shared += n;
    total += sum;
  }
  const backTokens = new Int32Array(after.logprob.length).fill(-1);
  tokenOf.forEach((partner, token) => partner >= 0 && (backTokens[partner] = token));
  return {
    by, rowOf, tokenOf, backTokens, ofRow, shared,
    mean: shared ? total / shared : NaN,
    conflictsAfter: (row) => (rowOf[row] < 0 ? undefined : after.conflicts[rowOf[row]]),
  };
}

// Tokens of the template have no bytes: their place in the sequence stands for them.
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
