// The data block -> runs.
//
// The block is base64 of raw deflate of: the length of the header (u32, little-endian), the header (JSON in UTF-8), padding to a multiple
// of 8, and the arrays that the header lists by name: [type, offset, count]. Nothing of the data is ever read as markup or as code: it reaches
// the page by `textContent`, `document.createTextNode` and numbers.

const ARRAYS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };

async function readBlock(base64) {
  if (typeof DecompressionStream !== "function") {
    throw new Error("this browser cannot unpack the data (it has no DecompressionStream): use one from 2024 or later");
  }
  const packed = Uint8Array.fromBase64 ? Uint8Array.fromBase64(base64) : Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const buffer = await new Response(stream).arrayBuffer();
  const headerLength = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerLength)));
  const base = Math.ceil((4 + headerLength) / 8) * 8;
  return header.runs.map((about) => makeRun(about, (type, offset, count) => new ARRAYS[type](buffer, base + offset, count)));
}

// A run: what is said of it as a whole, its arrays by name, and of each token the index of its row, counted as in the arrays.
function makeRun(about, arrayAt) {
  const run = { ...about };
  for (const [name, place] of Object.entries(about.arrays)) run[name] = arrayAt(...place);
  placeTokens(run);
  return run;
}

function placeTokens(run) {
  run.rowOfToken = new Uint32Array(run.logprob.length);
  for (let row = 0; row < run.row.length; row++) run.rowOfToken.fill(row, run.tokenFrom[row], run.tokenFrom[row + 1]);
}

function tokensOfRow(run, row) {
  return [run.tokenFrom[row], run.tokenFrom[row + 1]];
}

// The turns of a row: role, bytes of the text, and a hash of what else the template may print of them; none where the run's data could not be read again.
function turnsOfRow(run, row) {
  const turns = [];
  for (let turn = run.turnFrom[row]; turn < run.turnFrom[row + 1]; turn++) {
    turns.push({ role: run.roles[run.role[turn]], bytes: run.text.subarray(run.textFrom[turn], run.textFrom[turn + 1]), beside: run.beside[turn] });
  }
  return turns;
}

// Whether the run has read a row of this number; `numbers` has the first and the last of each unbroken sequence.
function hasRow(run, number) {
  return run.numbers.some((first, at) => at % 2 === 0 && first <= number && number <= run.numbers[at + 1]);
}

// Bytes of a turn's text; up to the last token where the text is not at hand.
function lengthOfTurn(run, row, turn) {
  const bytes = turnsOfRow(run, row)[turn]?.bytes;
  if (bytes) return bytes.length;
  const [begin, end] = tokensOfRow(run, row);
  let length = 0;
  for (let token = begin; token < end; token++) if (run.turn[token] === turn) length = Math.max(length, run.end[token]);
  return length;
}

// What a token is part of, as the array `part` has it.
const [REASONING, TOOL_CALL] = [1, 2];

function isOfTemplate(run, token) {
  return run.begin[token] === run.end[token] && ![REASONING, TOOL_CALL].includes(run.part[token]);
}

function surplusOf(run, token) {
  return -run.logprob[token] - run.entropy[token];
}

// Of each row the token that stands for it: its sharpest conflict about what is said, else about how, else its greatest surprise.
function sharpestTokens(run) {
  const sharpest = new Int32Array(run.row.length).fill(-1);
  for (let token = 0; token < run.logprob.length; token++) {
    const row = run.rowOfToken[token];
    const best = sharpest[row];
    if (best < 0 || isSharper(run, token, best)) sharpest[row] = token;
  }
  return sharpest;
}

function isSharper(run, token, other) {
  const [own, others] = [weightinessOf(run, token), weightinessOf(run, other)];
  return own !== others ? own > others : surplusOf(run, token) > surplusOf(run, other);
}

// 2 for a conflict about what is said, 1 for one about how it is written (template, format, wording), 0 for other tokens.
function weightinessOf(run, token) {
  if (run.quadrant[token] !== 0) return 0;
  return run.kinds && run.kindsOfForm.includes(run.kind[token]) ? 1 : 2;
}
