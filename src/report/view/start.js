// The page: its state, and its parts put together.

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
    // The elements of the tokens that are drawn, of the first run.
    spans: new Map(),
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

  const app = { page };
  app.draw = makeDrawing(app);
  app.act = makeActs(app);
  app.list = makeList(at("list"), at("list-head"), page, app.draw.chooseRow);
  app.density = makeDensity(at("density"), page, app.act.brush);
  app.controls = makeControls(app);
  listenToPointer(app);
  const keys = keyTable(page, app.act);
  listenToKeys(keys);
  fillHelp(at("help"), keys);

  // The run has become another: all rows in place of some.
  app.reload = () => {
    placeTokens(run);
    Object.assign(page, { sharpest: sharpestTokens(run), searchTexts: [], filters: noFilters(), row: -1, token: -1, anchor: -1 });
    app.density.recount();
    app.controls.fill();
    at("groups").replaceChildren();
    at("about").textContent = at("about").title = oneLine(aboutText(page));
    app.draw.filterAgain();
    app.draw.decided();
  };
  app.controls.showMeasures();
  app.draw.filterAgain();
  app.draw.decided();
  at("list").focus();
}

function aboutText({ run, after, changes }) {
  const madeOf = (run) => [`${run.model} on ${run.dataNames}`, run.thresholdsText];
  const parts = madeOf(run);
  if (after) {
    const others = madeOf(after).filter((part) => !parts.includes(part));
    if (others.length) parts.push(`then ${others.join(" · ")}`);
    const sorting = ({ preset, fdr, ...numbers }) => JSON.stringify(numbers);
    if (sorting(run.thresholds) !== sorting(after.thresholds)) parts.push("different thresholds: the two runs' conflicts and quadrants are not the same things");
  }
  if (run.rowsOfRun > run.row.length) {
    const sampled = run.sampled.reduce((n, is) => n + is, 0);
    const ranked = run.row.length - sampled;
    parts.push(`shown: ${thousands(ranked)} top rows and ${thousands(sampled)} random ones, of ${thousands(run.rowsOfRun)}`);
  }
  if (run.isWhole) parts.push("all rows, from the tables");
  if (run.kinds?.includes(UNKNOWN_KIND)) parts.push("kinds of conflict unknown for added rows");
  if (run.turnFrom.at(-1) === 0) parts.push("data files not found: tokens alone");
  if (after) {
    const change = Number.isNaN(changes.mean) ? "" : `, mean change of ln p ${changeText(changes.mean)}`;
    const isPart = [run, after].some((run) => run.rowsOfRun > run.row.length);
    parts.push(`rows paired by ${changes.by}: ${count(changes.shared, "token")} in common${isPart ? " on this page" : ""}${change}`);
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
