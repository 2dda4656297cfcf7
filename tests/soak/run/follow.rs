//! A client that follows jobs by server-sent events to their ends (P10). It connects again with `Last-Event-ID` where its
//! stream ends early, and now and then hangs up by itself to do so. The events are judged stream by stream.

use std::time::{Duration, Instant};

use clipgate::testing::clock;
use fastrand::Rng;
use http::header::ACCEPT;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::ask::Ask;
use super::client::{Clients, SECOND_LOOK, chain};
use super::counts::{Outcome, Wrong};
use super::explain::{Cause, Failed, How};
use super::oracle::{Answer, is_failure, is_own, wrong};

/// How often a client connects again at most: clips are finished long before.
const MOST_STREAMS: usize = 100;
/// The longest event that is read, in bytes.
const LONGEST_EVENT: usize = 64 << 10;

/// A client, and what it has been told.
struct Follower<'a> {
    ask: &'a Ask,
    rng: Rng,
    /// The state of each clip that was told last.
    told: Vec<Option<usize>>,
    last_id: Option<HeaderValue>,
    /// How long to wait before another connection, as the stream says.
    retry: Duration,
}

/// A state that was told.
struct Told {
    place: usize,
    state: usize,
    /// The one before it.
    before: Option<usize>,
    /// When a client alone would have asked for it: when it was told the one before, or else connected.
    since: Instant,
    got: Instant,
}

/// How one stream ended.
enum Ended {
    /// With `done`.
    Done,
    /// With an error after which there is no more.
    ForGood,
    /// Without an end: the client connects again after a pause.
    ForNow(Duration),
    /// The gateway has stopped.
    Stopped,
}

impl Clients {
    /// Follows to the end. Cancel safe: dropped, its client hangs up.
    pub(super) async fn follow(&self, ask: &Ask, seed: u64, is_http2: bool) -> Result<Outcome, Wrong> {
        let (told, retry) = (vec![None; ask.clips.len()], Duration::from_secs(2));
        let mut follower = Follower { ask, rng: Rng::with_seed(seed), told, last_id: None, retry };
        for _ in 0..MOST_STREAMS {
            match self.follow_once(&mut follower, is_http2).await? {
                Ended::Done if follower.rng.u8(..4) == 0 => {
                    return self.ask_for_more(&follower, is_http2).await;
                }
                Ended::Done | Ended::Stopped => return Ok(Outcome::Followed),
                Ended::ForGood => return Ok(Outcome::Failed),
                Ended::ForNow(pause) => tokio::time::sleep(pause).await,
            }
        }
        wrong("an event stream comes to no end", follower.story("it connects again and again"))
    }

    /// One connection's stream, and whether it was right.
    async fn follow_once(&self, follower: &mut Follower<'_>, is_http2: bool) -> Result<Ended, Wrong> {
        let opened = clock::now();
        let limit = self.oracle.longest(None) + Duration::from_secs(20);
        let mut told = Vec::new();
        let ended = tokio::time::timeout(limit, self.read_stream(follower, is_http2, &mut told)).await;
        let Ok(ended) = ended else {
            return wrong("an event stream is silent", follower.story("the client gives up"));
        };
        let ended = ended?;
        if self.judge_events(follower, &told).is_err() {
            // As for other answers: what looks late may be this machine's fault, of which all is known a moment later.
            tokio::time::sleep(SECOND_LOOK).await;
            self.judge_events(follower, &told)?;
        }
        let is_calm = |event: &&Told| self.oracle.is_calm(follower.ask, opened, event.got);
        for event in told.iter().filter(is_calm) {
            let reached = follower.ask.clips[event.place].reaches(event.state).unwrap_or(event.since);
            self.tally.event_after(event.got.saturating_duration_since(reached.max(event.since)));
        }
        Ok(ended)
    }

    async fn read_stream(
        &self,
        follower: &mut Follower<'_>,
        is_http2: bool,
        told: &mut Vec<Told>,
    ) -> Result<Ended, Wrong> {
        let opened = clock::now();
        let mut request = self.request(follower.ask);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = &follower.last_id {
            request.headers_mut().insert("last-event-id", id.clone());
        }
        let response = match self.start(request, is_http2).await {
            Ok(response) => response,
            Err(_) if self.oracle.is_drained_by(clock::now()) => return Ok(Ended::Stopped),
            Err(error) => return wrong("no event stream", follower.story(&chain(&error))),
        };
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let collected = body.collect().await.map(http_body_util::Collected::to_bytes);
            let body = collected.or_else(|error| wrong("no whole answer", follower.story(&chain(&error))))?;
            let (status, headers) = (head.status, head.headers);
            let answer = Answer { status, headers, body, sent: opened, got: clock::now() };
            return self.refused(follower, &answer);
        }
        let mut events = Events { body, unread: Vec::new() };
        let mut since = vec![opened; follower.ask.clips.len()];
        // Some hang up after an event or two, and come back.
        let mut stays = if follower.rng.u8(..3) == 0 { follower.rng.usize(1..=2) } else { usize::MAX };
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return self.ended_early(follower, opened),
                Err(why) => return wrong("an event stream breaks off", follower.story(&why)),
            };
            let got = clock::now();
            if let Some(pause) = event.retry {
                follower.retry = pause;
            }
            if let Some(id) = event.id {
                follower.last_id = id.parse().ok();
            }
            match &*event.name {
                "" if event.data.is_empty() => continue,
                "status" => {
                    let Some((place, state)) = self.state_of(follower.ask, event.data.as_bytes()) else {
                        return wrong("an event with other bytes", follower.story(&event.data));
                    };
                    let before = follower.told[place].replace(state);
                    told.push(Told { place, state, before, since: since[place], got });
                    since[place] = got;
                }
                "done" if follower.is_told_all() => return Ok(Ended::Done),
                "done" => return wrong("done before the end", follower.story(&event.data)),
                "error" => return self.failed(follower, &event.data, opened, got),
                _ => return wrong("an event of another name", follower.story(&event.name)),
            }
            stays -= 1;
            if stays == 0 && !follower.is_told_all() {
                return Ok(Ended::ForNow(Duration::from_millis(follower.rng.u64(..500))));
            }
        }
    }

    /// The clip that these bytes tell, and its state.
    fn state_of(&self, ask: &Ask, data: &[u8]) -> Option<(usize, usize)> {
        (0..ask.clips.len()).find_map(|place| {
            let (state, rest) = self.oracle.state(ask, place, data)?;
            rest.is_empty().then_some((place, state))
        })
    }

    /// A stream's time may be over, and the gateway may stop; nothing else ends it without an event that says so.
    fn ended_early(&self, follower: &Follower<'_>, opened: Instant) -> Result<Ended, Wrong> {
        let now = clock::now();
        if self.oracle.is_drained_by(now) {
            Ok(Ended::Stopped)
        } else if now + self.oracle.skew() >= self.oracle.deadline(None, opened) {
            Ok(Ended::ForNow(Duration::ZERO))
        } else {
            wrong("an event stream is cut short", follower.story("it ends without a word"))
        }
    }

    /// The stream was refused before it began.
    fn refused(&self, follower: &Follower<'_>, answer: &Answer) -> Result<Ended, Wrong> {
        let story = || follower.story(&format!("{} {}", answer.status, answer.field("cache-status")));
        if !is_failure(answer.status) {
            return wrong("an event stream with a status that must not be", story());
        }
        let how = if is_own(answer) { How::Own(answer.status) } else { How::AsWritten(answer.status) };
        self.explained(follower, how, answer.sent, answer.got).or_else(|why| wrong(why, story()))?;
        Ok(Ended::ForNow(follower.retry))
    }

    /// The stream ends with an error: the gateway's own or the upstream's, in one form, with its status in it.
    fn failed(
        &self,
        follower: &Follower<'_>,
        data: &str,
        opened: Instant,
        got: Instant,
    ) -> Result<Ended, Wrong> {
        let error: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
        let code = error["statusCode"].as_u64().and_then(|code| u16::try_from(code).ok());
        let Some(status) = code.and_then(|code| StatusCode::from_u16(code).ok()) else {
            return wrong("an error event that says nothing", follower.story(data));
        };
        // Whose error it is is not said: one of these has to explain it.
        let whose = [How::AsWritten(status), How::Unreadable, How::Own(status)];
        let mut explained = Err("");
        for how in whose {
            explained = explained.or_else(|_| self.explained(follower, how, opened, got));
        }
        explained.or_else(|why| wrong(why, follower.story(data)))?;
        let is_over = follower.last_id.as_ref().is_some_and(|id| id.as_bytes().ends_with(b":over"));
        Ok(if is_over { Ended::ForGood } else { Ended::ForNow(follower.retry) })
    }

    fn explained(
        &self,
        follower: &Follower<'_>,
        how: How,
        sent: Instant,
        got: Instant,
    ) -> Result<Cause, &'static str> {
        let (key, deadline) = (follower.ask.key, self.oracle.deadline(None, sent));
        let failed = Failed { key, jobs: &follower.ask.clips, is_wait: true, sent, got, deadline, how };
        self.oracle.explain(&failed).inspect(|&cause| self.tally.explained(cause))
    }

    /// A client that was told `done` and connects again is told that there is no more.
    async fn ask_for_more(&self, follower: &Follower<'_>, is_http2: bool) -> Result<Outcome, Wrong> {
        let mut request = self.request(follower.ask);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = &follower.last_id {
            request.headers_mut().insert("last-event-id", id.clone());
        }
        match self.start(request, is_http2).await {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => Ok(Outcome::Followed),
            Ok(response) => wrong("more after done", follower.story(response.status().as_str())),
            Err(_) if self.oracle.is_drained_by(clock::now()) => Ok(Outcome::Followed),
            Err(error) => wrong("no answer after done", follower.story(&chain(&error))),
        }
    }

    /// Each state once, in order, true, none left out that lasted, and none late.
    fn judge_events(&self, follower: &Follower<'_>, told: &[Told]) -> Result<(), Wrong> {
        let (oracle, ask) = (&self.oracle, follower.ask);
        for &Told { place, state, before, since, got } in told {
            let clip = &ask.clips[place];
            let hop = oracle.hop(since, got);
            let story = || {
                let (after, place) = (got - since, oracle.schedule.place(since));
                follower.story(&format!("{} {place} told {state} after {before:?} and {after:?}", clip.id))
            };
            if before.is_some_and(|before| before >= state) {
                return wrong("a rung is told twice or out of order", story());
            }
            if state > clip.highest_by(got) {
                return wrong("an event of a state that was not reached", story());
            }
            if !oracle.is_calm(ask, since, got) {
                continue;
            }
            let slack = oracle.kept(ask.kind) + hop;
            if state < clip.lowest_by(got - slack) {
                return wrong("an event of a state that was over", story());
            }
            for left_out in before.map_or(0, |before| before + 1)..state {
                let Some((from, Some(to))) = clip.stays(left_out) else { continue };
                if to.saturating_duration_since(from.max(since)) > slack {
                    return wrong("a rung is left out", story());
                }
            }
            let could = clip.reaches(state).unwrap_or(since).max(since);
            if could + hop < got {
                return wrong("an event is late", story());
            }
        }
        Ok(())
    }
}

impl Follower<'_> {
    fn is_told_all(&self) -> bool {
        self.told.iter().all(|&told| told >= self.ask.goal)
    }

    fn story(&self, what: &str) -> String {
        let Self { ask, told, last_id, .. } = self;
        let ids: Vec<&str> = ask.clips.iter().map(|clip| &*clip.id).collect();
        let what: String = what.chars().take(240).collect();
        format!("{:?} by {:?}, {ids:?} told {told:?}, last id {last_id:?}: {what}", ask.kind, ask.key)
    }
}

/// An event as it was read; a name and data of nothing where only other fields came.
#[derive(Default)]
struct Event {
    name: String,
    id: Option<String>,
    retry: Option<Duration>,
    data: String,
}

/// Reads a stream event by event (HTML Standard, section 9.2.6), with nothing of the gateway's.
struct Events {
    body: Incoming,
    unread: Vec<u8>,
}

impl Events {
    /// The next event; none at the end. What the stream begins with and comments come before an event.
    async fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
                let lines: Vec<u8> = self.unread.drain(..end + 2).collect();
                return Ok(Some(parse(&String::from_utf8(lines).map_err(|error| error.to_string())?)));
            }
            if self.unread.len() > LONGEST_EVENT {
                return Err("an event without end".to_owned());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.unread.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(chain(&error)),
                None => return Ok(None),
            }
        }
    }
}

fn parse(lines: &str) -> Event {
    let mut event = Event::default();
    for line in lines.lines() {
        match line.split_once(": ").unwrap_or((line, "")) {
            ("event", name) => event.name = name.to_owned(),
            ("id", id) => event.id = Some(id.to_owned()),
            ("retry", millis) => event.retry = millis.parse().ok().map(Duration::from_millis),
            ("data", data) => event.data.push_str(data),
            _ => {}
        }
    }
    event
}
