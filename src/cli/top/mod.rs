//! `clipgate top`: the dashboard in a terminal.
//!
//! ```text
//!   keyboard thread ── key ──▶ run ──▶ screen
//!   admin listener ── state, each second ──▲
//! ```
//!
//! | file | content |
//! | --- | --- |
//! | `report` | the documents of the admin listener, and counts per step computed from them |
//! | `screen` | the drawing of a report |

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use self::report::{GatewayReport, HistorySample, Rates};
use self::screen::TopView;
use crate::admin::probe::fetch;
use crate::cli::admin_config::AdminArgs;
use crate::cli::api_key;
use crate::cli::error::{CommandError, UsageError, chain};
use crate::config::Listen;
use crate::secret::Secret;

mod report;
mod screen;

/// Interval between two states, and longest time for one.
const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(3);

/// Size of the one screen that is printed where stdout is not a terminal.
const PRINTED: (u16, u16) = (110, 40);

/// Keys that wait for the screen. The keyboard thread waits while the channel is full.
const PENDING_KEYS: usize = 16;

const HELP: &str = "\
The command reads admin.listen and admin.token from the same file and variables as `serve`. Where stdout is not a terminal \
it prints one screen.

Keys: / filters the jobs, Esc removes the filter, Up and Down scroll, q ends.

Examples:
  clipgate top                              the gateway on this machine
  clipgate top --admin 10.0.0.7:9090 --token env:ADMIN_TOKEN
  clipgate top | head -8                    print the first lines once

Exit code: 0 after q, 1 if stdout is not a terminal and the gateway does not answer, 2 for an invalid command line or \
configuration.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    #[command(flatten)]
    listener: AdminArgs,
    /// Token of the admin listener: env:NAME or file:PATH [default: admin.token]
    #[arg(long, value_name = "SOURCE")]
    pub token: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let source = ReportSource::new(&args)?;
    if !io::stdout().is_terminal() {
        return print_once(&source).await;
    }
    let mut keys = read_keys();
    let mut terminal = ratatui::try_init()?;
    let ended = follow(&source, &mut keys, &mut terminal).await;
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

/// The admin listener of a gateway.
struct ReportSource {
    listen: Listen,
    token: Option<HeaderValue>,
}

impl ReportSource {
    fn new(args: &Args) -> Result<Self, CommandError> {
        let config = args.listener.load()?;
        let token = match &args.token {
            Some(source) => api_key::secret("--token", source)?,
            None => config.admin.token,
        };
        let listen = config.admin.listen.ok_or_else(|| {
            UsageError("there is no admin listener: admin.listen is empty. Use --admin ADDRESS.".to_owned())
        })?;
        Ok(Self { listen, token: token.as_ref().and_then(bearer) })
    }

    async fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, String> {
        let listen = &self.listen;
        let (status, body) =
            match tokio::time::timeout(TIMEOUT, fetch(listen, path, self.token.as_ref())).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(format!("{listen} {}", chain(&error))),
                Err(_) => return Err(format!("{listen} did not respond within {} s", TIMEOUT.as_secs())),
            };
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|_| format!("{listen} is not the admin listener of a gateway")),
            StatusCode::UNAUTHORIZED => {
                Err(format!("{listen} requires its token: use --token env:NAME or file:PATH"))
            }
            status => Err(format!("{listen} answers {status}")),
        }
    }

    /// Requests the counts of the last minutes. Without them the plots begin now.
    async fn rates(&self) -> Rates {
        let history: Vec<HistorySample> = self.get("/api/history").await.unwrap_or_default();
        Rates::new(history)
    }
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

async fn follow(
    source: &ReportSource,
    keys: &mut mpsc::Receiver<KeyEvent>,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), CommandError> {
    let mut view = TopView::new(source.listen.to_string(), source.rates().await);
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        terminal.draw(|frame| screen::draw(frame, &view))?;
        // Cancel safe: a key stays in the channel, and a tick is due until it is taken.
        tokio::select! {
            key = keys.recv() => match key {
                Some(key) if is_end(key, &view) => return Ok(()),
                Some(key) => view.press(key.code),
                None => return Ok(()),
            },
            _ = ticks.tick() => view.update(source.get::<GatewayReport>("/api/state").await),
        }
    }
}

async fn print_once(source: &ReportSource) -> Result<ExitCode, CommandError> {
    let mut view = TopView::new(source.listen.to_string(), source.rates().await);
    view.update(Ok(source.get("/api/state").await?));
    let mut terminal = Terminal::new(TestBackend::new(PRINTED.0, PRINTED.1))?;
    terminal.draw(|frame| screen::draw(frame, &view))?;
    let mut text = String::new();
    for row in terminal.backend().buffer().content().chunks(PRINTED.0.into()) {
        let row: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the keyboard in a thread, which ends with the process: reading blocks.
fn read_keys() -> mpsc::Receiver<KeyEvent> {
    let (sender, receiver) = mpsc::channel(PENDING_KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind != KeyEventKind::Release => key,
                // Draws the screen again.
                Event::Resize(..) => KeyEvent::from(KeyCode::Null),
                _ => continue,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Returns whether the key ends the command. A raw terminal sends Ctrl-C as a key.
fn is_end(key: KeyEvent, view: &TopView) -> bool {
    let is_control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    is_control_c || (key.code == KeyCode::Char('q') && !view.is_typing())
}
