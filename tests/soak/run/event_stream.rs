//! A client that reads server-sent events until its clips are finished (P10).
//!
//! It reconnects with `Last-Event-ID` after its stream ends early, and sometimes disconnects in order to do so. The events
//! of each stream are checked when it ends.

use std::time::{Duration, Instant};

use clipgate::testing::clock;
use fastrand::Rng;
use http::header::ACCEPT;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::client::{Clients, SECOND_LOOK, chain};
use super::counts::{Outcome, Violation};
use super::explain::{Cause, FailedRequest, FailureKind};
use super::oracle::{ReceivedResponse, is_failure, is_gateway_error, violation};
use super::requests::ClipQuery;

/// Limit on connections of one client. Clips are finished long before.
const MAX_CONNECTIONS: usize = 100;
/// Limit on the size of an event, in bytes.
const MAX_EVENT_BYTES: usize = 64 << 10;

/// A client and its position in the stream.
struct StreamClient<'a> {
    query: &'a ClipQuery,
    rng: Rng,
    /// The last received state of each clip.
    last_states: Vec<Option<usize>>,
    last_id: Option<HeaderValue>,
    /// Pause before a reconnect, from the field `retry` of the stream.
    retry: Duration,
}

/// A received state.
struct Delivered {
    index: usize,
    state: usize,
    /// The state before it.
    before: Option<usize>,
    /// Time at which a client alone would have started to wait for it: the previous state, else the connection.
    since: Instant,
    received: Instant,
}

/// End of one stream.
enum StreamEnd {
    /// The event `done`.
    Done,
    /// An error that is final.
    Final,
    /// No final event: the client reconnects after a pause.
    Reconnect(Duration),
    GatewayStopped,
}

impl Clients {
    /// Reads events until the clips are finished. Cancel safe: dropping the future disconnects the client.
    pub(super) async fn follow(
        &self,
        query: &ClipQuery,
        seed: u64,
        is_http2: bool,
    ) -> Result<Outcome, Violation> {
        let (last_states, retry) = (vec![None; query.clips.len()], Duration::from_secs(2));
        let mut client = StreamClient { query, rng: Rng::with_seed(seed), last_states, last_id: None, retry };
        for _ in 0..MAX_CONNECTIONS {
            match self.follow_once(&mut client, is_http2).await? {
                StreamEnd::Done if client.rng.u8(..4) == 0 => {
                    return self.reconnect_after_done(&client, is_http2).await;
                }
                StreamEnd::Done | StreamEnd::GatewayStopped => return Ok(Outcome::StreamDone),
                StreamEnd::Final => return Ok(Outcome::Failed),
                StreamEnd::Reconnect(pause) => tokio::time::sleep(pause).await,
            }
        }
        violation("an event stream does not end", client.describe("too many connections"))
    }

    /// Reads the stream of one connection, and checks its events.
    async fn follow_once(
        &self,
        client: &mut StreamClient<'_>,
        is_http2: bool,
    ) -> Result<StreamEnd, Violation> {
        let opened = clock::now();
        let limit = self.oracle.max_duration(None) + Duration::from_secs(20);
        let mut delivered = Vec::new();
        let ended = tokio::time::timeout(limit, self.read_stream(client, is_http2, &mut delivered)).await;
        let Ok(ended) = ended else {
            return violation("an event stream without events", client.describe("timed out"));
        };
        let ended = ended?;
        if self.check_events(client, &delivered).is_err() {
            // As in `Clients::check_twice`.
            tokio::time::sleep(SECOND_LOOK).await;
            self.check_events(client, &delivered)?;
        }
        let is_calm = |event: &&Delivered| self.oracle.is_calm(client.query, opened, event.received);
        for event in delivered.iter().filter(is_calm) {
            let reached = client.query.clips[event.index].reached_by(event.state).unwrap_or(event.since);
            self.counts.record_event(event.received.saturating_duration_since(reached.max(event.since)));
        }
        Ok(ended)
    }

    async fn read_stream(
        &self,
        client: &mut StreamClient<'_>,
        is_http2: bool,
        delivered: &mut Vec<Delivered>,
    ) -> Result<StreamEnd, Violation> {
        let opened = clock::now();
        let mut request = self.request(client.query);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = &client.last_id {
            request.headers_mut().insert("last-event-id", id.clone());
        }
        let response = match self.start(request, is_http2).await {
            Ok(response) => response,
            Err(_) if self.oracle.is_draining_at(clock::now()) => return Ok(StreamEnd::GatewayStopped),
            Err(error) => return violation("no event stream", client.describe(&chain(&error))),
        };
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let collected = body.collect().await.map(http_body_util::Collected::to_bytes);
            let body = collected
                .or_else(|error| violation("an incomplete response", client.describe(&chain(&error))))?;
            let (status, headers) = (head.status, head.headers);
            let response = ReceivedResponse { status, headers, body, sent: opened, received: clock::now() };
            return self.rejected(client, &response);
        }
        let mut events = EventReader { body, buffer: Vec::new() };
        let mut since = vec![opened; client.query.clips.len()];
        // Some clients disconnect after an event or two, and reconnect.
        let mut events_left = if client.rng.u8(..3) == 0 { client.rng.usize(1..=2) } else { usize::MAX };
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return self.ended_early(client, opened),
                Err(why) => return violation("an event stream breaks", client.describe(&why)),
            };
            let received = clock::now();
            if let Some(pause) = event.retry {
                client.retry = pause;
            }
            if let Some(id) = event.id {
                client.last_id = id.parse().ok();
            }
            match &*event.name {
                "" if event.data.is_empty() => continue,
                "status" => {
                    let Some((index, state)) = self.state_of(client.query, event.data.as_bytes()) else {
                        return violation(
                            "an event with a body that differs from the upstream's",
                            client.describe(&event.data),
                        );
                    };
                    let before = client.last_states[index].replace(state);
                    delivered.push(Delivered { index, state, before, since: since[index], received });
                    since[index] = received;
                }
                "done" if client.is_complete() => return Ok(StreamEnd::Done),
                "done" => {
                    return violation("done before all clips are finished", client.describe(&event.data));
                }
                "error" => return self.failed(client, &event.data, opened, received),
                _ => return violation("an event with an unknown name", client.describe(&event.name)),
            }
            events_left -= 1;
            if events_left == 0 && !client.is_complete() {
                return Ok(StreamEnd::Reconnect(Duration::from_millis(client.rng.u64(..500))));
            }
        }
    }

    /// Returns the index and the state of the clip with this body.
    fn state_of(&self, query: &ClipQuery, data: &[u8]) -> Option<(usize, usize)> {
        (0..query.clips.len()).find_map(|index| {
            let (state, rest) = self.oracle.state(query, index, data)?;
            rest.is_empty().then_some((index, state))
        })
    }

    /// Checks a stream that ended without a final event: its time must be over, or the gateway must have stopped.
    fn ended_early(&self, client: &StreamClient<'_>, opened: Instant) -> Result<StreamEnd, Violation> {
        let now = clock::now();
        if self.oracle.is_draining_at(now) {
            Ok(StreamEnd::GatewayStopped)
        } else if now + self.oracle.clock_skew() >= self.oracle.deadline(None, opened) {
            Ok(StreamEnd::Reconnect(Duration::ZERO))
        } else {
            violation("an event stream ends early", client.describe("no final event"))
        }
    }

    /// Checks a stream that was rejected before its first event.
    fn rejected(
        &self,
        client: &StreamClient<'_>,
        response: &ReceivedResponse,
    ) -> Result<StreamEnd, Violation> {
        let details = || client.describe(&format!("{} {}", response.status, response.field("cache-status")));
        if !is_failure(response.status) {
            return violation("an event stream with an unexpected status", details());
        }
        let kind = if is_gateway_error(response) {
            FailureKind::GatewayError(response.status)
        } else {
            FailureKind::UpstreamError(response.status)
        };
        self.explained(client, kind, response.sent, response.received)
            .or_else(|why| violation(why, details()))?;
        Ok(StreamEnd::Reconnect(client.retry))
    }

    /// Checks a stream that ended with an error event.
    fn failed(
        &self,
        client: &StreamClient<'_>,
        data: &str,
        opened: Instant,
        received: Instant,
    ) -> Result<StreamEnd, Violation> {
        let error: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
        let code = error["statusCode"].as_u64().and_then(|code| u16::try_from(code).ok());
        let Some(status) = code.and_then(|code| StatusCode::from_u16(code).ok()) else {
            return violation("an error event without a status", client.describe(data));
        };
        // The event does not contain the origin of the error: a fault must explain it for one of these.
        let origins =
            [FailureKind::UpstreamError(status), FailureKind::InvalidBody, FailureKind::GatewayError(status)];
        let mut explained = Err("");
        for kind in origins {
            explained = explained.or_else(|_| self.explained(client, kind, opened, received));
        }
        explained.or_else(|why| violation(why, client.describe(data)))?;
        let is_over = client.last_id.as_ref().is_some_and(|id| id.as_bytes().ends_with(b":over"));
        Ok(if is_over { StreamEnd::Final } else { StreamEnd::Reconnect(client.retry) })
    }

    fn explained(
        &self,
        client: &StreamClient<'_>,
        kind: FailureKind,
        sent: Instant,
        received: Instant,
    ) -> Result<Cause, &'static str> {
        let (key, deadline) = (client.query.key, self.oracle.deadline(None, sent));
        let failed =
            FailedRequest { key, jobs: &client.query.clips, is_wait: true, sent, received, deadline, kind };
        self.oracle.explain(&failed).inspect(|&cause| self.counts.record_cause(cause))
    }

    /// Reconnects after `done`: the response must be 204.
    async fn reconnect_after_done(
        &self,
        client: &StreamClient<'_>,
        is_http2: bool,
    ) -> Result<Outcome, Violation> {
        let mut request = self.request(client.query);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = &client.last_id {
            request.headers_mut().insert("last-event-id", id.clone());
        }
        match self.start(request, is_http2).await {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => Ok(Outcome::StreamDone),
            Ok(response) => violation("no 204 after done", client.describe(response.status().as_str())),
            Err(_) if self.oracle.is_draining_at(clock::now()) => Ok(Outcome::StreamDone),
            Err(error) => violation("no response after done", client.describe(&chain(&error))),
        }
    }

    /// Checks the states: each once, in order, true, on time, and none left out that lasted long enough.
    fn check_events(&self, client: &StreamClient<'_>, delivered: &[Delivered]) -> Result<(), Violation> {
        let (oracle, query) = (&self.oracle, client.query);
        for &Delivered { index, state, before, since, received } in delivered {
            let clip = &query.clips[index];
            let max_transit = oracle.max_transit(since, received);
            let details = || {
                let (after, place) = (received - since, oracle.schedule.describe(since));
                client.describe(&format!("{} {place} state {state} after {before:?} and {after:?}", clip.id))
            };
            if before.is_some_and(|before| before >= state) {
                return violation("a state twice or out of order", details());
            }
            if state > clip.latest_possible(received) {
                return violation("an event with a state that was not reached", details());
            }
            if !oracle.is_calm(query, since, received) {
                continue;
            }
            let slack = oracle.max_age(query.kind) + max_transit;
            if state < clip.latest_certain(received - slack) {
                return violation("an event with an outdated state", details());
            }
            for missing in before.map_or(0, |before| before + 1)..state {
                let Some((from, Some(to))) = clip.certain_period(missing) else { continue };
                if to.saturating_duration_since(from.max(since)) > slack {
                    return violation("a state is missing", details());
                }
            }
            let expected_at = clip.reached_by(state).unwrap_or(since).max(since);
            if expected_at + max_transit < received {
                return violation("an event is late", details());
            }
        }
        Ok(())
    }
}

impl StreamClient<'_> {
    fn is_complete(&self) -> bool {
        self.last_states.iter().all(|&state| state >= self.query.goal)
    }

    fn describe(&self, what: &str) -> String {
        let Self { query, last_states, last_id, .. } = self;
        let ids: Vec<&str> = query.clips.iter().map(|clip| &*clip.id).collect();
        let what: String = what.chars().take(240).collect();
        format!(
            "{:?} by {:?}, {ids:?} at {last_states:?}, last id {last_id:?}: {what}",
            query.kind, query.key
        )
    }
}

/// An event. Name and data are empty if it has other fields only.
#[derive(Default)]
struct Event {
    name: String,
    id: Option<String>,
    retry: Option<Duration>,
    data: String,
}

/// Reads the events of a stream (HTML Standard, section 9.2.6), independent of the gateway's code.
struct EventReader {
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventReader {
    /// Returns the next event, or `None` at the end of the stream. Cancel safe.
    async fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let lines: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(Some(parse(&String::from_utf8(lines).map_err(|error| error.to_string())?)));
            }
            if self.buffer.len() > MAX_EVENT_BYTES {
                return Err("an event that is too long".to_owned());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
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
