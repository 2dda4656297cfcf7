//! A browser that tests drive, through `tests/node/browser.mjs`: a command a line, an answer a line.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::process::within_timeout;

/// Headless Chromium with one page. It is killed when it is dropped.
pub(crate) struct Browser {
    _child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

/// What the page is looked at with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewport {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) is_dark: bool,
}

/// A desk's.
pub(crate) const DESKTOP: Viewport = Viewport { width: 1280, height: 900, is_dark: false };

impl Browser {
    /// Starts it.
    pub(crate) fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let modules = root.join("target/node");
        let is_there = modules.join("node_modules/playwright-core").is_dir();
        assert!(is_there, "what drives the browser is not in {}: run `make tools`", modules.display());
        let mut child = Command::new("node")
            .arg(root.join("tests/node/browser.mjs"))
            .arg(modules)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("`node` cannot be run ({error}): run `make tools`"));
        let from = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { to: child.stdin.take().unwrap(), from, _child: child }
    }

    /// Opens this page afresh, with a name and a password for who asks for them; the status of its answer.
    pub(crate) async fn open(&mut self, url: &str, look: Viewport, login: Option<[&str; 2]>) -> u64 {
        let Viewport { width, height, is_dark } = look;
        let open = json!({
            "do": "open", "url": url, "width": width, "height": height, "dark": is_dark, "login": login,
        });
        self.ask(open).await.as_u64().unwrap()
    }

    /// Looks at the same page in another way.
    pub(crate) async fn set_viewport(&mut self, look: Viewport, is_reduced: bool) {
        let Viewport { width, height, is_dark } = look;
        let look = json!({
            "do": "look", "width": width, "height": height, "dark": is_dark, "reduced": is_reduced,
        });
        self.ask(look).await;
    }

    /// What a piece of script makes of the page.
    pub(crate) async fn eval(&mut self, js: &str) -> Value {
        self.ask(json!({ "do": "eval", "js": js })).await
    }

    /// Waits until the script comes to something true.
    pub(crate) async fn wait_until(&mut self, js: &str) {
        self.ask(json!({ "do": "until", "js": js })).await;
    }

    /// Waits until the text of what the selector finds is this.
    pub(crate) async fn wait_until_text(&mut self, selector: &str, text: &str) {
        let [of, is] = [selector, text].map(|text| json!(text));
        self.wait_until(&format!("document.querySelector({of})?.textContent.trim() === {is}")).await;
    }

    /// The text of what the selector finds.
    pub(crate) async fn text(&mut self, selector: &str) -> String {
        let told =
            self.eval(&format!("document.querySelector({}).textContent.trim()", json!(selector))).await;
        told.as_str().unwrap().to_owned()
    }

    /// Presses a key.
    pub(crate) async fn press(&mut self, key: &str) {
        self.ask(json!({ "do": "press", "key": key })).await;
    }

    /// Moves the mouse over what the selector finds.
    pub(crate) async fn hover(&mut self, selector: &str) {
        self.ask(json!({ "do": "point", "at": selector })).await;
    }

    /// The rules of accessibility that the page breaks, and how many it keeps.
    pub(crate) async fn accessibility(&mut self) -> (Vec<String>, u64) {
        let told = self.ask(json!({ "do": "axe" })).await;
        (texts(&told["broken"]), told["kept"].as_u64().unwrap())
    }

    /// What the page has complained of, and whom else it has asked, since it was opened.
    pub(crate) async fn errors(&mut self) -> Vec<String> {
        texts(&self.ask(json!({ "do": "faults" })).await)
    }

    /// Takes a picture of the whole page, into `target/dashboard/`.
    pub(crate) async fn screenshot(&mut self, name: &str) -> PathBuf {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/dashboard/{name}.png"));
        self.ask(json!({ "do": "shot", "file": file })).await;
        file
    }

    async fn ask(&mut self, command: Value) -> Value {
        let line = format!("{command}\n");
        self.to.write_all(line.as_bytes()).await.expect("the driver reads");
        let answer = within_timeout("the browser", self.from.next_line()).await.unwrap();
        let answer = answer.unwrap_or_else(|| panic!("the driver ended at {command}"));
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        if let Some(error) = answer["error"].as_str() {
            panic!("{command}: {error}");
        }
        answer["value"].take()
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}
