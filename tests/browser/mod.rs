//! Drives a real headless browser by the Chrome DevTools Protocol over a pair of pipes: JSON messages, each ended by a NUL.
//!
//! Chromium reads them from file descriptor 3 and writes to 4; a shell puts its own input and output there. So nothing is needed beside the
//! browser: no driver program, no port, no other language. `.ci/run` installs Debian's `chromium`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::workdir::absent;

pub(crate) struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Value,
    last_id: u64,
    /// Events since the page was opened.
    events: Vec<Value>,
    /// Holds the profile.
    _folder: tempfile::TempDir,
}

impl Browser {
    /// A browser with one empty page of this size; prints why the test is skipped where there is none.
    pub(crate) fn start(width: u32, height: u32) -> Option<Browser> {
        let Some(program) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|program| is_there(program))
        else {
            absent("browser", "there is no chromium; `apt-get install chromium` installs it");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null", "sh", program])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Browser { child, input, output, session: Value::Null, last_id: 0, events: Vec::new(), _folder: folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Network", "Log", "DOM"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", size);
        Some(browser)
    }

    /// Opens a file, waits until the page has its data, and gives the milliseconds from the navigation to there.
    pub(crate) fn open(&mut self, file: &Path) -> f64 {
        let url = format!("file://{}", file.display());
        self.events.clear();
        self.call("Page.navigate", json!({ "url": url }));
        let began = Instant::now();
        while self.events.iter().all(|event| event["method"] != "Page.loadEventFired") {
            assert!(began.elapsed() < Duration::from_secs(60), "the page does not load");
            self.read_event();
        }
        self.eval("ready.then(() => new Promise(requestAnimationFrame)).then(() => performance.now())").as_f64().unwrap()
    }

    /// The value of an expression in the page, awaited.
    #[track_caller]
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Presses keys one after the other as a person does: single characters, or names such as `Enter`.
    pub(crate) fn press(&mut self, keys: &[&str]) {
        for key in keys {
            let text = match *key {
                "Enter" => "\r",
                key if key.chars().count() == 1 => key,
                _ => "",
            };
            let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
            let code = match *key {
                "Enter" => 13,
                "Escape" => 27,
                "ArrowDown" => 40,
                "ArrowRight" => 39,
                _ => 0,
            };
            let event = |kind: &str| json!({ "type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code });
            self.call("Input.dispatchKeyEvent", event(down));
            let mut up = event("keyUp");
            up["text"] = json!("");
            self.call("Input.dispatchKeyEvent", up);
        }
    }

    pub(crate) fn drag(&mut self, from: (f64, f64), to: (f64, f64)) {
        for (kind, (x, y)) in [("mousePressed", from), ("mouseMoved", to), ("mouseReleased", to)] {
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Milliseconds of processor time that pages have taken so far, on all threads; unlike time by the clock it is the same on a busy machine.
    pub(crate) fn processor_ms(&mut self) -> f64 {
        let info = self.call("SystemInfo.getProcessInfo", json!({}));
        let processes = info["processInfo"].as_array().unwrap().iter().filter(|process| process["type"] == "renderer");
        processes.map(|process| process["cpuTime"].as_f64().unwrap()).sum::<f64>() * 1e3
    }

    pub(crate) fn scheme(&mut self, name: &str) {
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": name }] }));
    }

    /// Downloads go to this folder.
    pub(crate) fn download_to(&mut self, folder: &Path) {
        self.call("Browser.setDownloadBehavior", json!({ "behavior": "allow", "downloadPath": folder }));
    }

    /// Gives a file to an input field.
    pub(crate) fn choose_file(&mut self, selector: &str, file: &Path) {
        self.choose_files(selector, &[file]);
    }

    pub(crate) fn choose_files(&mut self, selector: &str, files: &[&Path]) {
        let document = self.call("DOM.getDocument", json!({}));
        let node = self.call("DOM.querySelector", json!({ "nodeId": document["root"]["nodeId"], "selector": selector }));
        self.call("DOM.setFileInputFiles", json!({ "files": files, "nodeId": node["nodeId"] }));
    }

    pub(crate) fn screenshot(&mut self, file: &Path) {
        let shot = self.call("Page.captureScreenshot", json!({}));
        std::fs::write(file, BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// What went wrong in the page or was asked of a network: exceptions, refusals by the policy, dialogs, requests beside the page itself.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // Whatever has happened by now comes before the answer.
        self.eval("0");
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Page.javascriptDialogOpening") => true,
            Some("Log.entryAdded") => {
                event["params"]["entry"]["level"] == "error" || event["params"]["entry"]["source"] == "security"
            }
            Some("Network.requestWillBeSent") => {
                let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
                !url.starts_with("file:") && !url.starts_with("blob:")
            }
            _ => false,
        };
        self.events.iter().filter(is_complaint).map(Value::to_string).collect()
    }

    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        let is_of_page = !["Browser.", "SystemInfo.", "Target."].iter().any(|domain| method.starts_with(domain));
        if is_of_page {
            message["sessionId"] = self.session.clone();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut answer = self.read();
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    fn read_event(&mut self) {
        let event = self.read();
        self.events.push(event);
    }

    fn read(&mut self) -> Value {
        let mut message = Vec::new();
        self.output.read_until(0, &mut message).unwrap();
        assert_eq!(message.pop(), Some(0), "the browser is gone");
        serde_json::from_slice(&message).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_there(program: &str) -> bool {
    let ran = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}
