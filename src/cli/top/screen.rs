//! The screen of `top`: tiles, two plots, jobs, and tables of counts.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::report::{GatewayReport, Rated, Rates, ReportedCluster, ReportedJob, seconds_between};
use crate::printable::escape;

/// Columns from which tables stand beside the jobs.
const WIDE: u16 = 100;

/// Rows from which plots are shown.
const TALL: u16 = 22;

/// The newest report, the counts before it, and the choices of the reader.
pub(super) struct TopView {
    listen: String,
    rates: Rates,
    report: Option<GatewayReport>,
    /// Reason why the report is not new.
    failure: Option<String>,
    filter: String,
    is_typing: bool,
    scrolled: usize,
}

impl TopView {
    pub(super) fn new(listen: String, rates: Rates) -> Self {
        let (report, failure, filter) = (None, None, String::new());
        Self { listen, rates, report, failure, filter, is_typing: false, scrolled: 0 }
    }

    pub(super) fn update(&mut self, report: Result<GatewayReport, String>) {
        match report {
            Ok(report) => {
                self.rates.add(&report.now, &report.totals);
                (self.report, self.failure) = (Some(report), None);
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    /// Returns whether keys are text of the filter.
    pub(super) fn is_typing(&self) -> bool {
        self.is_typing
    }

    pub(super) fn press(&mut self, key: KeyCode) {
        match key {
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::Down => self.scrolled = (self.scrolled + 1).min(self.jobs().len().saturating_sub(1)),
            KeyCode::Esc => (self.is_typing, self.filter, self.scrolled) = (false, String::new(), 0),
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Backspace if self.is_typing => _ = self.filter.pop(),
            KeyCode::Char(letter) if self.is_typing => (self.scrolled, _) = (0, self.filter.push(letter)),
            KeyCode::Char('/') => self.is_typing = true,
            _ => {}
        }
    }

    /// Returns the jobs that the filter keeps.
    fn jobs(&self) -> Vec<&ReportedJob> {
        let wanted = self.filter.to_lowercase();
        let has = |job: &&ReportedJob| {
            let rung = job.rung.as_deref().unwrap_or_default();
            format!("{} {} {} {rung}", job.id, job.rest, job.key).to_lowercase().contains(&wanted)
        };
        self.report.iter().flat_map(|report| &report.jobs.items).filter(has).collect()
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &TopView) {
    let area = frame.area();
    let tiles_height = if area.width >= WIDE { 4 } else { 8 };
    let plots_height = if area.height >= TALL { 5 } else { 0 };
    let [head, tiles, plots, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(tiles_height),
        Constraint::Length(plots_height),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(foot_line(view), foot);
    let Some(report) = &view.report else {
        let text = view.failure.clone().unwrap_or_else(|| format!("connecting to {}", view.listen));
        frame.render_widget(Paragraph::new(text), head);
        return;
    };
    frame.render_widget(head_line(view, report), head);
    draw_tiles(frame, tiles, report);
    if plots_height > 0 {
        draw_plots(frame, plots, view);
    }
    if area.width < WIDE {
        draw_jobs(frame, body, view, report);
        return;
    }
    let [jobs, counts] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(body);
    draw_jobs(frame, jobs, view, report);
    draw_counts(frame, counts, report);
}

fn head_line<'a>(view: &'a TopView, report: &'a GatewayReport) -> Line<'a> {
    let mut line = Line::from(vec![
        Span::from(format!("clipgate {}", report.version)).bold(),
        Span::from(format!("  {}, up {}", report.phase, span(report.uptime_seconds))),
        Span::from(format!("  {} \u{25b6} {}", view.listen, escape(&report.upstream.base_url))).dim(),
    ]);
    if let Some(failure) = &view.failure {
        line.push_span(Span::from(format!("  {failure}")).fg(Color::Red));
    }
    line
}

fn foot_line(view: &TopView) -> Line<'_> {
    match (view.is_typing, view.filter.is_empty()) {
        (true, _) => Line::from(format!("/{}\u{2588}  Enter keeps, Esc removes the filter", view.filter)),
        (false, false) => Line::from(format!("filter: {}  Esc removes it, q ends", view.filter)),
        (false, true) => Line::from("q ends  / filters  \u{2191}\u{2193} scroll").dim(),
    }
}

fn draw_tiles(frame: &mut Frame<'_>, area: Rect, report: &GatewayReport) {
    let (waits, polls, cache) = (&report.waits, &report.polls, &report.cache);
    let calls: u64 = report.totals.calls.values().sum();
    let all = calls + report.totals.saved;
    let saved =
        if all == 0 { "nothing yet".to_owned() } else { percent(report.totals.saved as f64 / all as f64) };
    let waiting = if polls.waiting > 0 { format!(", {} waiting", polls.waiting) } else { String::new() };
    let (api, since, color) = upstream_state(report);
    let is_poor = report.success_rate.is_some_and(|rate| rate < 0.95);
    let hours = report.saved_today.held_seconds / 3600.0;
    let fanout = report.fanout.p50_seconds.zip(report.fanout.p99_seconds);
    let tiles = [
        ("Saved calls", saved, format!("{} today, {hours:.1} h", report.saved_today.calls), Color::Reset),
        ("Waits parked", waits.parked.to_string(), format!("of {}", waits.max), Color::Reset),
        ("Polls open", polls.open.to_string(), format!("of {}{waiting}", polls.max), Color::Reset),
        (
            "Cached jobs",
            cache.entries.to_string(),
            format!("{} of {}", mebibytes(cache.bytes), mebibytes(cache.max_bytes)),
            Color::Reset,
        ),
        ("The API", api, since, color),
        (
            "Success, fan-out",
            report.success_rate.map_or("\u{2013}".to_owned(), percent),
            fanout
                .map_or("no answer yet".to_owned(), |(p50, p99)| format!("{} / {}", short(p50), short(p99))),
            if is_poor { Color::Yellow } else { Color::Reset },
        ),
    ];
    let rows = if area.width >= WIDE { 1 } else { 2 };
    let lines = Layout::vertical(vec![Constraint::Length(4); rows]).split(area);
    for (line, tiles) in lines.iter().zip(tiles.chunks(tiles.len() / rows)) {
        let places = Layout::horizontal(vec![Constraint::Fill(1); tiles.len()]).split(*line);
        for (place, (name, value, more, color)) in places.iter().zip(tiles) {
            let value = Line::from(value.clone()).style(Style::new().fg(*color).add_modifier(Modifier::BOLD));
            let text = vec![value, Line::from(more.clone()).dim()];
            frame.render_widget(
                Paragraph::new(text).block(Block::bordered().title(*name).dim_border()),
                *place,
            );
        }
    }
}

/// Returns the state of the API in words, since when or why, and its colour.
fn upstream_state(report: &GatewayReport) -> (String, String, Color) {
    let upstream = &report.upstream;
    let ago = |at: &str| format!("{} ago", span(seconds_between(at, &report.now)));
    if let Some(outage) = &upstream.outage {
        let since = span(seconds_between(&outage.since, &report.now));
        return (
            "\u{2715} unreachable".to_owned(),
            format!("{since}: {}", escape(&outage.cause)),
            Color::Red,
        );
    }
    match (&upstream.answered_at, &upstream.failed) {
        _ if upstream.breaker_open => {
            ("\u{2715} unreachable".to_owned(), "retries are delayed".to_owned(), Color::Red)
        }
        (None, None) => ("\u{2013} not used".to_owned(), String::new(), Color::Reset),
        (Some(answered), None) => ("\u{2713} answering".to_owned(), ago(answered), Color::Green),
        (answered, Some(failed)) => {
            let is_last =
                answered.as_ref().is_none_or(|answered| seconds_between(answered, &failed.at) > 0.0);
            let failure = format!("{}: {}", ago(&failed.at), escape(&failed.code));
            match is_last {
                true => ("! failing".to_owned(), failure, Color::Yellow),
                false => ("\u{2713} answering".to_owned(), format!("failed {failure}"), Color::Green),
            }
        }
    }
}

fn draw_plots(frame: &mut Frame<'_>, area: Rect, view: &TopView) {
    let places = Layout::horizontal([Constraint::Fill(1); 3]).split(area);
    let plots = [
        ("Requests", Rated::Requests, Color::Cyan),
        ("Calls", Rated::Calls, Color::Blue),
        ("Saved", Rated::Saved, Color::Green),
    ];
    for (place, (name, rated, color)) in places.iter().zip(plots) {
        let steps = usize::from(place.width.saturating_sub(2)).min(Rates::max_steps());
        let counts = view.rates.last(rated, steps);
        let largest = counts.iter().max().copied().unwrap_or_default();
        let title = format!("{name} {} in 5 s, max {largest}", counts.last().copied().unwrap_or_default());
        let plot = Sparkline::default().data(counts).style(Style::new().fg(color));
        frame.render_widget(plot.block(Block::bordered().title(title).dim_border()), *place);
    }
}

fn draw_jobs(frame: &mut Frame<'_>, area: Rect, view: &TopView, report: &GatewayReport) {
    let jobs = view.jobs();
    let title = match jobs.len() == report.jobs.total {
        true => format!("Jobs in flight: {}", jobs.len()),
        false => format!("Jobs in flight: {} of {}", jobs.len(), report.jobs.total),
    };
    let is_wide = area.width >= 70;
    let rows = jobs.iter().skip(view.scrolled).map(|job| {
        let mut cells = vec![Cell::from(escape(&job.id).into_owned())];
        if is_wide {
            cells.push(Cell::from(job.key.clone()).dim());
        }
        cells.push(Cell::from(job.rung.clone().unwrap_or_else(|| "unknown".to_owned())));
        cells.extend([job.waits.to_string(), job.polls.to_string(), span(job.age_seconds)].map(Cell::from));
        Row::new(cells)
    });
    let (names, widths): (&[&str], &[Constraint]) = match is_wide {
        true => (
            &["job", "key", "state", "waits", "polls", "age"],
            &[
                Constraint::Fill(1),
                Constraint::Length(10),
                Constraint::Length(10),
                Constraint::Length(5),
                Constraint::Length(5),
                Constraint::Length(11),
            ],
        ),
        false => (
            &["job", "state", "waits", "polls", "age"],
            &[
                Constraint::Fill(1),
                Constraint::Length(10),
                Constraint::Length(5),
                Constraint::Length(5),
                Constraint::Length(8),
            ],
        ),
    };
    let head = Row::new(names.to_vec()).style(Style::new().dim());
    let table = Table::new(rows, widths).header(head).block(Block::bordered().title(title).dim_border());
    frame.render_widget(table, area);
}

/// Draws the tables of counts, each as high as its rows as long as there is room.
fn draw_counts(frame: &mut Frame<'_>, area: Rect, report: &GatewayReport) {
    let totals = &report.totals;
    let text = |count: u64| count.to_string();
    let members = report.members.iter().map(|member| {
        let seen =
            member.last_seen_seconds.map_or("never".to_owned(), |seconds| format!("{} ago", span(seconds)));
        let counts = format!(
            "{} requests, {} saved, {} waits, {} rejected",
            member.requests, member.saved, member.waits, member.rejected
        );
        (escape(&member.name).into_owned(), format!("{counts}, {seen}"))
    });
    let keys = report.keys.items.iter().map(|key| {
        let quota =
            [("requests", &key.requests), ("calls", &key.calls)].into_iter().filter_map(|(name, quota)| {
                quota.as_ref().map(|quota| format!("  {}/{} {name}", quota.left, quota.burst))
            });
        (escape(&key.name).into_owned(), format!("{} waits{}", key.waits, quota.collect::<String>()))
    });
    let failures = [("failed", totals.errors), ("retries", totals.retries)];
    let calls = by_count(&totals.calls_by_cause)
        .into_iter()
        .chain(failures.map(|(name, count)| (name.to_owned(), text(count))));
    let (link, replicas) = report.cluster.as_ref().map_or_else(Default::default, replica_rows);
    let tables: [(&str, Vec<(String, String)>); 5] = [
        (&link, replicas),
        ("Members", members.collect()),
        ("Keys", keys.collect()),
        ("Calls by cause", calls.collect()),
        ("Rejections by reason", by_count(&totals.rejections)),
    ];
    let shown: Vec<_> = tables.into_iter().filter(|(_, rows)| !rows.is_empty()).collect();
    let heights = shown
        .iter()
        .map(|(_, rows)| Constraint::Max(u16::try_from(rows.len()).unwrap_or(u16::MAX).saturating_add(2)));
    let places = Layout::vertical(heights.collect::<Vec<_>>()).split(area);
    for (place, (name, rows)) in places.iter().zip(shown) {
        let room = usize::from(place.height.saturating_sub(2));
        let title = match rows.len() > room {
            true => format!("{name}: {room} of {}", rows.len()),
            false => name.to_owned(),
        };
        let widths = [Constraint::Length(20), Constraint::Fill(1)];
        let rows = rows.into_iter().map(|(name, value)| Row::new([Cell::from(name), Cell::from(value)]));
        frame.render_widget(
            Table::new(rows, widths).block(Block::bordered().title(title).dim_border()),
            *place,
        );
    }
}

/// Returns the title of the table of replicas, and its rows.
fn replica_rows(cluster: &ReportedCluster) -> (String, Vec<(String, String)>) {
    let rows = cluster.members.iter().map(|replica| {
        let beat = match replica.is_self {
            true => "this one".to_owned(),
            false => format!("{:.1} s ago", replica.seconds_since_beat),
        };
        let name = replica.name.get(..8).unwrap_or(&replica.name);
        (escape(name).into_owned(), format!("{} polls, {beat}", replica.polls))
    });
    (format!("Replicas, engine {}", escape(&cluster.link)), rows.collect())
}

/// Returns the counts that are not zero as texts, the largest first.
fn by_count(counts: &BTreeMap<String, u64>) -> Vec<(String, String)> {
    let mut counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    counts.into_iter().map(|(name, count)| (name.clone(), count.to_string())).collect()
}

/// Borders that are fainter than the text.
trait DimBorder {
    fn dim_border(self) -> Self;
}

impl DimBorder for Block<'_> {
    fn dim_border(self) -> Self {
        self.border_style(Style::new().dim())
    }
}

/// Formats seconds as 42 s, 2 min 05 s, 3 h 12 min or 5 d 3 h.
fn span(seconds: f64) -> String {
    let all = seconds.max(0.0) as u64;
    match all {
        ..60 => format!("{all} s"),
        60..3600 => format!("{} min {:02} s", all / 60, all % 60),
        3600..86_400 => format!("{} h {:02} min", all / 3600, all / 60 % 60),
        _ => format!("{} d {} h", all / 86_400, all / 3600 % 24),
    }
}

/// Formats a short time as 0.4 ms, 12 ms or 1.3 s.
fn short(seconds: f64) -> String {
    match seconds {
        ..0.01 => format!("{:.1} ms", seconds * 1000.0),
        0.01..1.0 => format!("{:.0} ms", seconds * 1000.0),
        _ => format!("{seconds:.1} s"),
    }
}

/// Formats a share. Less than 1 is never rounded up to 100 %.
fn percent(share: f64) -> String {
    let hundred = share * 100.0;
    match hundred > 99.0 && hundred < 100.0 {
        true => format!("{:.1} %", (hundred * 10.0).floor() / 10.0),
        false => format!("{hundred:.0} %"),
    }
}

fn mebibytes(bytes: u64) -> String {
    let size = bytes as f64 / f64::from(1 << 20);
    if size < 10.0 { format!("{size:.1} MiB") } else { format!("{size:.0} MiB") }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn view(state: serde_json::Value) -> TopView {
        let mut view = TopView::new("127.0.0.1:9090".to_owned(), Rates::default());
        view.update(Ok(serde_json::from_value(state).unwrap()));
        view
    }

    fn busy() -> TopView {
        view(json!({
            "version": "1.2.3", "now": "2026-01-02T03:04:05Z", "phase": "ready", "uptime_seconds": 75,
            "waits": { "parked": 12, "max": 5000 }, "polls": { "open": 3, "waiting": 1, "max": 512 },
            "cache": { "entries": 7, "bytes": 1_048_576, "max_bytes": 268_435_456 },
            "upstream": { "base_url": "https://api.example", "answered_at": "2026-01-02T03:04:03Z" },
            "totals": { "calls": { "poll": 25 }, "saved": 75, "rejections": { "empty-id": 4 },
                "calls_by_cause": { "wait": 20, "retry": 5, "watch": 0 } },
            "success_rate": 0.999, "fanout": { "p50_seconds": 0.0004, "p99_seconds": 0.012 },
            "members": [{ "name": "alice", "requests": 9 }],
            "jobs": { "total": 2, "items": [
                { "id": "job-one", "key": "ab12", "rung": "queued", "waits": 11, "polls": 2, "age_seconds": 61 },
                { "id": "job-two", "key": "ab12", "waits": 1, "polls": 1 }] },
            "cluster": { "link": "near", "members": [{ "name": "0123456789abcdef", "polls": 2, "self": true },
                { "name": "fedcba9876543210", "polls": 1, "seconds_since_beat": 0.26 }] },
        }))
    }

    fn screen(view: &TopView, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let rows = terminal.backend().buffer().content().chunks(width.into());
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    #[test]
    fn a_wide_screen_shows_all_numbers_and_a_narrow_one_the_tiles_and_jobs() {
        let wide = screen(&busy(), 120, 40).join("\n");
        let narrow = screen(&busy(), 60, 24).join("\n");
        for text in [
            "ready, up 1 min 15 s",
            "75 %",
            "of 5000",
            "of 512, 1 waiting",
            "1.0 MiB of 256 MiB",
            "\u{2713} answering",
            "99.9 %",
            "0.4 ms / 12 ms",
            "Jobs in flight: 2",
            "job-one",
        ] {
            assert!(wide.contains(text), "{text} in\n{wide}");
            assert!(narrow.contains(text), "{text} in\n{narrow}");
        }
        let replicas = ["Replicas, engine near", "01234567", "2 polls, this one", "1 polls, 0.3 s ago"];
        for text in ["alice", "9 requests", "empty-id", "Calls by cause", "retry"].into_iter().chain(replicas)
        {
            assert!(wide.contains(text), "{text} in\n{wide}");
        }
        assert!(!wide.contains("watch"), "{wide}");
    }

    #[test]
    fn the_filter_keeps_matching_jobs_and_counts_all() {
        let mut view = busy();
        view.press(KeyCode::Char('/'));
        "TWO".chars().for_each(|letter| view.press(KeyCode::Char(letter)));
        let text = screen(&view, 120, 40).join("\n");
        assert!(text.contains("Jobs in flight: 1 of 2") && !text.contains("job-one"), "{text}");
        assert!(view.is_typing());
        view.press(KeyCode::Esc);
        assert!(screen(&view, 120, 40).join("\n").contains("job-one"));
    }

    #[test]
    fn an_outage_has_its_cause_and_a_lost_gateway_keeps_the_last_numbers() {
        let mut view = view(json!({
            "now": "2026-01-02T03:04:45Z",
            "upstream": { "outage": { "since": "2026-01-02T03:04:05Z", "cause": "Connection refused" } },
        }));
        let text = screen(&view, 160, 40).join("\n");
        assert!(text.contains("\u{2715} unreachable") && text.contains("40 s: Connection"), "{text}");
        view.update(Err("127.0.0.1:9090 does not accept connections".to_owned()));
        let text = screen(&view, 160, 40).join("\n");
        assert!(text.contains("does not accept connections") && text.contains("unreachable"), "{text}");
    }
}
