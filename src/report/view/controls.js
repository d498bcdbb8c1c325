// The fields and buttons: what they change, and what they show of the state.

function makeControls(app) {
  const { page } = app;
  const { run, after } = page;
  const quadrantButtons = makeQuadrantButtons();

  function makeQuadrantButtons() {
    return QUADRANTS.map((name, idx) => {
      const element = button(name, () => {
        const { quadrants } = page.filters;
        // The first click asks for this quadrant alone; the last one that is left cannot go.
        if (quadrants.every(Boolean)) quadrants.fill(false), (quadrants[idx] = true);
        else quadrants[idx] = !quadrants[idx];
        if (!quadrants.some(Boolean)) quadrants.fill(true);
        app.draw.filterAgain();
      });
      element.className = `q${idx}`;
      element.append(make("span"));
      at("quadrants").append(element);
      return element;
    });
  }

  function fillSelect(key, names) {
    at(key).replaceChildren(new Option("all", ""), ...names.map(([value, name]) => new Option(oneLine(name), value)));
  }

  // What there is to choose, and how much of it.
  function fill() {
    const totals = [0, 0, 0, 0];
    for (const quadrant of run.quadrant) totals[quadrant]++;
    quadrantButtons.forEach((element, idx) => (element.lastChild.textContent = thousands(totals[idx])));
    fillSelect("source", run.sources.map((name, idx) => [idx, name]));
    fillSelect("turn", [...new Set(run.turn)].sort((a, b) => a - b).map((turn) => [turn, String(turn)]));
    if (run.kinds) {
      const counts = countKinds(run);
      const found = run.kinds.map((name, idx) => [idx, `${name} (${thousands(counts[idx])})`]);
      fillSelect("kind", found.filter(([idx]) => idx > 0 && counts[idx] > 0));
    }
    if (after) fillSelect("moved", MOVED.map((name, idx) => [idx, `${name} (${thousands(page.changes.movedCounts[idx])})`]).slice(1));
    at("more").hidden = run.rowsOfRun === run.row.length;
    const how = after ? MORE_OF_TWO : "Drop tokens.parquet here to see all.";
    at("more-text").textContent = `${thousands(run.row.length)} of ${count(run.rowsOfRun, "row")}. ${how}`;
    at("tables").hidden = Boolean(after);
    at("more").title = after ? "" : "The run's tables: tokens.parquet, optionally with rows.parquet and conflicts.parquet for places and kinds";
  }

  function showFilters() {
    const { filters } = page;
    at("search").value = filters.text;
    for (const key of ["source", "turn", "kind", "moved"]) at(key).value = filters[key] ?? "";
    at("group").hidden = filters.group === null;
    if (filters.group !== null) {
      const [, word, top] = filters.group.split(" ").map((idx) => quotedToken(run.words[idx] ?? ""));
      at("group").textContent = `${word} .. ${top} ✕`;
      at("group").setAttribute("aria-label", `Only ${word} where the model expected ${top}: remove this filter`);
    }
    at("order").title = "Order: " + ORDERS.find(({ id }) => id === page.order).about;
    const asksOfQuadrants = !filters.quadrants.every(Boolean);
    quadrantButtons.forEach((element, idx) => element.setAttribute("aria-pressed", String(asksOfQuadrants && filters.quadrants[idx])));
    const written = (value) => (value === Infinity ? "" : String(Number(value.toPrecision(3))));
    at("p-from").value = filters.p[0] > 0 ? written(filters.p[0]) : "";
    at("p-to").value = filters.p[1] < 1 ? written(filters.p[1]) : "";
    at("h-from").value = filters.entropy[0] > 0 ? written(filters.entropy[0]) : "";
    at("h-to").value = written(filters.entropy[1]);
    app.density.draw();
  }

  function showMeasures() {
    const bar = at("measures");
    bar.replaceChildren();
    page.measures.forEach((measure, idx) => {
      const element = bar.appendChild(button(measure.name, () => app.act.setMeasure(measure.id)));
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
        app.draw.repaintTokens();
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
      if (value !== null && !(value >= 0)) return say(`Expected a number of 0 or more, found ${text}.`);
      read(value);
      app.draw.filterAgain();
    });
  }

  for (const key of ["source", "turn", "kind", "moved"]) {
    at(key).addEventListener("change", () => {
      // A group is of one kind.
      const group = key === "kind" ? null : page.filters.group;
      app.act.filterBy({ [key]: at(key).value === "" ? null : Number(at(key).value), group });
    });
  }
  at("moved-label").hidden = !after;
  fill();
  at("kind-label").hidden = at("groups-button").hidden = !run.kinds;
  at("groups-button").addEventListener("click", () => app.act.groups());
  at("group").addEventListener("click", () => app.act.filterBy({ group: null, kind: null }));
  for (const order of ORDERS) if (!order.compared || after) at("order").append(new Option(order.name, order.id));
  at("order").addEventListener("change", () => {
    page.order = at("order").value;
    page.row = -1;
    app.draw.filterAgain();
  });
  at("search").addEventListener("input", () => {
    page.filters.text = at("search").value;
    app.draw.filterAgain();
  });
  field("p-from", (value) => (page.filters.p[0] = value ?? 0));
  field("p-to", (value) => (page.filters.p[1] = value ?? 1));
  field("h-from", (value) => (page.filters.entropy[0] = value ?? 0));
  field("h-to", (value) => (page.filters.entropy[1] = value ?? Infinity));
  at("reset").addEventListener("click", () => app.act.clear());
  at("undo").addEventListener("click", () => app.act.undo());
  at("export").addEventListener("click", () => app.act.exportDecisions());
  at("import").addEventListener("click", () => app.act.chooseFile());
  at("import-file").addEventListener("change", async () => {
    const [file] = at("import-file").files;
    if (file) await app.act.readBack(file);
    at("import-file").value = "";
  });
  at("tables").addEventListener("click", () => app.act.chooseTables());
  at("tables-file").addEventListener("change", async () => {
    const files = [...at("tables-file").files];
    at("tables-file").value = "";
    if (files.length) await app.act.readTables(files);
  });
  at("help-button").addEventListener("click", () => app.act.help());
  at("scheme").addEventListener("click", () => {
    const { dataset } = document.documentElement;
    const now = dataset.scheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    dataset.scheme = now === "dark" ? "light" : "dark";
    app.density.draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.density.draw());

  return { fill, showFilters, showMeasures };
}

// The mouse in the text, and leaving the page.
function listenToPointer(app) {
  const { page } = app;
  const { run, after } = page;
  // Pointing at a token shows, clicking chooses, clicking with Shift extends.
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
    app.draw.showToken(true);
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
    app.draw.repaintChosen();
  });
  // Files that are dropped anywhere: tables of the run, or decisions. Without this the browser would leave the page for them.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragged");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dragged"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragged");
    const files = [...event.dataTransfer.files];
    const decisions = files.find(({ name }) => name.endsWith(".jsonl"));
    if (decisions) app.act.readBack(decisions);
    else if (files.length) app.act.readTables(files);
  });
  window.addEventListener("beforeunload", (event) => {
    if (page.decisions.unsaved) event.preventDefault();
  });
}
