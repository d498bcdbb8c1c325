// Bytes of the data -> text that shows all that is in it. Offsets count the UTF-8 bytes, as in the token table and in decisions.jsonl.

// A byte-order mark is a character like others: some tokens are one.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

// Characters that a reader would not see, or that would change how others are shown: controls, zero-width and bidirectional ones, spaces of
// other kinds, separators, private and unassigned ones, and the byte-order mark.
const UNSEEN = new RegExp(
  "[\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u034f\\u061c\\u115f\\u1160\\u1680\\u17b4\\u17b5\\u180b-\\u180f\\u2000-\\u200f\\u2028-\\u202f" +
    "\\u205f-\\u206f\\u3000\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\uffff\\u{e0000}-\\u{e0fff}\\p{Co}\\p{Cn}\\p{Cs}]", "u");
const NAMES = {
  0: "NUL", 7: "BEL", 8: "BS", 9: "⇥", 10: "⏎", 13: "␍", 27: "ESC", 127: "DEL", 0xa0: "NBSP", 0xad: "SHY",
  0x200b: "ZWSP", 0x200c: "ZWNJ", 0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM", 0xfeff: "BOM",
};

const isContinuation = (byte) => (byte & 0xc0) === 0x80;

// Is `at` a place between two characters?
function isBoundary(bytes, at) {
  return at <= 0 || at >= bytes.length || !isContinuation(bytes[at]);
}

// The first such place from `at` on.
function boundaryFrom(bytes, at) {
  while (!isBoundary(bytes, at)) at++;
  return at;
}

function decode(bytes, begin, end) {
  return decoder.decode(bytes.subarray(begin, end));
}

function hex(bytes, begin, end) {
  return Array.from(bytes.subarray(begin, end), (byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

// Puts `text` into `element` with a sign in place of each character that would not be seen. Spaces become dots where `dots` asks for it.
function showText(element, text, dots) {
  let plain = "";
  const flush = () => {
    if (plain) element.append(document.createTextNode(plain));
    plain = "";
  };
  for (const [c, isUnseen] of characters(text)) {
    if (isUnseen) {
      flush();
      element.append(sign(c));
      if (c === "\n") plain = "\n";
    } else if (dots && c === " ") {
      plain += "·";
      flush();
      // A line can break at a dot as it does at a space.
      element.append(make("wbr"));
    } else {
      plain += c;
    }
  }
  flush();
}

// Each character, and whether a reader would not see it. What joins emoji to one is left to do so: without it there would be no such emoji.
function* characters(text) {
  let before = "";
  for (const c of text) {
    const joins = (c === "\u200d" || c === "\ufe0f") && EMOJI.test(before);
    yield [c, UNSEEN.test(c) && !joins];
    before = c;
  }
}

const EMOJI = /[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f]/u;

function nameOf(c) {
  const code = c.codePointAt(0);
  return NAMES[code] ?? "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

function sign(c) {
  const span = make("span", c === "\n" || c === "\t" ? "sign bare" : "sign", nameOf(c));
  span.setAttribute("aria-label", c === "\n" ? "line feed" : c === "\t" ? "tab" : nameOf(c));
  return span;
}

// One line for lists: unseen characters by their names, never as they are.
function oneLine(text) {
  let line = "";
  for (const [c, isUnseen] of characters(text)) {
    const name = isUnseen ? nameOf(c) : c;
    line += isUnseen && name.length > 1 ? `[${name}]` : name;
  }
  return line;
}

// A token on its own: white space at its ends has to be seen.
function quotedToken(text) {
  const line = oneLine(text).replaceAll(" ", "␣");
  return line === "" ? "(empty)" : line;
}

// An element with a class and a text.
function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
