//! A browser that tests drive through `tests/node/browser.mjs`: one command per line, one answer per line.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::process::within_timeout;

/// Headless Chromium with one page. Dropping it kills the process.
pub(crate) struct Browser {
    _child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

/// Size and colour scheme of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewport {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) is_dark: bool,
}

pub(crate) const DESKTOP: Viewport = Viewport { width: 1280, height: 900, is_dark: false };

impl Browser {
    pub(crate) fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let modules = root.join("target/node");
        let is_installed = modules.join("node_modules/playwright-core").is_dir();
        assert!(is_installed, "playwright-core is not in {}: run `make tools`", modules.display());
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

    /// Opens a page in a new context, with user name and password if the server asks for them. Returns the status of
    /// the response.
    pub(crate) async fn open(&mut self, url: &str, viewport: Viewport, login: Option<[&str; 2]>) -> u64 {
        let Viewport { width, height, is_dark } = viewport;
        let open = json!({
            "do": "open", "url": url, "width": width, "height": height, "dark": is_dark, "login": login,
        });
        self.command(open).await.as_u64().unwrap()
    }

    /// Opens a page like [`Self::open`], on a screen with this many pixels in each pixel of the page.
    pub(crate) async fn open_scaled(&mut self, url: &str, viewport: Viewport, scale: u32) {
        let Viewport { width, height, is_dark } = viewport;
        let open = json!({
            "do": "open", "url": url, "width": width, "height": height, "dark": is_dark, "scale": scale,
        });
        self.command(open).await;
    }

    /// Changes the viewport of the open page.
    pub(crate) async fn set_viewport(&mut self, viewport: Viewport, is_reduced: bool) {
        let Viewport { width, height, is_dark } = viewport;
        let command = json!({
            "do": "look", "width": width, "height": height, "dark": is_dark, "reduced": is_reduced,
        });
        self.command(command).await;
    }

    /// Runs a script in the page and returns its value.
    pub(crate) async fn eval(&mut self, js: &str) -> Value {
        self.command(json!({ "do": "eval", "js": js })).await
    }

    /// Waits until the script returns a true value.
    pub(crate) async fn wait_until(&mut self, js: &str) {
        self.command(json!({ "do": "until", "js": js })).await;
    }

    /// Waits until the selected element has this text.
    pub(crate) async fn wait_until_text(&mut self, selector: &str, text: &str) {
        let [selector, text] = [selector, text].map(|text| json!(text));
        self.wait_until(&format!("document.querySelector({selector})?.textContent.trim() === {text}")).await;
    }

    /// Returns the text of the selected element.
    pub(crate) async fn text(&mut self, selector: &str) -> String {
        let text =
            self.eval(&format!("document.querySelector({}).textContent.trim()", json!(selector))).await;
        text.as_str().unwrap().to_owned()
    }

    /// Presses a key.
    pub(crate) async fn press(&mut self, key: &str) {
        self.command(json!({ "do": "press", "key": key })).await;
    }

    /// Moves the mouse over the selected element.
    pub(crate) async fn hover(&mut self, selector: &str) {
        self.command(json!({ "do": "point", "at": selector })).await;
    }

    /// Returns the accessibility rules that the page breaks, and the number of rules that it keeps.
    pub(crate) async fn accessibility(&mut self) -> (Vec<String>, u64) {
        let report = self.command(json!({ "do": "axe" })).await;
        (texts(&report["broken"]), report["kept"].as_u64().unwrap())
    }

    /// Returns the page's errors, and its requests to other hosts, since it was opened.
    pub(crate) async fn errors(&mut self) -> Vec<String> {
        texts(&self.command(json!({ "do": "faults" })).await)
    }

    /// Saves a screenshot of the whole page in `target/dashboard/`.
    pub(crate) async fn screenshot(&mut self, name: &str) -> PathBuf {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/dashboard/{name}.png"));
        self.command(json!({ "do": "shot", "file": file })).await;
        file
    }

    async fn command(&mut self, command: Value) -> Value {
        let line = format!("{command}\n");
        self.to.write_all(line.as_bytes()).await.expect("the driver reads its input");
        let answer = within_timeout("the browser's answer", self.from.next_line()).await.unwrap();
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
