// What is drawn when something changes: the list, the row's head and text, the token, the count of decisions.
//
// `app` holds the page's state and its parts (`list`, `density`, `controls`, `act`), which find each other in it.

function makeDrawing(app) {
  const { page } = app;
  const { run, after } = page;
  // First and last token of what is painted as the selection, and the one that Tab leads to.
  let painted = [-1, -1];
  let focusable = null;

  function filterAgain() {
    page.passes = asksOfTokens(page.filters) ? passingTokens(run, page.filters, page.changes) : null;
    const row = page.row;
    page.rows = chosenRows(page);
    const all = count(run.row.length, "row");
    at("shown").textContent = page.rows.length === run.row.length ? all : `${thousands(page.rows.length)} of ${all}`;
    app.list.refresh();
    app.controls.showFilters();
    const place = page.rows.indexOf(row);
    if (place >= 0) {
      app.list.reveal(place);
      if (page.passes && !page.passes[page.token]) {
        page.token = tokenToShow(page, row);
        page.anchor = -1;
      }
      repaintTokens();
      showToken(false);
    } else {
      at("list").scrollTop = 0;
      chooseRow(page.rows.length ? 0 : -1);
    }
  }

  function chooseRow(place) {
    page.row = place < 0 ? -1 : page.rows[place];
    page.token = page.row < 0 ? -1 : tokenToShow(page, page.row);
    page.anchor = -1;
    app.list.refresh();
    if (place >= 0) app.list.reveal(place);
    drawReader();
    app.density.draw();
  }

  function drawReader() {
    const turns = at("turns");
    turns.replaceChildren();
    turns.scrollTop = 0;
    page.spans.clear();
    focusable = null;
    painted = chosenTokens(page);
    showMeasure();
    drawHead();
    if (page.row < 0) {
      turns.append(make("p", "soft", "No row passes the filters."));
      drawDetails(at("details"), page, run, -1);
      return;
    }
    let steps;
    if (after) {
      const sides = turns.appendChild(make("div", "sides"));
      sides.append(make("h2", "", `before: ${oneLine(run.title)}`), make("h2", "", `after: ${oneLine(after.title)}`));
      const [own, other] = [0, 1].map(() => sides.appendChild(make("div")));
      steps = stepsOfRow(page, run, page.row, own);
      const partner = page.changes.rowOf[page.row];
      if (partner >= 0) steps.push(...stepsOfRow(page, after, partner, other));
      else other.append(make("p", "soft", "The other run does not show this row."));
    } else {
      steps = stepsOfRow(page, run, page.row, turns);
    }
    // The token may come with a later slice of a long row.
    runInSlices(steps, page, () => spanOf(page.token) && showToken(false));
    showToken(false);
  }

  function drawHead() {
    const head = at("row-head");
    head.replaceChildren();
    if (page.row < 0) return;
    const row = page.row;
    const place = head.appendChild(make("div", "place"));
    const path = run.paths[run.path[row]];
    if (path) place.append(isolated("", oneLine(`${path}:${run.line[row]}`)));
    if (run.ids[row] !== null) place.append(isolated("soft", oneLine(run.ids[row])));
    place.append(
      isolated("soft", oneLine(run.sources[run.source[row]])),
      make("span", "soft", `row ${run.row[row]}`),
      make("span", "soft", count(run.supervised[row], "token") + " learnt" + (run.tokens[row] > 0 ? ` of ${thousands(run.tokens[row])}` : "")),
      make("span", "soft", `mean -ln p ${nats(-run.meanLogprob[row])}`),
      make("span", "soft", massesText(row)),
    );
    if (after) place.append(make("span", "", page.changes.textOfRow(row)));
    if (run.truncated[row]) place.append(make("span", "soft", "cut at the maximum length"));
    if (run.sampled[row]) place.append(make("span", "soft", "drawn at random"));
    const acts = head.appendChild(make("div", "acts"));
    const decision = page.decisions.of(run.row[row]);
    const toggle = (name, key, isOn, onClick) => {
      const element = acts.appendChild(button(`${name} `, onClick));
      element.append(make("kbd", "", key));
      element.setAttribute("aria-pressed", String(isOn));
    };
    toggle("Drop", "x", decision.verdict === "drop", () => app.act.verdict("drop"));
    toggle("Keep", "y", decision.verdict === "keep", () => app.act.verdict("keep"));
    toggle("Mask tokens", "m", decision.masks.length > 0, () => app.act.mask(false));
    toggle("Mask turn", "t", false, () => app.act.mask(true));
    toggle("Note", "n", Boolean(decision.note), () => app.act.note());
    if (decision.masks.length) {
      const bytes = ({ begin, end }) => (end === Infinity ? "" : `, bytes ${begin}–${end}`);
      const spans = decision.masks.map((mask) => `turn ${mask.turn}${bytes(mask)}`);
      acts.append(make("span", "soft", `masked: ${spans.join("; ")}`));
    }
    if (decision.note) acts.append(isolated("soft", `“${oneLine(decision.note)}”`));
  }

  function massesText(row) {
    const kind = run.kinds && mainKind(run, row);
    const kinds = kind ? `, ${kind.isOnly ? "all" : "mostly"} ${kind.name}` : "";
    return `${count(run.conflicts[row], "conflict")}${kinds}: surplus ${nats(run.conflictSurplus[row])}, loss ${nats(run.conflictLoss[row])} nats`;
  }

  // The token under consideration: its place in the text, its numbers, its place in the density.
  function showToken(fromKeyboard) {
    repaintChosen();
    const span = spanOf(page.token);
    if (focusable) focusable.tabIndex = -1;
    if (span) {
      focusable = span;
      span.tabIndex = 0;
      span.setAttribute("aria-describedby", "details");
      span.scrollIntoView({ block: "nearest" });
      if (fromKeyboard) span.focus({ preventScroll: true });
    }
    drawDetails(at("details"), page, run, page.token);
    app.density.draw();
  }

  const spanOf = (token) => page.spans.get(token);
  const showMeasure = () => at("turns").classList.toggle("by-quadrant", page.measure.id === "quadrant");

  // A row may have tens of thousands of tokens, of which a step changes two.
  function repaintChosen() {
    const now = chosenTokens(page);
    for (const [from, to] of [painted, now]) {
      for (let token = from; token <= to; token++) {
        const span = spanOf(token);
        if (span) paintToken(page, run, token, span);
      }
    }
    painted = now;
  }

  function repaintTokens() {
    showMeasure();
    painted = chosenTokens(page);
    for (const span of at("turns").querySelectorAll(".token")) {
      paintToken(page, "after" in span.dataset ? after : run, Number(span.dataset.token), span);
    }
  }

  function decided() {
    const { dropped, kept, masks, notes } = page.decisions.counts();
    const parts = [[dropped, "dropped"], [kept, "kept"], [masks, "masked"], [notes, "noted"]].filter(([n]) => n > 0);
    at("decided").textContent = parts.map(([n, what]) => `${n} ${what}`).join(" · ") + (page.decisions.unsaved ? " · not exported" : "");
    at("undo").disabled = !page.decisions.canUndo;
    app.list.refresh();
    drawHead();
    repaintTokens();
  }

  return { filterAgain, chooseRow, drawReader, showToken, repaintChosen, repaintTokens, decided };
}
