//! What is seen of jobs that are followed: a bar each, a line a state, or JSON.

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;

use super::follow::{Ending, Update};
use super::steps_to;
use crate::clock;
use crate::core::job::JobId;
use crate::core::route::{Ladder, Rung};
use crate::printable::{escape, escape_json};

/// How often the elapsed time is drawn anew.
const TICK: Duration = Duration::from_millis(200);

/// One way to look at them.
pub(super) struct View {
    ids: Vec<JobId>,
    ladder: Ladder,
    since: Instant,
    form: ViewStyle,
}

enum ViewStyle {
    Bars(Vec<ProgressBar>),
    Lines,
    Json,
}

impl View {
    /// Bars, drawn on a terminal that is stdout.
    pub(super) fn bars(ids: &[JobId], ladder: Ladder, goal: Rung) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let style = ProgressStyle::with_template("{prefix}  {bar:20.cyan/dim}  {elapsed:>4}  {msg}")
            .expect("the template is well formed")
            .progress_chars("━━─");
        let bar = |id: &JobId| {
            let bar = all.add(ProgressBar::new(steps_to(&ladder, goal)));
            bar.set_style(style.clone());
            bar.set_prefix(shown(id));
            bar.set_message("asking");
            bar.enable_steady_tick(TICK);
            bar
        };
        let bars = ids.iter().map(bar).collect();
        Self::new(ids, ladder, ViewStyle::Bars(bars))
    }

    /// A line for each state on stdout, troubles on stderr.
    pub(super) fn lines(ids: &[JobId], ladder: Ladder) -> Self {
        Self::new(ids, ladder, ViewStyle::Lines)
    }

    /// A JSON object for each state and each end on stdout, troubles on stderr.
    pub(super) fn json(ids: &[JobId], ladder: Ladder) -> Self {
        Self::new(ids, ladder, ViewStyle::Json)
    }

    fn new(ids: &[JobId], ladder: Ladder, form: ViewStyle) -> Self {
        Self { ids: ids.to_vec(), ladder, since: clock::now(), form }
    }

    /// Shows news of the nth job.
    pub(super) fn show(&mut self, nth: usize, news: &Update) -> std::io::Result<()> {
        match &self.form {
            ViewStyle::Bars(bars) => {
                self.draw(&bars[nth], news);
                Ok(())
            }
            ViewStyle::Lines => self.line(&self.ids[nth], news),
            ViewStyle::Json => self.object(&self.ids[nth], news),
        }
    }

    fn draw(&self, bar: &ProgressBar, news: &Update) {
        match news {
            Update::State(rung, _) => {
                bar.set_position(steps_to(&self.ladder, *rung));
                bar.set_message(self.ladder.name(*rung).to_owned());
            }
            Update::Trouble(why, pause) => bar.set_message(trouble(why, *pause)),
            Update::Ended(Ending::Reached) => bar.finish(),
            Update::Ended(Ending::Failed) => bar.abandon(),
            Update::Ended(Ending::TimedOut) => {
                bar.abandon_with_message(format!("{}, out of time", bar.message()))
            }
            Update::Ended(Ending::Refused(why)) => bar.abandon_with_message(escape(why).into_owned()),
        }
    }

    fn line(&self, id: &JobId, news: &Update) -> std::io::Result<()> {
        let id = shown(id);
        let elapsed = format!("{:7.1}s", self.seconds());
        match news {
            Update::State(rung, _) => {
                writeln!(std::io::stdout(), "{elapsed}  {id}  {}", self.ladder.name(*rung))
            }
            Update::Ended(Ending::Reached | Ending::Failed) => Ok(()),
            Update::Ended(Ending::TimedOut) => complain(&format!("{elapsed}  {id}  out of time")),
            Update::Ended(Ending::Refused(why)) => complain(&format!("{elapsed}  {id}  {}", escape(why))),
            Update::Trouble(why, pause) => complain(&format!("{elapsed}  {id}  {}", trouble(why, *pause))),
        }
    }

    fn object(&self, id: &JobId, news: &Update) -> std::io::Result<()> {
        let object = |status, job, end, message| JsonLine {
            id: id.as_str(),
            seconds: self.seconds(),
            status,
            job,
            end,
            message,
        };
        let object = match news {
            Update::State(rung, body) => {
                object(Some(self.ladder.name(*rung)), serde_json::from_slice(body).ok(), None, None)
            }
            Update::Ended(ending) => {
                let message = if let Ending::Refused(why) = ending { Some(why.as_str()) } else { None };
                object(None, None, Some(word(ending)), message)
            }
            Update::Trouble(..) => return self.line(id, news),
        };
        // Newlines in a job's own bytes would end the line early, and stdout may be a terminal.
        let line = serde_json::to_string(&object)?.replace(['\n', '\r', '\t'], " ");
        writeln!(std::io::stdout(), "{}", escape_json(&line))
    }

    fn seconds(&self) -> f64 {
        let elapsed = clock::now().saturating_duration_since(self.since);
        (elapsed.as_secs_f64() * 10.0).round() / 10.0
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    id: &'a str,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

fn word(ending: &Ending) -> &'static str {
    match ending {
        Ending::Reached => "reached",
        Ending::Failed => "failed",
        Ending::TimedOut => "timed-out",
        Ending::Refused(_) => "refused",
    }
}

/// Writes to stderr. Following goes on where nobody takes it.
fn complain(line: &str) -> std::io::Result<()> {
    let _ = writeln!(std::io::stderr(), "{line}");
    Ok(())
}

fn trouble(why: &str, pause: Duration) -> String {
    let why = escape(why);
    format!("{why}; asking again in {:.1} s", pause.as_secs_f64())
}

/// An id cannot move the cursor.
fn shown(id: &JobId) -> String {
    id.as_str().escape_debug().to_string()
}
