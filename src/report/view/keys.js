// Keys: name, what it does, and the handler. Letters work everywhere but in fields; the help lists this table.

function keyTable(page, act) {
  return [
    { keys: ["j", "ArrowDown"], shown: "j ↓", does: "next row", run: () => act.moveRow(1) },
    { keys: ["k", "ArrowUp"], shown: "k ↑", does: "previous row", run: () => act.moveRow(-1) },
    { keys: ["PageDown"], shown: "PgDn", does: "one screen of rows down", run: () => act.moveRow(act.screen()) },
    { keys: ["PageUp"], shown: "PgUp", does: "one screen of rows up", run: () => act.moveRow(-act.screen()) },
    { keys: ["Home"], shown: "Home", does: "first row", run: () => act.moveRow(-Infinity) },
    { keys: ["End"], shown: "End", does: "last row", run: () => act.moveRow(Infinity) },
    { keys: ["l", "ArrowRight"], shown: "l →", does: "next token", run: () => act.moveToken(1, false) },
    { keys: ["h", "ArrowLeft"], shown: "h ←", does: "previous token", run: () => act.moveToken(-1, false) },
    { keys: ["L", "Shift+ArrowRight"], shown: "L ⇧→", does: "extend the selection by a token", run: () => act.moveToken(1, true) },
    { keys: ["H", "Shift+ArrowLeft"], shown: "H ⇧←", does: "shrink the selection by a token", run: () => act.moveToken(-1, true) },
    { keys: ["]"], shown: "]", does: "next token that passes the filters, or next conflict", run: () => act.nextMatch(1) },
    { keys: ["["], shown: "[", does: "the previous one", run: () => act.nextMatch(-1) },
    { keys: ["x"], shown: "x", does: "drop the row, or undo that", run: () => act.verdict("drop") },
    { keys: ["y"], shown: "y", does: "keep the row as it is (yes), or undo that", run: () => act.verdict("keep") },
    { keys: ["m"], shown: "m", does: "mask the selected tokens, or undo that", run: () => act.mask(false) },
    { keys: ["t"], shown: "t", does: "mask the whole turn, or undo that", run: () => act.mask(true) },
    { keys: ["n"], shown: "n", does: "add a note to the row", run: () => act.note() },
    { keys: ["u"], shown: "u", does: "undo the last decision", run: () => act.undo() },
    { keys: ["e"], shown: "e", does: "export decisions.jsonl", run: () => act.exportDecisions() },
    { keys: ["o"], shown: "o", does: "import decisions.jsonl", run: () => act.chooseFile() },
    { keys: ["/"], shown: "/", does: "search", run: () => act.search() },
    ...page.measures.map((measure, idx) => {
      const key = String(idx + 1);
      return { keys: [key], shown: key, does: `colour: ${measure.name}, ${measure.about}`, run: () => act.setMeasure(measure.id) };
    }),
    { keys: ["w"], shown: "w", does: "show every space as a dot", run: () => act.toggleDots() },
    { keys: ["g"], shown: "g", does: "kinds of conflict, and groups of the same target and choice", run: () => act.groups() },
    { keys: ["c"], shown: "c", does: "clear all filters", run: () => act.clear() },
    { keys: ["?"], shown: "?", does: "this help", run: () => act.help() },
    { keys: ["Escape"], shown: "Esc", does: "leave a field, or clear the selection", run: () => act.escape() },
  ];
}

function listenToKeys(table) {
  const byKey = new Map(table.flatMap((entry) => entry.keys.map((key) => [key, entry])));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    const inField = target.matches("input, textarea, select");
    if (inField && event.key !== "Escape") return;
    if (document.querySelector("dialog[open]")) return;
    const isArrow = event.key.startsWith("Arrow");
    const entry = byKey.get((event.shiftKey && isArrow ? "Shift+" : "") + event.key);
    if (!entry) return;
    event.preventDefault();
    entry.run();
  });
}

function fillHelp(dialog, table) {
  const title = make("h2", "", "Keys");
  title.id = "help-title";
  // A dialog shows what has the focus: else the button at its end, and the list of keys would be out of sight.
  title.tabIndex = -1;
  title.autofocus = true;
  const keys = make("table");
  for (const { shown, does } of table) {
    const row = keys.appendChild(make("tr"));
    row.append(make("td"), make("td", "", does));
    row.firstChild.append(make("kbd", "", shown));
  }
  const words = make("table");
  for (const [word, meaning] of [
    ["p, H", "probability of the data's token; entropy of the model's prediction, in nats"],
    ["surplus", "-ln p - H: how far the loss exceeds what the model expected, in nats; 0 on average on its own text"],
    ["confident conflict", "low p and low H: the model is sure, and the data says something else"],
    ["tail", "probability, under the model, of a token no more likely than the data's"],
    ["weight", "the factor of the token's gradient under a loss"],
    ["kind", "a heuristic guess at the cause of a conflict; template, format and wording concern form, the others content"],
    ["order", `of the rows, by default: ${ORDERS[0].about}`],
  ]) {
    const row = words.appendChild(make("tr"));
    row.append(make("td", "", word), make("td", "", meaning));
  }
  const warning = make("p", "soft", "Decisions exist only in this page: export them before you leave.");
  dialog.append(title, keys, make("h2", "", "Terms"), words, warning, button("Close", () => dialog.close()));
}
