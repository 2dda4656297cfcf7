//! Output of `watch`: a bar for each job, a line for each state, or JSON.

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ratatui::crossterm::terminal;
use serde::Serialize;
use serde_json::value::RawValue;

use super::follow::{Ending, Update};
use super::job_result::JobResult;
use super::steps_to;
use crate::clock;
use crate::core::job::JobId;
use crate::core::route::{Ladder, Rung};
use crate::printable::{escape, escape_json};

/// Interval at which bars show the elapsed time.
const TICK: Duration = Duration::from_millis(200);

pub(super) struct View {
    ids: Vec<JobId>,
    ladder: Ladder,
    since: Instant,
    style: ViewStyle,
    /// Of each job, once it has one.
    results: Vec<JobResult>,
}

/// Columns below which ids and bars are short.
const NARROW: u16 = 90;

/// Characters of a short id.
const SHORT_ID: usize = 8;

enum ViewStyle {
    Bars {
        bars: Vec<ProgressBar>,
        all: MultiProgress,
        /// Failures that are printed above the bars, each once: most do not fit beside a bar.
        printed: Vec<String>,
    },
    Lines,
    Json,
}

impl View {
    /// Returns a view with a bar for each job; stdout must be a terminal.
    pub(super) fn bars(ids: &[JobId], ladder: Ladder, goal: Rung) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let is_narrow = terminal::size().is_ok_and(|(columns, _)| columns < NARROW);
        let template = match is_narrow {
            true => "{prefix}  {bar:8.cyan/dim}  {elapsed:>4}  {wide_msg}",
            false => "{prefix}  {bar:20.cyan/dim}  {elapsed:>4}  {wide_msg}",
        };
        let style =
            ProgressStyle::with_template(template).expect("the template is valid").progress_chars("━━─");
        let names = if is_narrow { short_ids(ids) } else { ids.iter().map(escape_id).collect() };
        let bar = |name: &String| {
            let bar = all.add(ProgressBar::new(steps_to(&ladder, goal)));
            bar.set_style(style.clone());
            bar.set_prefix(name.clone());
            bar.set_message("requesting");
            bar.enable_steady_tick(TICK);
            bar
        };
        let bars = names.iter().map(bar).collect();
        Self::new(ids, ladder, ViewStyle::Bars { bars, all, printed: Vec::new() })
    }

    /// Returns a view with a line for each state on stdout and failures on stderr.
    pub(super) fn lines(ids: &[JobId], ladder: Ladder) -> Self {
        Self::new(ids, ladder, ViewStyle::Lines)
    }

    /// Returns a view with a JSON object for each state and each ending on stdout and retries on stderr.
    pub(super) fn json(ids: &[JobId], ladder: Ladder) -> Self {
        Self::new(ids, ladder, ViewStyle::Json)
    }

    fn new(ids: &[JobId], ladder: Ladder, style: ViewStyle) -> Self {
        let results = ids.iter().map(|_| JobResult::default()).collect();
        Self { ids: ids.to_vec(), ladder, since: clock::now(), style, results }
    }

    /// Shows an update of the nth job.
    pub(super) fn show(&mut self, nth: usize, update: &Update) -> std::io::Result<()> {
        if let Update::State(rung, body) = update
            && self.ladder.is_terminal(*rung)
        {
            self.results[nth] = JobResult::read(body);
        }
        if let ViewStyle::Bars { all, printed, .. } = &mut self.style
            && let Update::Retrying(reason, _) | Update::Ended(Ending::Rejected(reason)) = update
            && !printed.contains(reason)
        {
            all.println(escape(reason))?;
            printed.push(reason.clone());
        }
        match &self.style {
            ViewStyle::Bars { bars, .. } => {
                self.draw(&bars[nth], update);
                Ok(())
            }
            ViewStyle::Lines => self.line(&self.ids[nth], &self.results[nth], update),
            ViewStyle::Json => self.object(&self.ids[nth], update),
        }
    }

    /// Shows the results of finished jobs below their bars, with whole addresses to click or to copy.
    pub(super) fn finish(&self) -> std::io::Result<()> {
        if !matches!(self.style, ViewStyle::Bars { .. }) {
            return Ok(());
        }
        let mut out = std::io::stdout();
        for result in self.results.iter().filter(|result| !result.is_empty()) {
            writeln!(out, "\n{}", result.name())?;
            if let Some(url) = &result.url {
                writeln!(out, "{url}")?;
            }
        }
        Ok(())
    }

    fn draw(&self, bar: &ProgressBar, update: &Update) {
        match update {
            Update::State(rung, _) => {
                bar.set_position(steps_to(&self.ladder, *rung));
                bar.set_message(self.ladder.name(*rung).to_owned());
            }
            Update::Retrying(_, pause) => {
                bar.set_message(format!("no answer, retrying in {:.1} s", pause.as_secs_f64()))
            }
            Update::Ended(Ending::Reached) => bar.finish(),
            Update::Ended(Ending::Failed) => bar.abandon(),
            Update::Ended(Ending::TimedOut) => {
                bar.abandon_with_message(format!("{}, out of time", bar.message()))
            }
            Update::Ended(Ending::Rejected(_)) => bar.abandon_with_message("failed, see above"),
        }
    }

    fn line(&self, id: &JobId, result: &JobResult, update: &Update) -> std::io::Result<()> {
        let id = escape_id(id);
        let elapsed = format!("{:7.1}s", self.seconds());
        match update {
            Update::State(rung, _) => {
                let mut line = format!("{elapsed}  {id}  {}", self.ladder.name(*rung));
                for part in [&result.title, &result.duration, &result.url].into_iter().flatten() {
                    line.push_str("  ");
                    line.push_str(part);
                }
                writeln!(std::io::stdout(), "{line}")
            }
            Update::Ended(Ending::Reached | Ending::Failed) => Ok(()),
            Update::Ended(Ending::TimedOut) => write_stderr(&format!("{elapsed}  {id}  out of time")),
            Update::Ended(Ending::Rejected(reason)) => {
                write_stderr(&format!("{elapsed}  {id}  {}", escape(reason)))
            }
            Update::Retrying(reason, pause) => {
                write_stderr(&format!("{elapsed}  {id}  {}", retry_text(reason, *pause)))
            }
        }
    }

    fn object(&self, id: &JobId, update: &Update) -> std::io::Result<()> {
        let object = |status, job, end, message| JsonLine {
            id: id.as_str(),
            seconds: self.seconds(),
            status,
            job,
            end,
            message,
        };
        let object = match update {
            Update::State(rung, body) => {
                object(Some(self.ladder.name(*rung)), serde_json::from_slice(body).ok(), None, None)
            }
            Update::Ended(ending) => {
                let message =
                    if let Ending::Rejected(reason) = ending { Some(reason.as_str()) } else { None };
                object(None, None, Some(word(ending)), message)
            }
            Update::Retrying(..) => return self.line(id, &JobResult::default(), update),
        };
        // A newline in the job's own bytes would end the line. stdout may be a terminal.
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
        Ending::Rejected(_) => "refused",
    }
}

/// Writes to stderr and ignores errors: a closed stderr does not end the command.
fn write_stderr(line: &str) -> std::io::Result<()> {
    let _ = writeln!(std::io::stderr(), "{line}");
    Ok(())
}

fn retry_text(reason: &str, pause: Duration) -> String {
    format!("{}; retrying in {:.1} s", escape(reason), pause.as_secs_f64())
}

/// Returns the first characters of the ids if these differ, else the whole ids.
fn short_ids(ids: &[JobId]) -> Vec<String> {
    let whole: Vec<String> = ids.iter().map(escape_id).collect();
    let short = |id: &String| match id.chars().count() > SHORT_ID {
        true => format!("{}\u{2026}", id.chars().take(SHORT_ID).collect::<String>()),
        false => id.clone(),
    };
    let names: Vec<String> = whole.iter().map(short).collect();
    let is_unique = (1..names.len()).all(|nth| !names[..nth].contains(&names[nth]));
    if is_unique { names } else { whole }
}

/// Escapes characters that a terminal would act on.
fn escape_id(id: &JobId) -> String {
    id.as_str().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_where_they_still_differ() {
        let names =
            |ids: &[&str]| short_ids(&ids.iter().map(|id| JobId::new(id).unwrap()).collect::<Vec<_>>());
        assert_eq!(names(&["0123456789", "a"]), ["01234567\u{2026}", "a"]);
        assert_eq!(names(&["0123456789", "01234567ab"]), ["0123456789", "01234567ab"]);
    }
}
