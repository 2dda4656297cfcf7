//! Whether an answer is right: what would its client have been told alone, and when?
//!
//! It knows the truth about each clip and the times that hold, and nothing of how the gateway comes by its answers.
//! Moments are compared generously, by how slow this machine was; what an answer says is not.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::coalescer::SNAPSHOT_LIMIT;
use clipgate::sim::Sim;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;

use super::ask::{Ask, Key, Kind};
use super::calibration::Noise;
use super::clips::COMPLETED;
use super::counts::{Outcome, Tally, Wrong};
use super::explain::{Failed, How};
use super::fault_schedule::FaultSchedule;

/// What a request may take where nothing is late. A debug build checks all of its state after each input, which takes
/// its time where many wait.
const HOP: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 50 });

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Before its request was sent.
    pub(crate) sent: Instant,
    /// When its last byte was there.
    pub(crate) got: Instant,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    fn is_hit(&self) -> bool {
        self.field("cache-status").starts_with("clipgate; hit; ttl=")
    }
}

/// What the gateway was set to in this run, whatever the reloads between.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    /// How long the upstream holds.
    pub(crate) hold: Duration,
    /// How long a wait waits that says nothing about it.
    pub(crate) timeout: RangeInclusive<Duration>,
    /// How old a kept state may be that is not the clip's last.
    pub(crate) live: Duration,
    /// How often a poll is tried again after an answer that says no.
    pub(crate) retries: u32,
    /// How long after an outage a poll that was being retried may still pause.
    pub(crate) pause: Duration,
}

pub(crate) struct Oracle {
    pub(crate) sim: Sim,
    pub(crate) times: Times,
    pub(crate) schedule: FaultSchedule,
    pub(crate) noise: Noise,
    /// From then on waits may be told before their time.
    drained_from: Mutex<Option<Instant>>,
    /// Whose own fields have reached a client, of all answers of the upstream.
    own_fields: Mutex<Vec<bool>>,
    /// The most requests that were let through for each key, and how many were.
    let_through: [AtomicU64; 64],
}

impl Oracle {
    pub(crate) fn new(sim: Sim, upstream: SocketAddr, times: Times, schedule: FaultSchedule) -> Self {
        Self {
            sim,
            times,
            schedule,
            noise: Noise::new(upstream),
            drained_from: Mutex::new(None),
            own_fields: Mutex::default(),
            let_through: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn drain_begins(&self) {
        *self.drained_from.lock() = Some(clipgate::testing::clock::now());
    }

    /// How many requests of this key were not over a quota.
    pub(crate) fn let_through(&self, place: usize) -> u64 {
        self.let_through[place].load(Ordering::Relaxed)
    }

    /// How many requests the upstream has seen at least.
    pub(crate) fn upstream_requests(&self) -> usize {
        self.own_fields.lock().len()
    }

    /// What a request takes at most between these moments.
    pub(crate) fn hop(&self, from: Instant, to: Instant) -> Duration {
        HOP + self.noise.between(from, to) * 6
    }

    /// The longest that any answer takes.
    pub(crate) fn longest(&self, prefer: Option<Duration>) -> Duration {
        self.timeouts(prefer).end().saturating_add(self.times.hold / 24 + SNAPSHOT_LIMIT)
    }

    /// What two clocks of the same time may differ by.
    pub(crate) fn skew(&self) -> Duration {
        self.times.hold / 500
    }

    /// How old a state may be that a request of this kind is told.
    pub(crate) fn kept(&self, kind: Kind) -> Duration {
        if matches!(kind, Kind::NoCache | Kind::NoStore) { Duration::ZERO } else { self.times.live }
    }

    /// Whether the gateway was told to stop by then.
    pub(crate) fn is_drained_by(&self, at: Instant) -> bool {
        self.drained_from.lock().is_some_and(|from| from <= at)
    }

    /// Whether a request meets no fault from the one moment to the other.
    pub(crate) fn is_calm(&self, ask: &Ask, from: Instant, to: Instant) -> bool {
        self.schedule.is_calm_for(ask.key, ask.clips.iter().map(|clip| &*clip.id), from, to)
    }

    fn timeouts(&self, prefer: Option<Duration>) -> RangeInclusive<Duration> {
        prefer.map_or(self.times.timeout.clone(), |wait| wait..=wait)
    }

    /// Notes what holds for the whole run, once for each answer.
    pub(crate) fn note(&self, key: Key, answer: &Answer) -> Result<(), Wrong> {
        let is_over = answer.status == StatusCode::TOO_MANY_REQUESTS && is_own(answer);
        if let Some(place) = key.place().filter(|_| !is_over) {
            self.let_through[place].fetch_add(1, Ordering::Relaxed);
        }
        let number = answer.field("x-inference-id").strip_prefix("inference-");
        let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) else { return Ok(()) };
        let mut seen = self.own_fields.lock();
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        if std::mem::replace(&mut seen[number], true) {
            wrong("fields of one answer reached two clients", format!("{:?}", answer.headers))
        } else {
            Ok(())
        }
    }

    /// Whether this is a right answer to a request for clips. Changes nothing, so that it may be asked again.
    pub(crate) fn judge(&self, ask: &Ask, answer: &Answer, tally: &Tally) -> Result<Outcome, Wrong> {
        has_what_all_have(answer)?;
        self.is_in_time(ask, answer)?;
        let is_calm = self.is_calm(ask, answer.sent, answer.got);
        match answer.status {
            // What cannot be read is handed over as it came.
            StatusCode::OK if ask.key.place().is_none() && answer.body.starts_with(b"<!DOCTYPE html>") => {
                self.failed(ask, answer, How::Unreadable, tally)
            }
            StatusCode::OK if ask.key.place().is_none() => {
                wrong("a stranger is told", self.story(ask, answer))
            }
            StatusCode::OK => self.judge_states(ask, answer, is_calm, tally),
            StatusCode::NOT_MODIFIED => {
                let is_asked = ask.kind == Kind::Conditional && answer.body.is_empty();
                if is_asked { Ok(Outcome::Unchanged) } else { wrong("304 unasked", self.story(ask, answer)) }
            }
            StatusCode::TOO_MANY_REQUESTS if is_own(answer) && !is_key_paused(answer) => {
                let may = matches!(ask.key, Key::Greedy | Key::Bad(_));
                let has_time = answer.field("retry-after").parse::<u64>().is_ok();
                if may && has_time {
                    Ok(Outcome::Limited)
                } else {
                    wrong("refused within its quotas", self.story(ask, answer))
                }
            }
            StatusCode::UNAUTHORIZED if ask.key.place().is_none() => Ok(Outcome::Refused),
            StatusCode::GATEWAY_TIMEOUT if answer.field("cache-status") == "clipgate; detail=not-cached" => {
                let is_asked = ask.kind == Kind::OnlyIfCached;
                if is_asked { Ok(Outcome::Refused) } else { wrong("not asked for", self.story(ask, answer)) }
            }
            status if is_failure(status) => {
                let how = if is_own(answer) { How::Own(status) } else { How::AsWritten(status) };
                self.failed(ask, answer, how, tally)
            }
            _ => wrong("a status that must not be", self.story(ask, answer)),
        }
    }

    fn failed(&self, ask: &Ask, answer: &Answer, how: How, tally: &Tally) -> Result<Outcome, Wrong> {
        let explained = self.explain(&Failed {
            key: ask.key,
            jobs: &ask.clips,
            // A wait for the lowest rung is answered at once, and so refused at once too.
            is_wait: ask.goal.is_some_and(|goal| goal > 0),
            sent: answer.sent,
            got: answer.got,
            deadline: self.deadline(ask.prefer, answer.sent),
            how,
        });
        match explained {
            Ok(cause) => {
                tally.explained(cause);
                Ok(Outcome::Failed)
            }
            Err(why) => wrong(why, self.story(ask, answer)),
        }
    }

    /// The bound that always holds.
    fn is_in_time(&self, ask: &Ask, answer: &Answer) -> Result<(), Wrong> {
        let took = answer.got - answer.sent;
        let most = self.longest(ask.prefer) + self.hop(answer.sent, answer.got);
        if took <= most { Ok(()) } else { wrong("answered far too late", self.story(ask, answer)) }
    }

    fn judge_states(
        &self,
        ask: &Ask,
        answer: &Answer,
        is_calm: bool,
        tally: &Tally,
    ) -> Result<Outcome, Wrong> {
        let has_preferred = ask
            .prefer
            .is_none_or(|wait| answer.field("preference-applied") == format!("wait={}", wait.as_secs()));
        if !has_preferred {
            return wrong("Prefer is not answered", self.story(ask, answer));
        }
        let (is_hit, is_no_cache) = (answer.is_hit(), matches!(ask.kind, Kind::NoCache | Kind::NoStore));
        if is_hit && ask.kind == Kind::Removed {
            return wrong("a hit of what was removed", self.story(ask, answer));
        }
        if (is_hit && is_no_cache) || (!is_hit && ask.kind == Kind::OnlyIfCached) {
            return wrong("Cache-Control is not followed", self.story(ask, answer));
        }
        if (is_hit || is_leaned(answer)) && has_own_fields(answer) {
            return wrong("fields of another's answer", self.story(ask, answer));
        }
        let Some(states) = self.states(ask, &answer.body) else {
            // It is handed over as it came: a page, or of several jobs a summary.
            let is_page = answer.body.starts_with(b"<!DOCTYPE html>");
            let is_summary = answer.body.starts_with(b"{\"summary\":") && !ask.is_single;
            return if is_page || is_summary {
                self.failed(ask, answer, How::Unreadable, tally)
            } else {
                wrong("other bytes than the upstream's", self.story(ask, answer))
            };
        };
        self.are_true(ask, answer, &states)?;
        ask.clips.iter().for_each(|clip| clip.is_told(ask.key.bit()));
        let is_reached = states.iter().all(|&state| ask.goal.is_none_or(|goal| state >= goal));
        self.is_not_late(ask, answer, is_calm)?;
        self.is_not_late_after_an_outage(ask, answer, is_reached, tally)?;
        if !is_reached {
            self.is_not_cut_short(ask, answer, &states, is_calm)?;
        }
        self.count(ask, answer, is_reached, is_calm, tally);
        Ok(if is_hit {
            Outcome::Hit
        } else if is_leaned(answer) {
            Outcome::Leaned
        } else {
            Outcome::Opened
        })
    }

    /// The clips' states by the answer's bytes: just these clips', in the order asked for, in one of the upstream's
    /// forms.
    fn states(&self, ask: &Ask, body: &[u8]) -> Option<Vec<usize>> {
        if ask.is_single {
            let (state, rest) = self.state(ask, 0, body)?;
            return rest.is_empty().then(|| vec![state]);
        }
        [(&b"["[..], &b"]"[..], false), (b"{\"clips\":[", b"]}", false), (b"{", b"}", true)]
            .into_iter()
            .find_map(|(before, after, is_named)| {
                let mut rest = body.strip_prefix(before)?;
                let mut states = Vec::new();
                for (place, clip) in ask.clips.iter().enumerate() {
                    if place > 0 {
                        rest = rest.strip_prefix(b",")?;
                    }
                    if is_named {
                        rest = rest.strip_prefix(format!("\"{}\":", clip.id).as_bytes())?;
                    }
                    let (state, more) = self.state(ask, place, rest)?;
                    states.push(state);
                    rest = more;
                }
                (rest == after).then_some(states)
            })
    }

    pub(crate) fn state<'b>(&self, ask: &Ask, place: usize, body: &'b [u8]) -> Option<(usize, &'b [u8])> {
        let clip = &ask.clips[place];
        (0..=COMPLETED + 1)
            .rev()
            .filter(|&state| clip.visits(state))
            .find_map(|state| Some((state, body.strip_prefix(&clip.body(&self.sim, state)[..])?)))
    }

    /// No state that the clip had not reached, and none that is older than what the client alone would have seen, but
    /// for what may be kept.
    fn are_true(&self, ask: &Ask, answer: &Answer, states: &[usize]) -> Result<(), Wrong> {
        let hop = self.hop(answer.sent, answer.got);
        let kept = self.kept(ask.kind);
        let (since_asked, since_told) = (answer.sent - kept - hop, answer.got - kept - hop);
        for (clip, &state) in ask.clips.iter().zip(states) {
            if state > clip.highest_by(answer.got) {
                return wrong("a state that was not reached", self.story(ask, answer));
            }
            if state < clip.lowest_by(since_asked) {
                return wrong("a state from before the request", self.story(ask, answer));
            }
            let is_calm = self.is_calm(ask, answer.sent, answer.got);
            if is_calm && ask.is_single && state < clip.lowest_by(since_told) {
                return wrong("a state that was over", self.story(ask, answer));
            }
        }
        Ok(())
    }

    /// Told as soon as a client alone is, unless its time is over by then.
    fn is_not_late(&self, ask: &Ask, answer: &Answer, is_calm: bool) -> Result<(), Wrong> {
        let latest = self.alone(ask, answer).map(|alone| alone + self.hop(answer.sent, answer.got));
        let is_late =
            latest.is_some_and(|latest| latest < answer.got.min(self.deadline(ask.prefer, answer.sent)));
        if is_calm && is_late { wrong("told late", self.story(ask, answer)) } else { Ok(()) }
    }

    /// Who was waiting through an outage is told soon after it, unless its time is over by then.
    fn is_not_late_after_an_outage(
        &self,
        ask: &Ask,
        answer: &Answer,
        is_reached: bool,
        tally: &Tally,
    ) -> Result<(), Wrong> {
        let Answer { sent, got, .. } = *answer;
        let Some(end) = self.schedule.outage_end(sent, got).filter(|end| *end < got) else { return Ok(()) };
        let Some(alone) = self.alone(ask, answer).filter(|_| is_reached) else { return Ok(()) };
        if !self.schedule.is_outage_only(sent, got) {
            return Ok(());
        }
        let could = alone.max(end);
        if could + self.times.pause + self.hop(sent, got) < got.min(self.deadline(ask.prefer, sent)) {
            return wrong("told late after an outage", self.story(ask, answer));
        }
        tally.told_after_outage(got.saturating_duration_since(could));
        Ok(())
    }

    /// A wait that is told before its clips are there has had its time, and is told the truth.
    fn is_not_cut_short(
        &self,
        ask: &Ask,
        answer: &Answer,
        states: &[usize],
        is_calm: bool,
    ) -> Result<(), Wrong> {
        let (skew, hop) = (self.skew(), self.hop(answer.sent, answer.got));
        let deadline = self.deadline(ask.prefer, answer.sent);
        let ends = self.drained_from.lock().map_or(deadline, |from| from.min(deadline));
        if answer.got + skew < ends {
            return wrong("cut short", self.story(ask, answer));
        }
        for (clip, &state) in ask.clips.iter().zip(states).filter(|_| is_calm) {
            if state < clip.lowest_by(ends - skew - hop) {
                return wrong("a deadline's answer that is not true", self.story(ask, answer));
            }
        }
        let latest = answer.sent + *self.timeouts(ask.prefer).end() + self.times.hold / 24 + skew + hop * 2;
        if is_calm && answer.got > latest {
            wrong("a deadline missed", self.story(ask, answer))
        } else {
            Ok(())
        }
    }

    /// When a client alone is told that all is where it asked for, if that comes.
    fn alone(&self, ask: &Ask, answer: &Answer) -> Option<Instant> {
        let each = ask.clips.iter().map(|clip| ask.goal.map_or(Some(answer.sent), |goal| clip.reaches(goal)));
        each.collect::<Option<Vec<_>>>()?.into_iter().chain([answer.sent]).max()
    }

    /// When the time of a request that was sent then is over at the earliest.
    pub(crate) fn deadline(&self, prefer: Option<Duration>, sent: Instant) -> Instant {
        sent + *self.timeouts(prefer).start()
    }

    fn count(&self, ask: &Ask, answer: &Answer, is_reached: bool, is_calm: bool, tally: &Tally) {
        let is_wait = matches!(ask.kind, Kind::Wait | Kind::Waits | Kind::Preferring);
        if answer.is_hit() {
            tally.hit_after(answer.got - answer.sent);
        } else if !is_reached {
            tally.timed_out();
        } else if let Some(alone) = self.alone(ask, answer).filter(|_| is_calm && is_wait) {
            tally.told_after(answer.got.saturating_duration_since(alone));
        }
    }

    fn story(&self, ask: &Ask, answer: &Answer) -> String {
        let Ask { kind, key, goal, prefer, .. } = ask;
        let (took, text) = (answer.got - answer.sent, String::from_utf8_lossy(&answer.body));
        let clips: Vec<String> = ask
            .clips
            .iter()
            .map(|clip| {
                let (at_start, at_end) = (clip.lowest_by(answer.sent), clip.highest_by(answer.got));
                format!("{} {at_start} to {at_end}", clip.id)
            })
            .collect();
        let start: String = text.chars().take(160).collect();
        format!(
            "{kind:?} by {key:?} until {goal:?} prefer {prefer:?}, clips {clips:?}: {} {} after {took:?}, {}; {start}",
            self.schedule.place(answer.sent),
            answer.status,
            answer.field("cache-status"),
        )
    }
}

/// What the gateway puts on all that it answers.
fn has_what_all_have(answer: &Answer) -> Result<(), Wrong> {
    let is_there = |name| !answer.field(name).is_empty();
    let has_all =
        is_there("x-request-id") && is_there("via") && answer.field("cache-status").starts_with("clipgate; ");
    if has_all {
        Ok(())
    } else {
        wrong("fields are missing", format!("{} {:?}", answer.status, answer.headers))
    }
}

/// Whether the upstream told the key 429, in whose words the gateway goes on to say so.
fn is_key_paused(answer: &Answer) -> bool {
    answer.field("cache-status").starts_with("clipgate; detail=key-r")
}

pub(crate) fn is_own(answer: &Answer) -> bool {
    answer.field("cache-status").starts_with("clipgate; detail=")
}

fn is_leaned(answer: &Answer) -> bool {
    answer.field("cache-status") == "clipgate; fwd=miss; collapsed"
}

fn has_own_fields(answer: &Answer) -> bool {
    ["set-cookie", "x-inference-id", "x-aimlapi-request", "ratelimit-remaining"]
        .iter()
        .any(|name| answer.headers.contains_key(*name))
}

pub(crate) fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

pub(crate) fn wrong<T>(what: &'static str, story: String) -> Result<T, Wrong> {
    Err(Wrong { what, story })
}
