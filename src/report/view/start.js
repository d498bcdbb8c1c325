// The page: its state, what changes it, and what is drawn again then.

const at = (id) => document.getElementById(id);

async function start() {
  const runs = await readBlock(at("data").textContent.trim());
  at("data").remove();
  const [run, after = null] = runs;
  const page = {
    run, after,
    changes: after && compareRuns(run, after),
    sharpest: sharpestTokens(run),
    searchTexts: [],
    decisions: makeDecisions(run),
    filters: noFilters(),
    // Null where nothing is asked of tokens.
    passes: null,
    order: "sharpest",
    measures: after ? [...MEASURES, CHANGE] : MEASURES,
    measure: MEASURES[0],
    gate: Math.max(run.gates.findIndex(({ name }) => name === "eaft"), 0),
    dots: false,
    rows: [],
    // Indices of the row, the token and the token that a selection began with; -1 for none.
    row: -1, token: -1, anchor: -1,
    drawing: 0,
  };
  show(page);
  return page;
}

function show(page) {
  const { run, after } = page;
  document.body.classList.toggle("with-kinds", Boolean(run.kinds));
  document.body.classList.toggle("compared", Boolean(after));
  document.title = `${run.title}${after ? " → " + after.title : ""} · diagnose`;
  at("title").textContent = oneLine(after ? `${run.title} → ${after.title}` : run.title);
  at("about").textContent = oneLine(aboutText(page));
  at("about").title = at("about").textContent;

  const list = makeList(at("list"), at("list-head"), page, (place) => chooseRow(place));
  const density = makeDensity(at("density"), page, brush);
  const quadrantButtons = makeQuadrantButtons();

  // ---- what is drawn again -------------------------------------------------------------------------------------------------------

  function filterAgain() {
    page.passes = asksOfTokens(page.filters) ? passingTokens(run, page.filters) : null;
    const row = page.row;
    page.rows = chosenRows(page);
    const all = count(run.row.length, "row");
    at("shown").textContent = page.rows.length === run.row.length ? all : `${thousands(page.rows.length)} of ${all}`;
    list.refresh();
    showFilters();
    const place = page.rows.indexOf(row);
    if (place >= 0) {
      list.reveal(place);
      repaintTokens();
    } else {
      at("list").scrollTop = 0;
      chooseRow(page.rows.length ? 0 : -1);
    }
  }

  function chooseRow(place) {
    page.row = place < 0 ? -1 : page.rows[place];
    page.token = page.row < 0 ? -1 : tokenToShow(page, page.row);
    page.anchor = -1;
    list.refresh();
    if (place >= 0) list.reveal(place);
    drawReader();
    density.draw();
  }

  function drawReader() {
    const turns = at("turns");
    turns.replaceChildren();
    turns.scrollTop = 0;
    drawHead();
    if (page.row < 0) {
      turns.append(make("p", "soft", "No row passes the filters."));
      drawDetails(at("details"), page, run, -1);
      return;
    }
    if (after) {
      const sides = turns.appendChild(make("div", "sides"));
      sides.append(make("h2", "", `before: ${oneLine(run.title)}`), make("h2", "", `after: ${oneLine(after.title)}`));
      drawRow(page, run, page.row, sides.appendChild(make("div")));
      const other = sides.appendChild(make("div"));
      const drawn = page.drawing;
      if (page.changes.rowOf[page.row] >= 0) drawRow(page, after, page.changes.rowOf[page.row], other);
      else other.append(make("p", "soft", "The other run does not show this row."));
      page.drawing = drawn + 1;
    } else {
      drawRow(page, run, page.row, turns);
    }
    showToken(false);
  }

  function drawHead() {
    const head = at("row-head");
    head.replaceChildren();
    if (page.row < 0) return;
    const row = page.row;
    const place = head.appendChild(make("div", "place"));
    place.append(isolated("", oneLine(`${run.paths[run.path[row]]}:${run.line[row]}`)));
    if (run.ids[row] !== null) place.append(isolated("soft", oneLine(run.ids[row])));
    place.append(
      isolated("soft", oneLine(run.sources[run.source[row]])),
      make("span", "soft", `row ${run.row[row]}`),
      make("span", "soft", `${count(run.supervised[row], "token")} learnt of ${thousands(run.tokens[row])}`),
      make("span", "soft", `mean -ln p ${nats(-run.meanLogprob[row])}`),
      make("span", "soft", massesText(row)),
    );
    if (run.truncated[row]) place.append(make("span", "soft", "cut at the maximal length"));
    if (run.sampled[row]) place.append(make("span", "soft", "drawn at random"));
    const acts = head.appendChild(make("div", "acts"));
    const decision = page.decisions.of(run.row[row]);
    const toggle = (name, key, isOn, onClick) => {
      const element = acts.appendChild(button(`${name} `, onClick));
      element.append(make("kbd", "", key));
      element.setAttribute("aria-pressed", String(isOn));
    };
    toggle("Drop", "x", decision.verdict === "drop", () => act.verdict("drop"));
    toggle("Keep", "y", decision.verdict === "keep", () => act.verdict("keep"));
    toggle("Mask tokens", "m", decision.masks.length > 0, () => act.mask(false));
    toggle("Mask turn", "t", false, () => act.mask(true));
    toggle("Note", "n", Boolean(decision.note), () => act.note());
    if (decision.masks.length) {
      const bytes = ({ begin, end }) => (end === Infinity ? "" : `, bytes ${begin}–${end}`);
      const spans = decision.masks.map((mask) => `turn ${mask.turn}${bytes(mask)}`);
      acts.append(make("span", "soft", `masked: ${spans.join("; ")}`));
    }
    if (decision.note) acts.append(isolated("soft", `“${oneLine(decision.note)}”`));
  }

  function massesText(row) {
    return `${count(run.conflicts[row], "conflict")}: surplus ${nats(run.conflictSurplus[row])}, loss ${nats(run.conflictLoss[row])} nats`;
  }

  // The token under consideration: its place in the text, its numbers, its place in the density.
  function showToken(fromKeyboard) {
    repaintTokens();
    const span = spanOf(page.token);
    for (const other of at("turns").querySelectorAll('.token[tabindex="0"]')) other.tabIndex = -1;
    if (span) {
      span.tabIndex = 0;
      span.setAttribute("aria-describedby", "details");
      span.scrollIntoView({ block: "nearest" });
      if (fromKeyboard) span.focus({ preventScroll: true });
    }
    drawDetails(at("details"), page, run, page.token);
    density.draw();
  }

  const spanOf = (token) => at("turns").querySelector(`.token[data-token="${token}"]:not([data-after])`);

  function repaintTokens() {
    at("turns").classList.toggle("by-quadrant", page.measure.id === "quadrant");
    for (const span of at("turns").querySelectorAll(".token")) {
      paintToken(page, "after" in span.dataset ? after : run, Number(span.dataset.token), span);
    }
  }

  function decided() {
    const { dropped, kept, masks, notes } = page.decisions.counts();
    const parts = [[dropped, "dropped"], [kept, "kept"], [masks, "masked"], [notes, "noted"]].filter(([n]) => n > 0);
    at("decided").textContent = parts.map(([n, what]) => `${n} ${what}`).join(" · ") + (page.decisions.unsaved ? " · not exported" : "");
    at("undo").disabled = !page.decisions.canUndo;
    list.refresh();
    drawHead();
    repaintTokens();
  }

  // ---- what a user does ----------------------------------------------------------------------------------------------------------

  const rowNumber = () => run.row[page.row];
  const act = {
    moveRow(by) {
      if (!page.rows.length) return;
      const place = Math.min(Math.max(page.rows.indexOf(page.row) + by, 0), page.rows.length - 1);
      chooseRow(place);
    },
    screen: () => Math.max(Math.floor(at("list").clientHeight / LINE_HEIGHT) - 1, 1),
    moveToken(by, extend) {
      if (page.row < 0 || page.token < 0) return;
      const [begin, end] = tokensOfRow(run, page.row);
      if (extend && page.anchor < 0) page.anchor = page.token;
      if (!extend) page.anchor = -1;
      page.token = Math.min(Math.max(page.token + by, begin), end - 1);
      showToken(true);
    },
    nextMatch(by) {
      if (page.row < 0) return;
      const [begin, end] = tokensOfRow(run, page.row);
      for (let token = page.token + by; token >= begin && token < end; token += by) {
        if (page.passes ? page.passes[token] : run.quadrant[token] === 0) {
          page.token = token;
          page.anchor = -1;
          return showToken(true);
        }
      }
    },
    verdict(verdict) {
      if (page.row < 0) return;
      page.decisions.setVerdict(rowNumber(), verdict);
      decided();
    },
    mask(wholeTurn) {
      if (page.token < 0) return;
      const turn = run.turn[page.token];
      const span = wholeTurn ? { turn, begin: 0, end: Infinity } : chosenSpan(page);
      if (!span) return say("This token belongs to the chat template: there is nothing of the row's text to mask.");
      page.decisions.toggleMask(rowNumber(), span.turn, span.begin, span.end, lengthOfTurn(run, page.row, turn));
      decided();
    },
    note() {
      if (page.row < 0) return;
      const field = make("textarea");
      field.rows = 2;
      field.value = page.decisions.of(rowNumber()).note;
      field.setAttribute("aria-label", "Note on the row");
      const row = rowNumber();
      // Taking the field away blurs it, too.
      field.addEventListener("blur", () => {
        page.decisions.setNote(row, field.value.trim());
        decided();
      }, { once: true });
      field.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), field.blur();
      });
      at("row-head").append(field);
      field.focus();
    },
    undo() {
      if (!page.decisions.canUndo) return;
      page.decisions.undo();
      decided();
    },
    exportDecisions() {
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([page.decisions.exported()], { type: "application/jsonl" }));
      link.download = "decisions.jsonl";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      decided();
    },
    chooseFile: () => at("import-file").click(),
    async readBack(file) {
      try {
        const n = page.decisions.readBack(await file.text());
        say(`Read the decisions about ${count(n, "row")}.`);
        decided();
      } catch (error) {
        say(`${file.name}: ${error.message}. Nothing was taken over.`);
      }
    },
    search: () => at("search").focus(),
    setMeasure(id) {
      page.measure = page.measures.find((measure) => measure.id === id);
      showMeasures();
      repaintTokens();
      drawDetails(at("details"), page, run, page.token);
    },
    toggleDots() {
      page.dots = !page.dots;
      drawReader();
    },
    clear() {
      page.filters = noFilters();
      filterAgain();
    },
    help: () => at("help").showModal(),
    escape() {
      document.activeElement?.blur();
      page.anchor = -1;
      repaintTokens();
    },
  };

  function brush(p, entropy) {
    Object.assign(page.filters, { p, entropy });
    filterAgain();
  }

  // ---- the fields and buttons ----------------------------------------------------------------------------------------------------

  function makeQuadrantButtons() {
    const totals = [0, 0, 0, 0];
    for (const quadrant of run.quadrant) totals[quadrant]++;
    return QUADRANTS.map((name, idx) => {
      const element = button(name, () => {
        const { quadrants } = page.filters;
        // The first click asks for this quadrant alone; the last one that is left cannot go.
        if (quadrants.every(Boolean)) quadrants.fill(false), (quadrants[idx] = true);
        else quadrants[idx] = !quadrants[idx];
        if (!quadrants.some(Boolean)) quadrants.fill(true);
        filterAgain();
      });
      element.className = `q${idx}`;
      element.append(make("span", "", thousands(totals[idx])));
      at("quadrants").append(element);
      return element;
    });
  }

  function fillSelect(select, names, key) {
    select.append(new Option("all", ""));
    for (const [value, name] of names) select.append(new Option(oneLine(name), value));
    select.addEventListener("change", () => {
      page.filters[key] = select.value === "" ? null : Number(select.value);
      filterAgain();
    });
  }

  function showFilters() {
    const { filters } = page;
    at("search").value = filters.text;
    for (const key of ["source", "turn", "kind"]) at(key).value = filters[key] ?? "";
    const asksOfQuadrants = !filters.quadrants.every(Boolean);
    quadrantButtons.forEach((element, idx) => element.setAttribute("aria-pressed", String(asksOfQuadrants && filters.quadrants[idx])));
    const written = (value) => (value === Infinity ? "" : String(Number(value.toPrecision(3))));
    at("p-from").value = filters.p[0] > 0 ? written(filters.p[0]) : "";
    at("p-to").value = filters.p[1] < 1 ? written(filters.p[1]) : "";
    at("h-from").value = filters.entropy[0] > 0 ? written(filters.entropy[0]) : "";
    at("h-to").value = written(filters.entropy[1]);
    density.draw();
  }

  function showMeasures() {
    const bar = at("measures");
    bar.replaceChildren();
    page.measures.forEach((measure, idx) => {
      const element = bar.appendChild(button(measure.name, () => act.setMeasure(measure.id)));
      element.setAttribute("role", "radio");
      element.setAttribute("aria-checked", String(measure === page.measure));
      element.title = `${measure.about} (${idx + 1})`;
    });
    if (page.measure.id === "weight") {
      const select = bar.appendChild(make("select"));
      select.setAttribute("aria-label", "Loss whose weight is shown");
      run.gates.forEach(({ name }, idx) => select.append(new Option(name, idx, false, idx === page.gate)));
      select.addEventListener("change", () => {
        page.gate = Number(select.value);
        repaintTokens();
      });
    }
    const legend = bar.appendChild(make("span", "legend"));
    if (page.measure.ends) {
      legend.append(page.measure.ends[0]);
      for (let step = 1; step <= STEPS; step++) legend.append(make("i", `h${step}`));
      legend.append(page.measure.ends[1]);
    } else {
      legend.append(page.measure.about);
    }
  }

  function field(id, read) {
    at(id).addEventListener("change", () => {
      const text = at(id).value.trim().replace(",", ".");
      const value = text === "" ? null : Number(text);
      if (value !== null && !(value >= 0)) return say(`Expected a number from 0 on, found ${text}.`);
      read(value);
      filterAgain();
    });
  }

  fillSelect(at("source"), run.sources.map((name, idx) => [idx, name]), "source");
  fillSelect(at("turn"), [...new Set(run.turn)].sort((a, b) => a - b).map((turn) => [turn, String(turn)]), "turn");
  if (run.kinds) fillSelect(at("kind"), run.kinds.map((name, idx) => [idx, name]).slice(1), "kind");
  at("kind-label").hidden = !run.kinds;
  for (const order of ORDERS) if (!order.compared || after) at("order").append(new Option(order.name, order.id));
  at("order").addEventListener("change", () => {
    page.order = at("order").value;
    page.row = -1;
    filterAgain();
  });
  at("search").addEventListener("input", () => {
    page.filters.text = at("search").value;
    filterAgain();
  });
  field("p-from", (value) => (page.filters.p[0] = value ?? 0));
  field("p-to", (value) => (page.filters.p[1] = value ?? 1));
  field("h-from", (value) => (page.filters.entropy[0] = value ?? 0));
  field("h-to", (value) => (page.filters.entropy[1] = value ?? Infinity));
  at("reset").addEventListener("click", act.clear);
  at("undo").addEventListener("click", act.undo);
  at("export").addEventListener("click", act.exportDecisions);
  at("import").addEventListener("click", act.chooseFile);
  at("import-file").addEventListener("change", async () => {
    const [file] = at("import-file").files;
    if (file) await act.readBack(file);
    at("import-file").value = "";
  });
  at("help-button").addEventListener("click", act.help);
  at("scheme").addEventListener("click", () => {
    const { dataset } = document.documentElement;
    const now = dataset.scheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    dataset.scheme = now === "dark" ? "light" : "dark";
    density.draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", density.draw);

  // Tokens: pointing shows, clicking chooses, clicking with Shift extends.
  const tokenAt = (event) => event.target.closest?.(".token");
  at("turns").addEventListener("pointerover", (event) => {
    const span = tokenAt(event);
    if (span) drawDetails(at("details"), page, "after" in span.dataset ? after : run, Number(span.dataset.token));
  });
  at("turns").addEventListener("pointerleave", () => drawDetails(at("details"), page, run, page.token));
  at("turns").addEventListener("click", (event) => {
    const span = tokenAt(event);
    if (!span || "after" in span.dataset) return;
    if (event.shiftKey) page.anchor = page.anchor < 0 ? page.token : page.anchor;
    else page.anchor = -1;
    page.token = Number(span.dataset.token);
    showToken(true);
  });
  // Text that is selected with the mouse is a selection of its tokens.
  document.addEventListener("selectionchange", () => {
    const selection = document.getSelection();
    if (!selection || selection.isCollapsed || !at("turns").contains(selection.anchorNode)) return;
    const token = (node) => node?.parentElement?.closest(".token:not([data-after])")?.dataset.token;
    const [from, to] = [token(selection.anchorNode), token(selection.focusNode)];
    if (from === undefined || to === undefined) return;
    page.anchor = Number(from);
    page.token = Number(to);
    repaintTokens();
  });
  window.addEventListener("beforeunload", (event) => {
    if (page.decisions.unsaved) event.preventDefault();
  });

  const keys = keyTable(page, act);
  listenToKeys(keys);
  fillHelp(at("help"), keys);
  showMeasures();
  filterAgain();
  decided();
  at("list").focus();
}

function aboutText({ run, after, changes }) {
  const parts = [`${run.model} on ${run.dataNames}`, run.thresholdsText];
  if (run.rowsOfRun > run.row.length) {
    const sampled = run.sampled.reduce((n, is) => n + is, 0);
    const ranked = run.row.length - sampled;
    parts.push(`shown: ${thousands(ranked)} top rows and ${thousands(sampled)} at random, of ${thousands(run.rowsOfRun)}`);
  }
  if (run.turnFrom.at(-1) === 0) parts.push("the data were not at hand: the tokens alone");
  if (after) {
    const change = Number.isNaN(changes.mean) ? "" : `, mean change of ln p ${changeText(changes.mean)}`;
    parts.push(`rows paired by ${changes.by}: ${count(changes.shared, "token")} in common${change}`);
  }
  return parts.join(" · ");
}

let hiding;
function say(text) {
  at("message").textContent = oneLine(text);
  at("message").hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (at("message").hidden = true), 8000);
}

const ready = start().catch((error) => {
  say(`The page cannot show its data: ${error.message}.`);
  clearTimeout(hiding);
  throw error;
});
