// What a user does, by keys, buttons and fields alike.

// Masks are bytes of the content.
function whyNoMask(run, token) {
  const outside = { [REASONING]: "Reasoning stands beside the turn's content", [TOOL_CALL]: "A tool call stands beside the turn's content" };
  const what = outside[run.part[token]];
  if (!what) return "This token belongs to the chat template: there is nothing of the row's text to mask.";
  return `${what}, and only parts of the content can be masked: mask the whole turn (t), or drop the row (x).`;
}

const MORE_OF_TWO = "For more rows, write the page again with a larger --tokens.";

function makeActs(app) {
  const { page } = app;
  const { run, after } = page;
  const rowNumber = () => run.row[page.row];

  return {
    moveRow(by) {
      if (!page.rows.length) return;
      const place = Math.min(Math.max(page.rows.indexOf(page.row) + by, 0), page.rows.length - 1);
      app.draw.chooseRow(place);
    },
    screen: () => Math.max(Math.floor(at("list").clientHeight / LINE_HEIGHT) - 1, 1),
    moveToken(by, extend) {
      if (page.row < 0 || page.token < 0) return;
      const [begin, end] = tokensOfRow(run, page.row);
      if (extend && page.anchor < 0) page.anchor = page.token;
      if (!extend) page.anchor = -1;
      page.token = Math.min(Math.max(page.token + by, begin), end - 1);
      app.draw.showToken(true);
    },
    nextMatch(by) {
      if (page.row < 0) return;
      const [begin, end] = tokensOfRow(run, page.row);
      for (let token = page.token + by; token >= begin && token < end; token += by) {
        if (page.passes ? page.passes[token] : run.quadrant[token] === 0) {
          page.token = token;
          page.anchor = -1;
          return app.draw.showToken(true);
        }
      }
    },
    verdict(verdict) {
      if (page.row < 0) return;
      page.decisions.setVerdict(rowNumber(), verdict);
      app.draw.decided();
    },
    mask(wholeTurn) {
      if (page.token < 0) return;
      const spans = chosenSpans(page, wholeTurn);
      const [from, to] = chosenTokens(page);
      let outside = from;
      while (outside <= to && run.begin[outside] < run.end[outside]) outside++;
      if (outside <= to && !wholeTurn) say(whyNoMask(run, outside));
      if (!spans.length) return;
      page.decisions.toggleMasks(rowNumber(), spans, (turn) => lengthOfTurn(run, page.row, turn));
      app.draw.decided();
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
        app.draw.decided();
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
      app.draw.decided();
    },
    exportDecisions() {
      const link = make("a");
      link.href = URL.createObjectURL(new Blob([page.decisions.exported()], { type: "application/jsonl" }));
      link.download = "decisions.jsonl";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      app.draw.decided();
    },
    chooseFile: () => at("import-file").click(),
    async readBack(file) {
      try {
        const [n, staying] = page.decisions.readBack(await file.text());
        say(`Imported decisions about ${count(n, "row")}${staying ? `; those about ${count(staying, "other row")} stay` : ""}.`);
        app.draw.decided();
      } catch (error) {
        say(`${file.name}: ${error.message}. Nothing was imported.`);
      }
    },
    // All rows of a run that is larger than the page, from its tables.
    async readTables(files) {
      if (run.rowsOfRun === run.row.length) return say("The page already shows all rows of the run.");
      if (after) return say(`Tables can be added to the page of one run only. ${MORE_OF_TWO}`);
      say("Reading the tables.");
      try {
        Object.assign(run, await wholeRun(files, run));
        app.reload();
        const unknown = run.kinds?.includes(UNKNOWN_KIND) ? ", and the kinds of their conflicts are unknown (drop conflicts.parquet too)" : "";
        say(`All ${count(run.row.length, "row")}; added rows are shown as their tokens${unknown}.`);
      } catch (error) {
        say(`${error.message}. Nothing was imported.`);
      }
    },
    chooseTables: () => at("tables-file").click(),
    search: () => at("search").focus(),
    setMeasure(id) {
      page.measure = page.measures.find((measure) => measure.id === id);
      app.controls.showMeasures();
      app.draw.repaintTokens();
      drawDetails(at("details"), page, run, page.token);
    },
    toggleDots() {
      page.dots = !page.dots;
      app.draw.drawReader();
    },
    clear() {
      page.filters = noFilters();
      app.draw.filterAgain();
    },
    filterBy(filters) {
      Object.assign(page.filters, filters);
      app.draw.filterAgain();
    },
    groups() {
      if (!run.kinds) return say("The run has no kinds of conflict: its data files were not found when it was sorted.");
      if (!at("groups").firstChild) fillGroups(at("groups"), page, app.act);
      at("groups").showModal();
    },
    help: () => at("help").showModal(),
    escape() {
      document.activeElement?.blur();
      page.anchor = -1;
      app.draw.repaintChosen();
    },
    brush(p, entropy) {
      Object.assign(page.filters, { p, entropy });
      app.draw.filterAgain();
    },
  };
}
