// The conflicts by kind, and by target and choice: tables in a dialog, each line of which filters the rows.

const GROUPS_SHOWN = 300;

// Groups of conflicts with the same kind, target and choice among the rows that are shown, most surplus first.
function groupsOf(run) {
  const groups = new Map();
  for (let token = 0; token < run.logprob.length; token++) {
    if (!run.kind[token]) continue;
    const key = groupKey(run, token);
    if (!groups.has(key)) {
      groups.set(key, { key, kind: run.kind[token], word: run.word[token], top: run.top[token], count: 0, surplus: 0, loss: 0, worst: token });
    }
    const group = groups.get(key);
    group.count++;
    group.surplus += surplusOf(run, token);
    group.loss -= run.logprob[token];
    if (surplusOf(run, token) > surplusOf(run, group.worst)) group.worst = token;
  }
  return [...groups.values()].sort((a, b) => b.surplus - a.surplus);
}

function groupKey(run, token) {
  return `${run.kind[token]} ${run.word[token]} ${run.top[token]}`;
}

// How many conflicts of each kind the page shows.
function countKinds(run) {
  const counts = run.kinds.map(() => 0);
  for (const kind of run.kind) counts[kind]++;
  return counts;
}

// The kind with the most surplus among the conflicts of a row, and how many kinds there are; null without conflicts.
function mainKind(run, row) {
  const sums = new Map();
  const [begin, end] = tokensOfRow(run, row);
  for (let token = begin; token < end; token++) {
    if (run.kind[token]) sums.set(run.kind[token], (sums.get(run.kind[token]) ?? 0) + surplusOf(run, token));
  }
  if (!sums.size) return null;
  const [kind] = [...sums].reduce((most, own) => (own[1] > most[1] ? own : most));
  return { name: run.kinds[kind], isOnly: sums.size === 1 };
}

function fillGroups(dialog, page, act) {
  const { run } = page;
  dialog.replaceChildren();
  const title = make("h2", "", "Kinds of conflict");
  title.id = "groups-title";
  const choose = (filters) => () => {
    dialog.close();
    act.filterBy(filters);
  };
  const share = (value, total) => (total > 0 ? percent(value / total) : "–");
  const kinds = linedTable(["kind", ">conflicts", ">in rows", ">surplus", ">of the loss", ">of the gradient"]);
  for (const sums of run.kindSums) {
    const kind = run.kinds.indexOf(sums.kind);
    const numbers = [thousands(sums.tokens), thousands(sums.rows), sums.surplus.toFixed(1), percent(sums.loss_share), percent(sums.grad_share)];
    addLine(kinds, [button(sums.kind, choose({ kind, group: null })), ...numbers]);
  }
  const groups = groupsOf(run);
  const list = linedTable(["kind", "data", "model", ">times", ">surplus", ">of the loss", "sharpest example"]);
  for (const group of groups.slice(0, GROUPS_SHOWN)) {
    const [word, top] = [group.word, group.top].map((idx) => isolatedNode(make("code", "", quotedToken(run.words[idx]))));
    const only = button(run.kinds[group.kind], choose({ kind: group.kind, group: group.key }));
    const example = snippet(run, run.rowOfToken[group.worst], group.worst);
    addLine(list, [only, word, top, thousands(group.count), group.surplus.toFixed(1), share(group.loss, run.totals[0]), example]);
  }
  const of = run.rowsOfRun > run.row.length ? "In the rows that the page shows" : "In all rows";
  const most = groups.length > GROUPS_SHOWN ? `, the ${GROUPS_SHOWN} with the most surplus` : "";
  dialog.append(
    title, kinds, make("h2", "", "The same target and the same choice of the model"),
    make("p", "soft", `${of}: ${count(groups.length, "group")}${most}. Shares are of all supervised tokens of the run.`),
    list, button("Close", () => dialog.close()),
  );
}

// A table whose columns with `>` are numbers.
function linedTable(columns) {
  const lines = make("table", "lines");
  const head = lines.appendChild(make("tr"));
  for (const name of columns) {
    const cell = head.appendChild(make("th", name.startsWith(">") ? "number" : "", name.replace(">", "")));
    cell.scope = "col";
  }
  return lines;
}

function addLine(lines, cells) {
  const row = lines.appendChild(make("tr"));
  const heads = lines.firstChild.children;
  cells.forEach((cell, idx) => {
    const place = row.appendChild(make("td", heads[idx].className));
    place.append(cell);
  });
}
