//! What is seen of clips that are followed: a bar each, a line a state, or JSON.

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;

use super::follow::{Ending, News};
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
    form: Form,
}

enum Form {
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
        Self::new(ids, ladder, Form::Bars(bars))
    }

    /// A line for each state on stdout, troubles on stderr.
    pub(super) fn lines(ids: &[JobId], ladder: Ladder) -> Self {
        Self::new(ids, ladder, Form::Lines)
    }

    /// A JSON object for each state and each end on stdout, troubles on stderr.
    pub(super) fn json(ids: &[JobId], ladder: Ladder) -> Self {
        Self::new(ids, ladder, Form::Json)
    }

    fn new(ids: &[JobId], ladder: Ladder, form: Form) -> Self {
        Self { ids: ids.to_vec(), ladder, since: clock::now(), form }
    }

    /// Shows news of the nth clip.
    pub(super) fn show(&mut self, nth: usize, news: &News) -> std::io::Result<()> {
        match &self.form {
            Form::Bars(bars) => {
                self.draw(&bars[nth], news);
                Ok(())
            }
            Form::Lines => self.line(&self.ids[nth], news),
            Form::Json => self.object(&self.ids[nth], news),
        }
    }

    fn draw(&self, bar: &ProgressBar, news: &News) {
        match news {
            News::State(rung, _) => {
                bar.set_position(steps_to(&self.ladder, *rung));
                bar.set_message(self.ladder.name(*rung).to_owned());
            }
            News::Trouble(why, pause) => bar.set_message(trouble(why, *pause)),
            News::Ended(Ending::Reached) => bar.finish(),
            News::Ended(Ending::Failed) => bar.abandon(),
            News::Ended(Ending::TimedOut) => {
                bar.abandon_with_message(format!("{}, out of time", bar.message()))
            }
            News::Ended(Ending::Refused(why)) => bar.abandon_with_message(escape(why).into_owned()),
        }
    }

    fn line(&self, id: &JobId, news: &News) -> std::io::Result<()> {
        let id = shown(id);
        let elapsed = format!("{:7.1}s", self.seconds());
        match news {
            News::State(rung, _) => {
                writeln!(std::io::stdout(), "{elapsed}  {id}  {}", self.ladder.name(*rung))
            }
            News::Ended(Ending::Reached | Ending::Failed) => Ok(()),
            News::Ended(Ending::TimedOut) => complain(&format!("{elapsed}  {id}  out of time")),
            News::Ended(Ending::Refused(why)) => complain(&format!("{elapsed}  {id}  {}", escape(why))),
            News::Trouble(why, pause) => complain(&format!("{elapsed}  {id}  {}", trouble(why, *pause))),
        }
    }

    fn object(&self, id: &JobId, news: &News) -> std::io::Result<()> {
        let object = |status, clip, end, message| Object {
            id: id.as_str(),
            seconds: self.seconds(),
            status,
            clip,
            end,
            message,
        };
        let object = match news {
            News::State(rung, body) => {
                object(Some(self.ladder.name(*rung)), serde_json::from_slice(body).ok(), None, None)
            }
            News::Ended(ending) => {
                let message = if let Ending::Refused(why) = ending { Some(why.as_str()) } else { None };
                object(None, None, Some(word(ending)), message)
            }
            News::Trouble(..) => return self.line(id, news),
        };
        // Newlines in a clip's own bytes would end the line early, and stdout may be a terminal.
        let line = serde_json::to_string(&object)?.replace(['\n', '\r', '\t'], " ");
        writeln!(std::io::stdout(), "{}", escape_json(&line))
    }

    fn seconds(&self) -> f64 {
        let elapsed = clock::now().saturating_duration_since(self.since);
        (elapsed.as_secs_f64() * 10.0).round() / 10.0
    }
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a str,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<&'a RawValue>,
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
