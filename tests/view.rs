//! Tests `diagnose view` and the page that every run leaves, in a real browser.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::tiny_model;
use crate::workdir::{Workdir, default_model};

/// Under these the random weights of the tiny model are sure of something: all quadrants have tokens.
const THRESHOLDS: &str = "p=0.004,H=5.5";

fn row(prompt: &str, answer: &str) -> Value {
    json!({ "id": format!("id of {prompt}"), "source": "mine", "messages": [
        { "role": "user", "content": prompt }, { "role": "assistant", "content": answer }
    ] })
}

/// Scores rows with the tiny model into `run`, and gives the run's page.
fn scored(workdir: &Workdir, run: &str, rows: &[Value]) -> PathBuf {
    if !workdir.path("tiny.gguf").exists() {
        tiny_model::write(&workdir.path(""));
    }
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let data = format!("{run}.jsonl");
    workdir.write(&data, lines);
    workdir.run(&[&data, "--model", "tiny.gguf", "--out", run, "--thresholds", THRESHOLDS, "--max-len", "4096"]).ok();
    workdir.path(&format!("{run}/view.html"))
}

fn plain_rows(n: usize) -> Vec<Value> {
    (0..n)
        .map(|i| row(&format!("Question {i}?"), &format!("Answer {i}, of about seventy letters: {}", "abcdefgh ".repeat(4))))
        .collect()
}

/// The lines of the file that a download leaves. The browser makes an empty file of that name first, and puts the whole one in its place.
fn downloaded(file: &Path) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n') {
            return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        assert!(began.elapsed() < Duration::from_secs(30), "no file was downloaded");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn drop_mask_undo_export_and_read_back_by_keyboard() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    // In UTF-8 the emoji are eleven bytes, in the browser's strings five units.
    let answer = "né 👩🏽 ok";
    let page = scored(&workdir, "run", &[row("a", answer), row("b", "Beta beta."), row("c", "Gamma gamma.")]);
    browser.download_to(&workdir.path(""));
    browser.open(&page);
    assert_eq!(browser.eval("document.activeElement.id"), "list");
    browser.eval("ready.then((page) => { window.page = page; })");
    // By the order of the file, so that the test knows where it is.
    browser.eval("at('order').value = 'file', at('order').dispatchEvent(new Event('change'))");

    browser.press(&["j", "x", "j", "x", "u"]);
    assert_eq!(browser.eval("at('decided').textContent"), "1 dropped · not exported");
    browser.press(&["y", "k", "k"]);
    // From the first token of the answer to the skin tone's first byte: whole characters are masked.
    browser.eval("page.row");
    browser.press(&["Home"]);
    let begin_of_row = browser.eval("page.run.tokenFrom[page.row]").as_u64().unwrap();
    while browser.eval("page.token").as_u64() > Some(begin_of_row) {
        browser.press(&["h"]);
    }
    browser.press(&["l", "L", "L", "L", "L", "m"]);
    browser.press(&["n", "s", "e", "e", " ", "p", "Enter"]);
    assert_eq!(browser.eval("at('decided').textContent"), "1 dropped · 1 kept · 1 masked · 1 noted · not exported");
    browser.press(&["e"]);
    let file = workdir.path("decisions.jsonl");
    let lines = downloaded(&file);
    let record: Value = serde_json::from_slice(&std::fs::read(workdir.path("run/run.json")).unwrap()).unwrap();
    assert_eq!(lines[0]["decisions"], 1);
    assert_eq!((&lines[0]["run"], &lines[0]["data"][0]["sha256"]), (&record["identity"], &record["data"][0]["sha256"]));
    // Tokens 1 to 5 of "né 👩🏽 ok" are the bytes of é, the space, and the first two of the woman.
    let masked = "é 👩";
    let begin = answer.find(masked).unwrap();
    assert_eq!(
        lines[1..],
        [
            json!({ "row": 0, "action": "mask", "turn": 1, "begin": begin, "end": begin + masked.len() }),
            json!({ "row": 0, "action": "note", "text": "see p" }),
            json!({ "row": 1, "action": "drop" }),
            json!({ "row": 2, "action": "keep" }),
        ]
    );
    assert_eq!(browser.eval("page.decisions.unsaved"), false);

    // A new page has no decisions until they are read back; then it exports the same bytes.
    let before = std::fs::read(&file).unwrap();
    std::fs::rename(&file, workdir.path("kept.jsonl")).unwrap();
    browser.open(&page);
    assert_eq!(browser.eval("at('decided').textContent"), "");
    browser.choose_file("#import-file", &workdir.path("kept.jsonl"));
    wait_for(&mut browser, "at('decided').textContent === '1 dropped · 1 kept · 1 masked · 1 noted'");
    browser.press(&["e"]);
    downloaded(&file);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    // The masked tokens are marked: seven bytes, so seven tokens.
    browser.eval("at('order').value = 'file', at('order').dispatchEvent(new Event('change'))");
    assert_eq!(browser.eval("document.querySelectorAll('.token.masked').length"), masked.len());

    // What is wrong in a file is said, and nothing of the file is taken.
    assert_eq!(lines[0]["data"][0]["format"], "messages");
    let identity = record["identity"].as_str().unwrap();
    for (text, message) in [
        ("{}", "line 1"),
        ("{\"decisions\": 1, \"run\": \"x\", \"data\": []}", "about others"),
        (
            &lines[0].to_string().replace("\"format\":\"messages\"", "\"format\":\"sharegpt\"").replace(identity, "x"),
            "read the files differently",
        ),
        (&format!("{}\n{{\"row\": 1, \"action\": \"delete\"}}", lines[0]), "line 2"),
        (&format!("{}\nrow", lines[0]), "line 2: expected a JSON object, found row"),
        (
            &format!("{}\n{{\"row\": 3, \"action\": \"drop\"}}", lines[0]),
            "line 2: expected a row of the run, whose last one is 2",
        ),
        (
            &format!("{}\n{{\"row\": 0, \"action\": \"mask\", \"turn\": 2}}", lines[0]),
            "line 2: expected a turn of the row, which has 2",
        ),
        (
            &format!("{}\n{{\"row\": 0, \"action\": \"mask\", \"turn\": 1, \"begin\": 0, \"end\": 16}}", lines[0]),
            "line 2: expected a span within the 15 bytes of turn 1",
        ),
        (
            &format!("{}\n{{\"row\": 0, \"action\": \"mask\", \"turn\": 1, \"begin\": 0, \"end\": 2}}", lines[0]),
            "line 2: expected a span of whole characters of turn 1",
        ),
    ] {
        let wrong = workdir.write("wrong.jsonl", text);
        browser.eval("at('message').textContent = ''");
        browser.choose_file("#import-file", &wrong);
        wait_for(&mut browser, &format!("at('message').textContent.includes({})", json!(message)));
        assert_eq!(browser.eval("at('decided').textContent"), "1 dropped · 1 kept · 1 masked · 1 noted");
    }
    // A file about one row leaves the decisions about the others.
    let one = workdir.write("one.jsonl", format!("{}\n{{\"row\": 2, \"action\": \"drop\"}}\n", lines[0]));
    browser.choose_file("#import-file", &one);
    wait_for(&mut browser, "at('decided').textContent === '2 dropped · 1 masked · 1 noted · not exported'");
    assert_eq!(browser.eval("at('message').textContent"), "Imported decisions about 1 row; those about 2 other rows stay.");
    browser.press(&["u"]);
    assert_eq!(browser.eval("at('decided').textContent"), "1 dropped · 1 kept · 1 masked · 1 noted · not exported");
    browser.press(&["e"]);
    wait_for(&mut browser, "at('decided').textContent === '1 dropped · 1 kept · 1 masked · 1 noted'");
    assert_eq!(browser.complaints(), [""; 0]);

    // Leaving the page with decisions that were not exported asks for confirmation.
    browser.press(&["x"]);
    let asked = browser.eval("window.dispatchEvent(new Event('beforeunload', { cancelable: true }))");
    assert_eq!(asked, false, "leaving was not prevented");
}

#[track_caller]
#[test]
fn a_selection_over_turns_masks_each_of_them() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let [asked, more] = ["a", "b"].map(|text| json!({ "role": "user", "content": text }));
    let answers = ["First.", "Second."].map(|text| json!({ "role": "assistant", "content": text }));
    let row = json!({ "messages": [asked, answers[0], more, answers[1]] });
    browser.open(&scored(&workdir, "run", &[row]));
    browser.eval("ready.then((page) => { window.page = page; })");
    browser.eval("page.anchor = 1, page.token = page.run.logprob.length - 1");
    browser.press(&["m"]);
    let masks = "page.decisions.of(0).masks.map(({ turn, begin, end }) => [turn, begin, end === Infinity ? 'all' : end])";
    // The first token is not selected.
    assert_eq!(browser.eval(masks), json!([[1, 1, 6], [3, 0, 7]]));
    // The ends of the turns are selected, too, and have no text.
    let said = browser.eval("at('message').textContent");
    assert!(said.as_str().unwrap().contains("belongs to the chat template"), "{said}");
    browser.press(&["u"]);
    assert_eq!(browser.eval(masks), json!([]));
    // What is masked in part is masked as a whole first.
    browser.press(&["m", "t"]);
    assert_eq!(browser.eval(masks), json!([[1, 0, "all"], [3, 0, "all"]]));
    browser.press(&["t"]);
    assert_eq!(browser.eval(masks), json!([]));
    assert_eq!(browser.complaints(), [""; 0]);
}

fn wait_for(browser: &mut Browser, condition: &str) {
    let began = Instant::now();
    while browser.eval(condition) != true {
        assert!(began.elapsed() < Duration::from_secs(10), "never: {condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The selected token stays in view, however many turns of whatever height precede it: when the page opens, from row to row, from token to token, and
/// back.
#[test]
fn the_chosen_token_is_in_sight() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let rows: Vec<Value> = (0..8)
        .map(|i| {
            // Many turns with short answers, and few with long ones, within which the token stands far down.
            let (n_turns, more) = if i % 2 == 0 { (20 + 2 * i, 0) } else { (5, 66) };
            let turns = (0..n_turns).flat_map(|turn| {
                // Each line feed is a line: turns of one line and of forty.
                let question = format!("{turn}?{}", "\na".repeat((turn * 7 + i) % 40));
                [
                    json!({ "role": "user", "content": question }),
                    json!({ "role": "assistant", "content": format!("It is {turn}.{}", " abcdefgh".repeat(more)) }),
                ]
            });
            json!({ "messages": turns.collect::<Vec<_>>() })
        })
        .collect();
    let page = scored(&workdir, "run", &rows);
    // A row of many turns is drawn turn by turn: where the token is in the end counts, and that it stays there.
    let where_it_is = "(async () => { \
        const frame = () => new Promise(requestAnimationFrame); \
        const place = () => { const token = document.querySelector('.token.current')?.getBoundingClientRect(), turns = at('turns').getBoundingClientRect(); \
          return token && { above: Math.max(turns.top - token.top, 0), below: Math.max(token.bottom - turns.bottom, 0), \
            scrolled: at('turns').scrollTop, height: at('turns').scrollHeight, turn: page.run.turn[page.token] }; }; \
        const isThere = (found) => found && !found.above && !found.below; \
        for (const began = performance.now(); !isThere(place()) && performance.now() - began < 3000; ) await frame(); \
        for (let i = 0; i < 3; i++) await frame(); \
        return place() ?? 'no token'; })()";
    browser.open(&page);
    browser.eval("ready.then((page) => { window.page = page; })");
    assert_eq!(browser.eval("page.rows.length"), rows.len());
    let (mut out_of_sight, mut scrolled, mut n) = (Vec::new(), 0, 0);
    let mut look = |browser: &mut Browser, after: &str| {
        let found = browser.eval(where_it_is);
        assert!(found["height"].as_f64().unwrap() > 1500.0, "{found}");
        scrolled += u32::from(found["scrolled"].as_f64().unwrap() > 1000.0);
        n += 1;
        if found["above"] != 0 || found["below"] != 0 {
            out_of_sight.push(format!("{after}: {found}"));
        }
    };
    look(&mut browser, "opened");
    for row in 0..rows.len() {
        for key in ["]", "]", "]", "[", "h", "j"] {
            browser.press(&[key]);
            look(&mut browser, &format!("row {row}, {key}"));
        }
    }
    browser.press(&["Home"]);
    look(&mut browser, "Home");
    // Tokens far below were among them.
    assert!(scrolled * 4 > n, "{scrolled} of {n}");
    assert_eq!(out_of_sight, [""; 0]);
    // The list of keys begins at its beginning, though the button that closes it stands at its end.
    browser.press(&["?"]);
    let help = browser.eval("[at('help').open, at('help').scrollTop, at('help').scrollHeight > at('help').clientHeight]");
    assert_eq!(help, json!([true, 0, true]));
    assert_eq!(browser.complaints(), [""; 0]);
}

/// A step costs the same in a row of any length: only the previously and the newly selected token are repainted.
#[test]
fn a_step_paints_two_tokens() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let page = scored(&workdir, "run", &[row("How?", &"The quick brown fox jumps. ".repeat(200))]);
    browser.open(&page);
    // A row that long is drawn in slices.
    let drawn = browser.eval(
        "ready.then(async (page) => { window.page = page; \
           for (let i = 0; i < 200 && page.spans.size < page.run.supervised[0]; i++) await new Promise((resolve) => setTimeout(resolve, 20)); \
           return page.spans.size; })",
    );
    assert!(drawn.as_u64().unwrap() > 3500, "{drawn}");
    // Away from either end.
    browser.press(&["h", "h", "l"]);
    browser.eval(
        "window.painted = new Set(); new MutationObserver((seen) => seen.forEach(({ target }) => painted.add(target))) \
           .observe(at('turns'), { attributes: true, attributeFilter: ['class'], subtree: true });",
    );
    let painted = |browser: &mut Browser, keys: &[&str]| {
        browser.press(keys);
        let look = "new Promise((resolve) => setTimeout(() => { const n = painted.size; painted.clear(); \
            resolve([n, document.querySelectorAll('.token.current').length, document.querySelectorAll('.token.chosen').length, \
              document.querySelectorAll('.token[tabindex=\"0\"]').length]); }, 50))";
        browser.eval(look)
    };
    painted(&mut browser, &[]);
    assert_eq!(painted(&mut browser, &["l"]), json!([2, 1, 0, 1]), "a step: the token before, and the one now");
    assert_eq!(painted(&mut browser, &["h"]), json!([2, 1, 0, 1]));
    // A selection of two, and back.
    assert_eq!(painted(&mut browser, &["L"]), json!([2, 1, 1, 1]));
    assert_eq!(painted(&mut browser, &["Escape"]), json!([2, 1, 0, 1]));
    // Under another measure all of them are painted.
    let all = painted(&mut browser, &["3"]);
    assert!(all[0] == drawn && all[1] == 1, "{all}");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// A third of a screen, or a phone: the list shows text, the row has the width, and nothing lies beside the window.
#[test]
fn a_narrow_window_has_room_for_the_text() {
    let workdir = Workdir::new();
    let page = scored(&workdir, "run", &plain_rows(30));
    for (width, height) in [(800, 900), (420, 860)] {
        let Some(mut browser) = Browser::start(width, height) else { return };
        browser.open(&page);
        let found = browser.eval(
            "(() => { const box = (name) => document.querySelector(name).getBoundingClientRect(); \
               const last = [...document.querySelectorAll('#list .line:not([hidden]) > *:last-child')].map((cell) => cell.getBoundingClientRect().right); \
               return { window: innerWidth, snippet: box('#list .line .snippet').width, lines: box('#list').height / 19, \
                 text: box('.turn .text').width, reader: box('#turns').height, details: box('#details').width, \
                 right: Math.max(box('nav').right, box('#list').right, box('#turns').right, box('aside').right, ...last) }; })()",
        );
        let n = |key: &str| found[key].as_f64().unwrap();
        assert!(n("window") <= f64::from(width) && n("right") <= n("window") + 1.0, "{found}");
        assert!(n("snippet") >= 80.0 && n("lines") > 6.0, "{found}");
        assert!(n("text") > 0.6 * n("window") && n("reader") > 150.0 && n("details") > 200.0, "{found}");
        if let Ok(folder) = std::env::var("DIAGNOSE_SCREENSHOTS") {
            browser.screenshot(&Path::new(&folder).join(format!("narrow-{width}.png")));
        }
        assert_eq!(browser.complaints(), [""; 0]);
    }
}

#[test]
fn filters_and_the_brush_leave_the_rows_that_they_ask_for() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    // Of few tokens each, so that the rows differ in what they hold.
    let mut rows: Vec<Value> = (0..40).map(|i| row(&format!("Question {i}?"), &i.to_string())).collect();
    rows[7]["source"] = json!("other");
    let page = scored(&workdir, "run", &rows);
    browser.open(&page);
    browser.eval("ready.then((page) => { window.page = page; })");
    let shown = |browser: &mut Browser| browser.eval("page.rows.map((row) => page.run.row[row]).sort((a, b) => a - b)");
    assert_eq!(shown(&mut browser).as_array().unwrap().len(), 40);

    // Text and id, by the keyboard.
    browser.press(&["/"]);
    browser.press(&["i", "d", " ", "o", "f", " ", "q", "u", "e", "s", "t", "i", "o", "n", " ", "3", "?"]);
    assert_eq!(shown(&mut browser), json!([3]));
    assert_eq!(browser.eval("at('shown').textContent"), "1 of 40 rows");
    browser.press(&["Escape", "c"]);
    browser.eval("at('source').value = [...at('source').options].find((option) => option.text === 'other').value, at('source').dispatchEvent(new Event('change'))");
    assert_eq!(shown(&mut browser), json!([7]));
    browser.press(&["c"]);

    // A quadrant: the rows that have a token of it, and those tokens are marked.
    let expected = "[...new Set([...page.run.quadrant.keys()].filter((token) => page.run.quadrant[token] === 0).map((token) => page.run.row[page.run.rowOfToken[token]]))].sort((a, b) => a - b)";
    browser.eval("document.querySelector('#quadrants .q0').click()");
    let expected = browser.eval(expected);
    let found = shown(&mut browser);
    assert!(!found.as_array().unwrap().is_empty());
    assert_eq!(found, expected);
    assert_eq!(browser.eval("[...document.querySelectorAll('.token')].every((span) => span.classList.contains('matched') === span.classList.contains('q0'))"), true);
    browser.press(&["c"]);

    // The brush: by the mouse, a rectangle from the left edge to just beyond the least probable token of all.
    let place = browser.eval(
        "(() => { const box = at('density').getBoundingClientRect(); \
          const least = Math.exp(page.run.logprob.reduce((a, b) => Math.min(a, b))); \
          const along = (logit(least) - X_RANGE[0]) / (X_RANGE[1] - X_RANGE[0]); \
          return [box.left, box.top, box.height, box.left + FRAME.left + along * (box.width - FRAME.left - FRAME.right), least]; })()",
    );
    let [left, top, height, x, least] = [0, 1, 2, 3, 4].map(|i| place[i].as_f64().unwrap());
    browser.drag((left + 20.0, top + 2.0), (x + 1.0, top + 0.8 * height));
    let asked = browser.eval("[page.filters.p, page.filters.entropy]");
    assert!(asked[0][1].as_f64().unwrap() < 1.0 && asked[1][0].as_f64().unwrap() > 0.0, "{asked}");
    let expected = browser.eval(
        "[...new Set([...page.run.logprob.keys()].filter((token) => { const p = Math.exp(page.run.logprob[token]), h = page.run.entropy[token], f = page.filters; return p >= f.p[0] && p <= f.p[1] && h >= f.entropy[0] && h <= f.entropy[1]; }).map((token) => page.run.row[page.run.rowOfToken[token]]))].sort((a, b) => a - b)",
    );
    let found = shown(&mut browser);
    let is_some = |rows: &Value| (1..40).contains(&rows.as_array().unwrap().len());
    assert!(is_some(&found), "{found}");
    assert_eq!(found, expected);
    // By the fields: the rows of the least probable token alone.
    browser.press(&["c"]);
    assert_eq!(shown(&mut browser).as_array().unwrap().len(), 40);
    browser.eval(&format!("at('p-to').value = '{}', at('p-to').dispatchEvent(new Event('change'))", least * 1.000_001));
    let found = shown(&mut browser);
    assert!(is_some(&found), "{found}");
    let least_row = browser
        .eval("page.run.row[page.run.rowOfToken[page.run.logprob.indexOf(page.run.logprob.reduce((a, b) => Math.min(a, b)))]]");
    assert!(found.as_array().unwrap().contains(&least_row), "{found}");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn hostile_rows_run_nothing_and_show_as_text() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let hostile = [
        "<script>window.hit=1</script>",
        "</script><script>window.hit=1</script>",
        "</SCRIPT ><script>hit=1//",
        "<!--<script>",
        "-->",
        "<img src=x onerror=window.hit=1>",
        "<svg onload=window.hit=1>",
        "<svg><script>window.hit=1</script></svg>",
        "<body onload=window.hit=1>",
        "<a href=\"javascript:window.hit=1\">a</a>",
        "\" onmouseover=\"window.hit=1",
        "' autofocus onfocus='window.hit=1",
        "<iframe srcdoc=\"<script>parent.hit=1</script>\"></iframe>",
        "<style>*{display:none}</style>",
        "<base href=\"http://localhost/\">",
        "<meta http-equiv=refresh content=\"0;url=http://localhost/\">",
        "<link rel=stylesheet href=http://localhost/a.css>",
        "<template><script>window.hit=1</script></template>",
        "</style></title></textarea></noscript>",
        "{{script}} {{data}} ${window.hit=1} `${window.hit=1}`",
        "]]></script>",
        "\u{2028}window.hit=1\u{2029}",
        "\u{202e}tiurf\u{202c} \u{2066}a\u{2069} \u{200f}b",
        "nul \0 bell \u{7} escape \u{1b}[31m",
        "\u{feff}zero\u{200b}width\u{200d}\u{ad}",
        "parts: 👩🏽\u{200d}🔬 é 中文 \u{301}\u{301}\u{301}",
        "\\u003cscript\\u003e &lt;script&gt; &#60;script&#62;",
        "__proto__ constructor toString",
        "\r\n\t\u{b}\u{c}\u{85}\u{a0}\u{3000}",
        "\u{e0001}\u{e0041}\u{fff9}\u{ffff}",
    ];
    let mut rows: Vec<Value> = hostile.iter().map(|text| row(text, text)).collect();
    for (row, text) in rows.iter_mut().zip(hostile) {
        row["source"] = json!(text);
    }
    let page = scored(&workdir, "run", &rows);
    browser.open(&page);
    browser.eval("ready.then((page) => { window.page = page; })");
    browser.eval("at('order').value = 'file', at('order').dispatchEvent(new Event('change'))");
    let n_elements = browser.eval("document.querySelectorAll('script, iframe, svg, img, link, base, object, embed').length");
    assert_eq!(n_elements, 1, "the page's own script is the only one");
    for (i, text) in hostile.iter().enumerate() {
        assert_eq!(browser.eval("page.run.row[page.row]"), i);
        // The prompt is shown in one piece: its signs are read back as what they stand for.
        let read = browser.eval(
            "(() => { const back = new Map([...Object.entries(NAMES)].map(([code, name]) => [name, String.fromCodePoint(code)])); \
              let text = ''; \
              for (const node of document.querySelector('.turn.unlearnt > .text').childNodes) { \
                const name = node.textContent; \
                if (node.nodeType === 3) text += node.previousSibling?.textContent === '⏎' ? name.slice(1) : name; \
                else text += back.get(name) ?? String.fromCodePoint(parseInt(name.slice(2), 16)); \
              } \
              return text; })()",
        );
        assert_eq!(read.as_str(), Some(*text), "row {i}");
        // Of the learnt text every byte belongs to a token that is shown.
        let covered = browser.eval(
            "[...document.querySelectorAll('.turn:not(.unlearnt) .token')].reduce((n, span) => n + page.run.end[span.dataset.token] - page.run.begin[span.dataset.token], 0)",
        );
        assert_eq!(covered, text.len(), "row {i}");
        // No control character and no bidirectional one reaches the page, but for the line feeds that are shown beside their signs.
        assert_eq!(
            browser.eval(
                "/[\\u0000-\\u0009\\u000b-\\u001f\\u2028-\\u202e\\u2066-\\u2069\\u200e\\u200f]/.test(document.body.textContent)"
            ),
            false,
            "row {i}"
        );
        browser.press(&["l", "l", "m", "x", "j"]);
    }
    // Over the whole list and every measure, and out again.
    browser.press(&["1", "2", "3", "4", "5", "6", "w"]);
    assert_eq!(browser.eval("window.hit ?? null"), Value::Null);
    assert_eq!(browser.eval("location.protocol"), "file:");
    assert_eq!(browser.complaints(), [""; 0]);
    // The policy holds: what a hole would need is refused.
    let refused = browser.eval(
        "new Promise((resolve) => { addEventListener('securitypolicyviolation', () => resolve('refused')); \
          const script = document.createElement('script'); script.textContent = 'window.hit = 1'; document.body.append(script); \
          setTimeout(() => resolve(window.hit ?? 'nothing happened'), 1000); })",
    );
    assert_eq!(refused, "refused");
}

#[test]
fn a_hundred_thousand_tokens_open_in_two_seconds_and_scroll_smoothly() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let rows: Vec<Value> = (0..1300)
        .map(|i| row(&format!("Question {i}?"), &format!("{i} {}", "The quick brown fox jumps over it. ".repeat(2))))
        .collect();
    let page = scored(&workdir, "run", &rows);
    let before = browser.processor_ms();
    let by_clock = browser.open(&page);
    let milliseconds = browser.processor_ms() - before;
    browser.eval("ready.then((page) => { window.page = page; })");
    let tokens = browser.eval("page.run.logprob.length").as_u64().unwrap();
    let bytes = std::fs::metadata(&page).unwrap().len();
    println!("{tokens} tokens, {bytes} bytes: open after {milliseconds:.0} ms of work, {by_clock:.0} ms by the clock");
    assert!(tokens > 95_000 && bytes < 6_000_000);
    assert!(milliseconds < 2000.0, "{milliseconds} ms");
    // A step of a third of a screen costs less than a long task (50 ms) at the 95th percentile. All threads of the page count, and
    // processor time comes in steps of 10 ms.
    let mut steps: Vec<f64> = (0..100)
        .map(|_| {
            let before = browser.processor_ms();
            browser.eval(
                "new Promise((resolve) => { at('list').scrollTop += 260; \
                  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(resolve))); })",
            );
            browser.processor_ms() - before
        })
        .collect();
    steps.sort_by(f64::total_cmp);
    println!("a step of scrolling: median {:.0} ms, 95 % {:.0} ms, most {:.0} ms", steps[50], steps[95], steps[99]);
    assert!(steps[95] < 50.0, "{steps:?}");
    assert!(browser.eval("at('list').scrollTop").as_f64().unwrap() > 20_000.0);
    assert!(browser.eval("document.querySelectorAll('#list .line').length").as_u64().unwrap() < 120, "the list is not virtual");
    // Of a larger run the page shows a part, and says so.
    workdir.run(&["view", "run", "--tokens", "20000", "--out", "part.html"]).ok();
    browser.open(&workdir.path("part.html"));
    let about = browser.eval("at('about').textContent");
    assert!(about.as_str().unwrap().contains("random ones, of 1,300"), "{about}");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_planted_conflicts_of_the_demo_lie_on_the_first_two_screens() {
    if default_model().is_none() {
        return;
    }
    let workdir = Workdir::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo.jsonl");
    let ran = workdir.run(&[demo.to_str().unwrap(), "--out", "demo"]).ok();
    assert!(ran.stdout.contains("demo/view.html"), "{}", ran.stdout);
    let text = std::fs::read_to_string(&demo).unwrap();
    for (width, height) in [(1920, 1080), (1440, 900)] {
        let Some(mut browser) = Browser::start(width, height) else { return };
        browser.open(&workdir.path("demo/view.html"));
        let rows = browser.eval(
            "ready.then((page) => { window.page = page; const n = 2 * Math.floor(at('list').clientHeight / LINE_HEIGHT); return page.rows.slice(0, n).map((row) => page.run.row[row]); })",
        );
        let rows: Vec<u64> = rows.as_array().unwrap().iter().map(|row| row.as_u64().unwrap()).collect();
        let planted = |i: usize, line: &str| {
            let spans = serde_json::from_str::<Value>(line).unwrap()["planted"].as_array().map_or(0, Vec::len);
            (rows.contains(&(i as u64)), spans)
        };
        let spans: Vec<(bool, usize)> = text.lines().enumerate().map(|(i, line)| planted(i, line)).collect();
        let found: usize = spans.iter().filter(|(is_shown, _)| *is_shown).map(|(_, n)| n).sum();
        let all: usize = spans.iter().map(|(_, n)| n).sum();
        println!("{width} x {height}: {found} of {all} planted conflicts in the first {} rows of {}", rows.len(), spans.len());
        assert!(all == 55 && found * 10 >= all * 9);
        if let Some(folder) = std::env::var_os("DIAGNOSE_SCREENSHOTS").map(PathBuf::from) {
            for scheme in ["light", "dark"] {
                browser.scheme(scheme);
                browser.screenshot(&folder.join(format!("view-{width}-{scheme}.png")));
                browser.press(&["g"]);
                browser.screenshot(&folder.join(format!("groups-{width}-{scheme}.png")));
                browser.press(&["Escape"]);
            }
        }
        assert_eq!(browser.complaints(), [""; 0]);
    }
}

/// The page shows and filters by the kinds in the tables of the run.
#[test]
fn kinds_and_groups_of_conflicts_filter_the_rows() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let rows: Vec<Value> = (0..40).map(|i| row(&format!("Question {i}?"), &format!("It is {i}, of {}.", i * i))).collect();
    let page = scored(&workdir, "run", &rows);
    browser.open(&page);
    browser.eval("ready.then((page) => { window.page = page; })");
    let summary: Value = serde_json::from_slice(&std::fs::read(workdir.path("run/summary.json")).unwrap()).unwrap();
    let sums = summary["kinds"]["kinds"].as_array().unwrap();
    assert!(sums.len() > 1, "{sums:?}");
    for sums in sums {
        let kind = &sums["kind"];
        browser
            .eval(&format!("at('kind').value = page.run.kinds.indexOf({kind}), at('kind').dispatchEvent(new Event('change'))"));
        let shown = browser.eval("[at('kind').selectedOptions[0].text, page.rows.length]");
        assert_eq!(shown, json!([format!("{} ({})", kind.as_str().unwrap(), sums["tokens"]), sums["rows"]]));
        assert_eq!(browser.eval("page.passes.reduce((n, passes) => n + passes, 0)"), sums["tokens"]);
        // The line shows a token of the kind, and its numbers say why it is one.
        assert_eq!(&browser.eval("page.run.kinds[page.run.kind[page.token]]"), kind);
        let details = browser.eval("at('details').textContent");
        assert!(details.as_str().unwrap().contains(&format!("kind{}: ", kind.as_str().unwrap())), "{details}");
    }
    // By the dialog: the first kind, and the first group, whose counts are those of the report.
    browser.press(&["c", "g"]);
    browser.eval("document.querySelectorAll('#groups table')[0].querySelector('button').click()");
    assert_eq!(browser.eval("[page.run.kinds[page.filters.kind], page.rows.length]"), json!([sums[0]["kind"], sums[0]["rows"]]));
    browser.press(&["g"]);
    browser.eval("document.querySelectorAll('#groups table')[1].querySelector('button').click()");
    let group = &summary["kinds"]["groups"][0];
    assert_eq!(browser.eval("page.passes.reduce((n, passes) => n + passes, 0)"), group["count"]);
    assert_eq!(browser.eval("page.run.words[page.run.word[page.token]]"), group["token"]);
    assert_eq!(browser.eval("at('group').hidden"), false);
    browser.eval("at('group').click()");
    assert_eq!(browser.eval("[at('group').hidden, page.rows.length]"), json!([true, 40]));
    // A row whose conflicts are all of form comes after every row with another one.
    let classes = browser.eval(
        "page.rows.map((row) => { const [begin, end] = tokensOfRow(page.run, row); let most = 0; \
          for (let token = begin; token < end; token++) most = Math.max(most, weightinessOf(page.run, token)); return most; })",
    );
    let classes: Vec<u64> = classes.as_array().unwrap().iter().map(|class| class.as_u64().unwrap()).collect();
    assert!(classes.is_sorted_by(|a, b| a >= b), "{classes:?}");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// Reasoning and calls stand beside the content: they are shown with their words, and it is said what can be masked there.
#[test]
fn reasoning_and_calls_are_read_like_text() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("template.jinja", tiny_model::THINKS_AND_CALLS);
    let call = json!([{ "type": "function", "function": { "name": "heat", "arguments": { "city": "Rome" } } }]);
    let turn = json!({ "role": "assistant", "content": "Yes", "reasoning_content": "Hmm, so.", "tool_calls": call });
    workdir.write("rows.jsonl", format!("{}\n", json!({ "messages": [{ "role": "user", "content": "Hot?" }, turn] })));
    let args = ["rows.jsonl", "--model", "tiny.gguf", "--chat-template", "template.jinja", "--out", "run"];
    workdir.run(&[&args[..], &["--thresholds", "p=0.999,H=99"]].concat()).ok();
    browser.open(&workdir.path("run/view.html"));
    browser.eval("ready.then((page) => { window.page = page; })");
    // The token of a word, among all that are learnt.
    let text = "<think>\nHmm, so.\n</think>\n\nYes\n<tool_call>\n{\"name\": \"heat\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call><|im_end|>";
    let learnt = "Array.from(page.run.word, (word) => page.run.words[word])";
    assert_eq!(browser.eval(&format!("{learnt}.join('')")), text);
    let mut at = |begin: usize| {
        let token = browser.eval(&format!("{{ let [token, length] = [0, 0]; for (const word of {learnt}) {{ if (length === {begin}) break; length += word.length; token++; }} token }}"));
        let token = token.as_u64().unwrap();
        browser.eval(&format!("page.token = {token}, page.anchor = -1, drawDetails(at('details'), page, page.run, {token})"));
        let found = browser.eval(&format!(
            "[page.run.part[{token}], snippet(page.run, 0, {token}).textContent, page.spans.get({token}).classList.contains('template'), \
             at('details').textContent]"
        ));
        browser.press(&["m"]);
        let said = browser.eval("at('message').textContent");
        (found[0].clone(), found[1].clone(), found[2].clone(), found[3].to_string(), said.as_str().unwrap().to_owned())
    };
    let reasoning = at(text.find("so.").unwrap());
    assert_eq!((&reasoning.0, &reasoning.2), (&json!(1), &json!(false)));
    assert!(reasoning.1.as_str().unwrap().contains("Hmm, so."), "{}", reasoning.1);
    assert!(reasoning.3.contains("part ofthe reasoning") && reasoning.4.contains("Reasoning stands beside"), "{reasoning:?}");
    let city = at(text.find("Rome").unwrap());
    assert_eq!((&city.0, &city.2), (&json!(2), &json!(false)));
    assert!(city.3.contains("part ofa tool call") && city.4.contains("mask the whole turn (t), or drop the row (x)"), "{city:?}");
    let mark = at(text.find("{\"name").unwrap());
    assert_eq!((&mark.0, &mark.2), (&json!(3), &json!(true)));
    assert!(mark.4.contains("belongs to the chat template"), "{mark:?}");
    assert_eq!(browser.eval("page.decisions.of(0).masks.length"), 0);
    // The whole turn can be masked, and the token with it.
    browser.press(&["t"]);
    assert_eq!(browser.eval("[page.decisions.of(0).masks.length, isMasked(page, page.run.part.indexOf(2))]"), json!([1, true]));
    // Both are searched, beside the contents.
    for (text, found) in [("hmm, SO", 1), ("\"city\": \"rome\"", 1), ("hot?", 1), ("yes", 1), ("im_start", 0), ("paris", 0)] {
        let search = format!("page.filters.text = {}, chosenRows(page).length", json!(text));
        assert_eq!(browser.eval(&search), found, "{text}");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

/// The page of a part of a run reads the run's tables, and then shows what the page of the whole run shows.
#[test]
fn a_larger_run_is_read_from_its_tables() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let rows: Vec<Value> = (0..400)
        .map(|i| row(&format!("Question {i}?"), &format!("{i} é {}", "The quick fox is it. ".repeat(1 + i % 7))))
        .collect();
    let whole = scored(&workdir, "run", &rows);
    scored(&workdir, "other", &rows[..5]);
    workdir.run(&["view", "run", "--tokens", "3000", "--out", "part.html"]).ok();
    let columns = [
        "row",
        "tokenFrom",
        "supervised",
        "conflicts",
        "turn",
        "pos",
        "begin",
        "end",
        "logprob",
        "entropy",
        "entropyTopk",
        "rank",
        "tail",
        "varentropy",
        "grad",
        "topLogprob",
        "quadrant",
        "kind",
        "ids",
        "line",
        "tokens",
        "truncated",
    ];
    // Numbers are places in lists that may be in another order: what they stand for is compared.
    let read = format!(
        "(() => {{ const run = page.run; const hash = (values) => {{ let hash = 0; for (const value of values) {{ const text = String(value); \
            for (let i = 0; i < text.length; i++) hash = (Math.imul(hash, 31) + text.charCodeAt(i)) | 0; }} return [values.length, hash]; }}; \
          const found = {{}}; for (const name of {}) found[name] = hash(Array.from(run[name])); \
          for (const [name, list] of [['word', 'words'], ['top', 'words'], ['source', 'sources'], ['path', 'paths'], ['evidence', 'evidences']]) \
            found[name] = hash(Array.from(run[name], (place, i) => (name === 'evidence' && !run.kind[i] ? '' : run[list][place]))); \
          found.order = hash(page.rows.map((row) => run.row[row])); return found; }})()",
        json!(columns)
    );
    browser.open(&whole);
    browser.eval("ready.then((page) => { window.page = page; })");
    let expected = browser.eval(&read);
    let text_of_first = browser.eval("at('turns').textContent");
    assert_eq!(browser.eval("at('more').hidden"), true);

    browser.open(&workdir.path("part.html"));
    browser.eval("ready.then((page) => { window.page = page; })");
    let n_part = browser.eval("page.run.row.length").as_u64().unwrap();
    assert!(n_part < 200 && browser.eval("at('more').hidden") == false);
    let first = browser.eval("page.run.row[page.row]");
    browser.press(&["x"]);
    // What is not this run's is refused, and so is half a table; nothing changes.
    let table = |name: &str| workdir.path(&format!("run/{name}.parquet"));
    let half = std::fs::read(table("tokens")).unwrap();
    let half = workdir.write("half.parquet", &half[..half.len() / 2]);
    let mut damaged = std::fs::read(table("tokens")).unwrap();
    (4..400).for_each(|at| damaged[at] ^= 0x5a);
    let damaged = workdir.write("damaged.parquet", damaged);
    // The same run under other thresholds has other quadrants and conflicts.
    std::fs::create_dir(workdir.path("sorted")).unwrap();
    for entry in std::fs::read_dir(workdir.path("run")).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), workdir.path("sorted").join(entry.file_name())).unwrap();
    }
    workdir.run(&["sorted", "--thresholds", "tail"]).ok();
    for (file, message) in [
        (workdir.path("other/tokens.parquet"), "tokens.parquet belongs to another run"),
        (workdir.path("sorted/tokens.parquet"), "tokens.parquet is sorted by different thresholds"),
        (workdir.path("sorted/conflicts.parquet"), "conflicts.parquet is sorted by different thresholds"),
        (table("alternatives"), "alternatives.parquet is the table alternatives; expected"),
        (table("pairs"), "pairs.parquet is the table pairs; expected"),
        (table("rows"), "tokens.parquet is missing"),
        (half, "half.parquet: it is not a complete Parquet table"),
        (damaged, "damaged.parquet: "),
        (workdir.path("run.jsonl"), "run.jsonl: it is not a complete Parquet table"),
    ] {
        browser.eval("at('message').textContent = ''");
        browser.choose_file("#tables-file", &file);
        wait_for(&mut browser, &format!("at('message').textContent.includes({})", json!(message)));
        assert_eq!(browser.eval("page.run.row.length"), n_part, "{message}");
    }
    // The tokens alone: all rows, without what the other tables know.
    browser.choose_file("#tables-file", &table("tokens"));
    wait_for(&mut browser, "page.run.isWhole === true && at('message').textContent.startsWith('All 400 rows')");
    let found = browser.eval(&read);
    for name in ["row", "logprob", "rank", "word", "top", "quadrant", "conflicts", "source"] {
        assert_eq!(found[name], expected[name], "{name}");
    }
    // Every conflict has a kind; of the rows that the page did not hold it is said that nobody knows which.
    let kinds = "(() => { const { kind, kinds, quadrant } = page.run; const found = { none: 0, known: 0, unknown: 0 }; \
                 quadrant.forEach((quadrant, token) => { if (quadrant === 0) \
                   found[kinds[kind[token]] === '' ? 'none' : kinds[kind[token]] === 'unknown' ? 'unknown' : 'known']++; }); return found; })()";
    let count = browser.eval(kinds);
    assert!(count["none"] == 0 && count["unknown"].as_u64() > Some(0) && count["known"].as_u64() > Some(0), "{count}");
    assert!(browser.eval("at('about').textContent").as_str().unwrap().contains("kinds of conflict unknown"));
    assert_eq!(browser.eval("at('decided').textContent"), "1 dropped · not exported");

    // All three: what the page of the whole run has.
    // A page with decisions that are not exported would ask before it is left.
    browser.download_to(&workdir.path(""));
    browser.press(&["e"]);
    browser.open(&workdir.path("part.html"));
    browser.eval("ready.then((page) => { window.page = page; })");
    let tables = ["conflicts", "tokens", "rows"].map(table);
    browser.choose_files("#tables-file", &tables.each_ref().map(PathBuf::as_path));
    wait_for(&mut browser, "page.run.isWhole === true && at('message').textContent.startsWith('All 400 rows')");
    let found = browser.eval(&read);
    for (name, expected) in expected.as_object().unwrap() {
        assert_eq!(&found[name], expected, "{name}");
    }
    assert_eq!(browser.eval(kinds)["unknown"], 0);
    assert_eq!(browser.eval("at('more').hidden"), true);
    // The first row was in the page, with its text; one that was not shows its tokens.
    assert_eq!(browser.eval("page.run.row[page.row]"), first);
    assert_eq!(browser.eval("at('turns').textContent"), text_of_first);
    browser.eval("at('order').value = 'file', at('order').dispatchEvent(new Event('change'))");
    let without_text =
        browser.eval("page.rows.find((row) => page.run.turnFrom[row] === page.run.turnFrom[row + 1])").as_u64().unwrap();
    for _ in 0..without_text {
        browser.press(&["j"]);
    }
    assert_eq!(browser.eval("page.row"), without_text);
    let text = browser.eval("document.querySelector('.turn .text').textContent");
    assert!(text.as_str().unwrap().starts_with(&without_text.to_string()), "{text}");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn two_runs_stand_side_by_side_with_what_changed() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let rows = plain_rows(12);
    scored(&workdir, "before", &rows);
    tiny_model::write_noised(&workdir.path("noised.gguf"), 0.2);
    workdir.run(&["before.jsonl", "--model", "noised.gguf", "--out", "after", "--thresholds", THRESHOLDS]).ok();
    let ran = workdir.run(&["view", "before", "after"]).ok();
    assert_eq!(ran.stdout.trim(), "after/compared.html");
    browser.open(&workdir.path("after/compared.html"));
    browser.eval("ready.then((page) => { window.page = page; })");
    // Every token is the same in both, and the change is that of the tables.
    let compared = browser.eval("({ shared: page.changes.shared, tokens: page.run.logprob.length, mean: page.changes.mean })");
    assert_eq!(compared["shared"], compared["tokens"]);
    let mean = |run: &str| {
        let summary: Value =
            serde_json::from_slice(&std::fs::read(workdir.path(&format!("{run}/summary.json"))).unwrap()).unwrap();
        -summary["overall"]["loss"].as_f64().unwrap() / summary["overall"]["tokens"].as_f64().unwrap()
    };
    let expected = mean("after") - mean("before");
    assert!((compared["mean"].as_f64().unwrap() - expected).abs() < 1e-6, "{compared}, expected {expected}");
    assert_eq!(browser.eval("document.querySelectorAll('.sides article').length"), 4);
    // What was lost and what was gained are the comparison's.
    let diff = workdir.run(&["diff", "before", "after", "--json", "--out", "diff"]).ok().json();
    let learnt = &diff["learnt"];
    assert_eq!(browser.eval("page.changes.movedCounts.slice(1)"), json!([learnt["lost"], learnt["gained"]]));
    // The weights of the tiny model are random, so that it knows nothing to lose: the rule by hand, and the filter.
    let moved = browser.eval(
        "((side) => [[0.8, 7, 0.1, 8], [0.8, 7, 0.1, 7], [0.4, 7, 0.1, 8], [0.1, 8, 0.9, 7], [0.4, 7, 0.9, 7]].map(([p, top, q, topAfter]) => \
          movedOf(side(p, top), 0, side(q, topAfter), 0)))((p, top) => ({ logprob: [Math.log(p)], word: [7], top: [top] }))",
    );
    assert_eq!(moved, json!([1, 0, 0, 2, 0]));
    browser.eval("page.changes.moved[5] = 1, page.filters.moved = 1, page.filters.turn = 1");
    assert_eq!(browser.eval("passingTokens(page.run, page.filters, page.changes).indexOf(1)"), 5);
    browser.press(&["c"]);
    let verdicts = browser.eval("page.rows.map((row) => page.changes.textOfRow(row).split(':')[0])");
    let count = |verdict: &str| verdicts.as_array().unwrap().iter().filter(|own| *own == verdict).count();
    for verdict in ["helped", "wasted", "hurt"] {
        assert_eq!(learnt["rows"][verdict], count(verdict), "{verdict}");
    }
    assert!(workdir.path("diff/compared.html").exists() && workdir.path("diff/learnt.parquet").exists());
    browser.press(&["7"]);
    assert!(browser.eval("document.querySelectorAll('.token.better, .token.worse').length").as_u64().unwrap() > 0);
    // The same answer to another question, and an answer that is another one from its second word on.
    let mut others = rows.clone();
    others[0] = row("Another question?", rows[0]["messages"][1]["content"].as_str().unwrap());
    others[0]["id"] = rows[0]["id"].clone();
    others[1] = row("Question 1?", "Answer 2, of about seventy letters: none");
    scored(&workdir, "others", &others);
    workdir.run(&["view", "before", "others"]).ok();
    browser.open(&workdir.path("others/compared.html"));
    browser.eval("ready.then((page) => { window.page = page; })");
    let partners = |row: u32| {
        let of = browser.eval(&format!(
            "((row) => {{ const [begin, end] = tokensOfRow(page.run, row); const own = Array.from({{ length: end - begin }}, (_, i) => begin + i); \
              const paired = own.filter((token) => page.changes.tokenOf[token] >= 0); \
              return [own.length, paired.length, Math.max(0, ...paired.map((token) => page.run.begin[token]))]; }})(page.run.row.indexOf({row}))"
        ));
        serde_json::from_value::<[usize; 3]>(of).unwrap()
    };
    let [asked, answered, same] = [0, 1, 2].map(partners);
    assert!(asked[0] > 0 && asked[1] == 0, "{asked:?}");
    assert!(answered[1] > 0 && answered[2] <= "Answer ".len(), "{answered:?}");
    assert!(same[0] > 0 && same[1] == same[0], "{same:?}");
    // The head says of both what they are made of.
    let about = |browser: &mut Browser| browser.eval("at('about').title").as_str().unwrap().to_owned();
    let head = about(&mut browser);
    assert!(
        head.contains("on before.jsonl") && head.contains("on others.jsonl") && !head.contains("different thresholds"),
        "{head}"
    );
    workdir.run(&["others", "--thresholds", "p=0.004,H=5"]).ok();
    workdir.run(&["view", "before", "others"]).ok();
    browser.open(&workdir.path("others/compared.html"));
    browser.eval("ready");
    let head = about(&mut browser);
    assert!(head.contains("p=0.004,H=5.5") && head.contains("p=0.004,H=5:") && head.contains("different thresholds"), "{head}");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// What a template prints beside the contents tells rows apart, too: with the data, up to where they part, and without them as a whole.
#[test]
fn rows_of_two_runs_part_at_their_reasoning_calls_and_tools() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("template.jinja", tiny_model::THINKS_AND_CALLS);
    let row = |idx: usize, reasoning: &str, city: &str, last: &str| {
        let call = json!([{ "type": "function", "function": { "name": "heat", "arguments": { "city": city } } }]);
        json!({ "id": idx.to_string(), "messages": [
            { "role": "user", "content": "Hot?" },
            { "role": "assistant", "content": "First.", "reasoning_content": reasoning, "tool_calls": call },
            { "role": "user", "content": "And now?" },
            { "role": "assistant", "content": last },
        ] })
    };
    let scored = |run: &str, rows: [Value; 5]| {
        workdir.write(&format!("{run}.jsonl"), rows.map(|row| format!("{row}\n")).concat());
        let data = format!("{run}.jsonl");
        workdir.run(&[&data, "--model", "tiny.gguf", "--chat-template", "template.jinja", "--out", run]).ok();
    };
    let plain = |idx| row(idx, "So.", "Rome", "Last.");
    // Other reasoning, another argument of a call, and reasoning of the same length before another answer; tools, which this template does not print.
    let mut with_tools = plain(4);
    with_tools["tools"] = json!([{ "type": "function", "function": { "name": "heat", "parameters": {} } }]);
    scored("before", [0, 1, 2, 3, 4].map(plain));
    let others =
        [plain(0), row(1, "No.", "Rome", "Last."), row(2, "So.", "Oslo", "Last."), row(3, "No.", "Rome", "Lasting"), with_tools];
    scored("after", others);
    let partners = |browser: &mut Browser| {
        workdir.run(&["view", "before", "after"]).ok();
        browser.open(&workdir.path("after/compared.html"));
        let of = browser.eval(
            "ready.then((page) => Array.from(page.run.row, (_, row) => { const [begin, end] = tokensOfRow(page.run, row); \
             let n = 0; for (let token = begin; token < end; token++) if (page.changes.tokenOf[token] >= 0) n++; return [n, end - begin]; }))",
        );
        assert_eq!(browser.complaints(), [""; 0]);
        serde_json::from_value::<[[usize; 2]; 5]>(of).unwrap()
    };
    let counts = |found: [[usize; 2]; 5]| {
        found.map(|[paired, of]| {
            if paired == of {
                "all"
            } else if paired == 0 {
                "none"
            } else {
                "some"
            }
        })
    };
    assert_eq!(counts(partners(&mut browser)), ["all", "none", "none", "none", "all"]);
    // Rows without a partner come last.
    let ordered = browser.eval(
        "ready.then((page) => { page.changes.ofRow.set([0.1, NaN, -0.3, NaN, 0.2]); page.order = 'change'; return chosenRows(page); })",
    );
    assert_eq!(ordered, json!([2, 4, 0, 1, 3]));
    std::fs::remove_file(workdir.path("before.jsonl")).unwrap();
    std::fs::remove_file(workdir.path("after/compared.html")).unwrap();
    assert_eq!(counts(partners(&mut browser)), ["all", "none", "none", "none", "all"]);

    // A page of a part of the rows says so, and has room for the text of the list in windows of all widths.
    workdir.run(&["view", "before", "after", "--tokens", "150"]).ok();
    for width in [901, 1000, 1150, 1151, 1300] {
        let Some(mut browser) = Browser::start(width, 800) else { return };
        browser.open(&workdir.path("after/compared.html"));
        browser.eval("ready.then((page) => { window.page = page; })");
        let found = browser.eval(
            "(() => { const line = document.querySelector('#list .line:not([hidden])'); \
               return { snippet: line.querySelector('.snippet').getBoundingClientRect().width, \
                 beyond: line.lastChild.getBoundingClientRect().right - at('list').getBoundingClientRect().right, \
                 more: at('more').hidden ? '' : at('more-text').textContent }; })()",
        );
        assert!(found["snippet"].as_f64() >= Some(80.0) && found["beyond"].as_f64() <= Some(0.0), "{width}: {found}");
        assert!(found["more"].as_str().unwrap().contains(" of 5 rows. For more rows, write the page again"), "{found}");
        assert!(browser.eval("at('about').title").as_str().unwrap().contains("in common on this page"));
        // The second run shows the rows of the first.
        assert_eq!(
            browser.eval("[page.after.row.length === page.run.row.length, [...page.changes.rowOf].includes(-1)]"),
            json!([true, false])
        );
    }
}

/// Where a template prints the reasoning of the last turn alone, what comes behind an answer changes what the model has read before it.
#[test]
fn an_answer_is_another_one_in_a_longer_conversation_that_leaves_out_its_reasoning() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let template =
        tiny_model::THINKS_AND_CALLS.replace("{% if m.reasoning_content %}", "{% if loop.last and m.reasoning_content %}");
    assert_ne!(template, tiny_model::THINKS_AND_CALLS);
    workdir.write("template.jinja", template);
    let scored = |run: &str, is_longer: bool| {
        let row = |reasoning: Value| {
            let user = |text: &str| json!({ "role": "user", "content": text });
            let first = json!({ "role": "assistant", "content": "First.", "reasoning_content": reasoning });
            let more = [user("And now?"), json!({ "role": "assistant", "content": "Second." })];
            let turns = [user("Hot?"), first].into_iter().chain(more.into_iter().filter(|_| is_longer));
            format!("{}\n", json!({ "messages": turns.collect::<Vec<_>>() }))
        };
        let data = workdir.write(&format!("{run}.jsonl"), [row(json!("So.")), row(Value::Null)].concat());
        let data = data.display().to_string();
        workdir.run(&[&data, "--model", "tiny.gguf", "--chat-template", "template.jinja", "--out", run]).ok();
    };
    scored("before", false);
    scored("after", true);
    workdir.run(&["view", "before", "after"]).ok();
    browser.open(&workdir.path("after/compared.html"));
    let paired = browser.eval(
        "ready.then((page) => Array.from(page.run.row, (_, row) => { const [begin, end] = tokensOfRow(page.run, row); \
         let n = 0; for (let token = begin; token < end; token++) if (page.changes.tokenOf[token] >= 0) n++; return n; }))",
    );
    // Six bytes and the end of the turn; none of the answer that stands behind its reasoning in the shorter conversation alone.
    assert_eq!(paired, json!([0, 7]));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_page_weighs_tokens_as_the_program_does() {
    use diagnose::diagnosis::gate::{Token, Weight};
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let page = scored(&workdir, "run", &plain_rows(3));
    browser.open(&page);
    browser.eval("ready.then((page) => { window.page = page; })");
    let gates = browser.eval("page.run.gates");
    let mut weights: Vec<Weight> =
        gates.as_array().unwrap().iter().map(|gate| serde_json::from_value(gate["weight"].clone()).unwrap()).collect();
    assert!(weights.len() > 8);
    // Those that no preview has, too: whatever the program can say of a weight, the page can read.
    weights.extend([Weight::Ratio { most: 1.28 }, Weight::Power { scale: 0.9986, exponent: 2.5 }]);
    let columns = ["logprob", "entropy", "entropyTopk", "grad"];
    let tokens =
        browser.eval(&format!("Array.from({{ length: 60 }}, (_, i) => {}.map((name) => page.run[name][i]))", json!(columns)));
    for weight in weights {
        let expression = format!("Array.from({{ length: 60 }}, (_, i) => weightOf({}, page.run, i))", json!(weight));
        let found = browser.eval(&expression);
        for (i, token) in tokens.as_array().unwrap().iter().enumerate() {
            let [logprob, entropy, entropy_topk, grad] = [0, 1, 2, 3].map(|k| token[k].as_f64().unwrap() as f32);
            let expected = weight.of(&Token { logprob, entropy, entropy_topk, grad, earlier: logprob });
            let found = found[i].as_f64().unwrap() as f32;
            // The program counts in f32, the page in f64.
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs().max(1e-3),
                "{weight:?} of token {i}: {found}, expected {expected}"
            );
        }
    }
}

/// Every colour under text and every ink on the page's grounds: a contrast of 4.5 to 1 or more, light and dark.
#[test]
fn all_text_stands_out_from_its_ground() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    let page = scored(&workdir, "run", &plain_rows(3));
    browser.open(&page);
    let contrasts = "(() => { \
        const channel = (value) => { value /= 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; }; \
        const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true }); \
        const luminance = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data; return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); }; \
        const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((a, b) => b - a); return (x + 0.05) / (y + 0.05); }; \
        const probe = document.body.appendChild(document.createElement('span')); \
        const computed = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; }; \
        const found = {}; \
        for (const ground of ['--paper', '--panel', '--chosen']) for (const ink of ['--ink', '--soft', '--warn', '--conflict']) found[`${ink} on ${ground}`] = contrast(computed(ink), computed(ground)); \
        for (const ink of ['--uncertain', '--confident', '--hesitant']) found[`${ink} on paper`] = contrast(computed(ink), computed('--paper')); \
        const paper = computed('--paper'); probe.style.color = ''; \
        for (let step = 1; step <= STEPS; step++) { probe.className = `h${step}`; const style = getComputedStyle(probe); found[probe.className] = contrast(style.color, style.backgroundColor); } \
        at('turns').classList.add('by-quadrant'); at('turns').append(probe); \
        for (let q = 0; q < 4; q++) { probe.className = `token q${q}`; const style = getComputedStyle(probe); found[probe.className] = contrast(style.color, q === 2 ? paper : style.backgroundColor); } \
        probe.remove(); return found; })()";
    let mut too_faint = String::new();
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        let found = browser.eval(contrasts);
        for (what, contrast) in found.as_object().unwrap() {
            if contrast.as_f64().unwrap() < 4.5 {
                let _ = writeln!(too_faint, "{scheme}: {what} {contrast}");
            }
        }
        assert!(found.as_object().unwrap().len() > 25);
    }
    assert_eq!(too_faint, "");
}

#[test]
fn without_the_data_the_page_shows_the_tokens_alone() {
    let Some(mut browser) = Browser::start(1440, 900) else { return };
    let workdir = Workdir::new();
    scored(&workdir, "run", &plain_rows(3));
    std::fs::remove_file(workdir.path("run.jsonl")).unwrap();
    // The page that scoring has left would stay, since it has them.
    std::fs::remove_file(workdir.path("run/view.html")).unwrap();
    let ran = workdir.run(&["view", "run"]).ok();
    assert!(ran.stderr.contains("tokens alone") && ran.stderr.contains("run.jsonl"), "{}", ran.stderr);
    browser.open(&workdir.path("run/view.html"));
    let text = browser.eval("document.querySelector('.turn .text').textContent");
    assert!(text.as_str().unwrap().starts_with("Answer "), "{text}");
    assert!(browser.eval("at('about').textContent").as_str().unwrap().contains("tokens alone"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn what_is_no_run_is_told_what_it_is() {
    let workdir = Workdir::new();
    std::fs::create_dir(workdir.path("empty")).unwrap();
    let ran = workdir.run(&["view", "empty"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("holds no finished run"), "{}", ran.stderr);
}

#[test]
fn a_page_replaces_nothing_but_pages() {
    let workdir = Workdir::new();
    scored(&workdir, "run", &plain_rows(3));
    for file in ["run.jsonl", "run/tokens.parquet", "run/run.json", "tiny.gguf"] {
        let before = std::fs::read(workdir.path(file)).unwrap();
        let ran = workdir.run(&["view", "run", "--out", file]);
        assert!(ran.code == Some(2) && ran.stderr.contains("not a page of this program"), "{file}: {}", ran.stderr);
        assert!(std::fs::read(workdir.path(file)).unwrap() == before, "{file} has changed");
    }
    workdir.write("empty.html", "");
    for file in ["new.html", "new.html", "run/view.html", "empty.html"] {
        workdir.run(&["view", "run", "--out", file]).ok();
    }
}
