//! One clip, followed up its ladder: asked for its next rung, again and again.
//!
//! It knows nothing of who watches.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::body::Body;
use crate::clock;
use crate::headers::retry_after;
use crate::model::answer::{self, Sliced};
use crate::model::backoff::Backoff;
use crate::model::clip::{ClipId, ClipSet};
use crate::model::query;
use crate::model::route::{Form, Goal, Route, Rung};
use crate::upstream::client::Client;

/// The pauses between tries.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15) };

/// The least time between two requests where the first was answered too early.
const GAP: Duration = Duration::from_secs(1);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 8 << 20;

/// Letters of somebody else's message that are shown.
const MAX_MESSAGE: usize = 200;

/// What is the same for all clips that are followed.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) route: Arc<Route>,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) goal: Rung,
    pub(super) until: Instant,
}

/// Something happened to a clip.
#[derive(Debug)]
pub(super) enum News {
    /// It is on this rung now, and this is its body.
    State(Rung, Bytes),
    /// It could not be asked for, and will be again after so long.
    Trouble(String, Duration),
    /// No more is to come.
    Ended(Ending),
}

/// How following a clip ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// It is where it was wanted.
    Reached,
    /// It is on a rung where clips fail.
    Failed,
    /// The time is over.
    TimedOut,
    /// The answer is final, and no state.
    Refused(String),
}

enum Answer {
    State(Rung, Bytes),
    Trouble(String, Option<Duration>),
    Final(String),
}

impl Follower {
    /// Follows one clip to its end, the last news. Ends early when nobody takes them.
    pub(super) async fn follow(&self, id: &ClipId, nth: usize, tell: &mpsc::Sender<(usize, News)>) {
        let climb = self.climb(id, nth, tell);
        let ending = match tokio::time::timeout_at(self.until.into(), climb).await {
            Ok(ending) => ending,
            Err(_) => Ending::TimedOut,
        };
        let _ = tell.send((nth, News::Ended(ending))).await;
    }

    async fn climb(&self, id: &ClipId, nth: usize, tell: &mpsc::Sender<(usize, News)>) -> Ending {
        let (mut known, mut failures) = (None, 0);
        loop {
            let wanted = known.map_or(Some(self.route.ladder.lowest()), |rung| self.route.ladder.next(rung));
            let wanted = wanted.map_or(self.goal, |rung| rung.min(self.goal));
            let asked_at = clock::now();
            match self.ask(id, wanted).await {
                Answer::State(rung, body) => {
                    failures = 0;
                    if known < Some(rung) {
                        known = Some(rung);
                        let _ = tell.send((nth, News::State(rung, body))).await;
                    }
                    if self.route.ladder.is_failure(rung) {
                        return Ending::Failed;
                    }
                    if rung >= self.goal {
                        return Ending::Reached;
                    }
                    if rung < wanted {
                        tokio::time::sleep_until((asked_at + GAP).into()).await;
                    }
                }
                Answer::Trouble(why, asked_pause) => {
                    failures += 1;
                    let pause = asked_pause.unwrap_or_else(|| BACKOFF.pause(failures, fastrand::f64()));
                    let _ = tell.send((nth, News::Trouble(why, pause))).await;
                    tokio::time::sleep(pause).await;
                }
                Answer::Final(why) => return Ending::Refused(why),
            }
        }
    }

    async fn ask(&self, id: &ClipId, wanted: Rung) -> Answer {
        let clips = ClipSet::new([id.clone()]);
        let target = query::write(&self.route, Form::Single, &clips, Goal::Rung(wanted));
        let uri = PathAndQuery::try_from(target).ok().and_then(|target| self.client.uri(&target).ok());
        let Some(uri) = uri else { return Answer::Final("its id fits into no URL".to_owned()) };
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        let fields = request.headers_mut();
        fields.insert(ACCEPT, HeaderValue::from_static("application/json"));
        fields.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("clipgate-watch/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(authorization) = &self.authorization {
            fields.insert(AUTHORIZATION, authorization.clone());
        }
        let response = match self.client.send(request).await {
            Ok(response) => response,
            Err(error) => return Answer::Trouble(error.to_string(), None),
        };
        let (head, body) = response.into_parts();
        match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => self.judge(&clips, head.status, &head.headers, body.to_bytes()),
            Err(_) => Answer::Trouble("the answer was cut off".to_owned(), None),
        }
    }

    fn judge(&self, clips: &ClipSet, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Answer {
        if !status.is_success() {
            let why = message(status, &body);
            let is_passing = status.is_server_error()
                || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
            return match is_passing {
                true => Answer::Trouble(why, retry_after(headers, SystemTime::now())),
                false => Answer::Final(why),
            };
        }
        match answer::slice(&self.route, Form::Single, clips, &body) {
            Sliced::Clips { mut clips, .. } => match clips.pop() {
                Some(answer::Cut { rung: Some(rung), body, .. }) => Answer::State(rung, body),
                _ => Answer::Final("its status is a word that is not known".to_owned()),
            },
            Sliced::Whole => {
                Answer::Final("the answer is not the clip: is --url that of the API or a gateway?".to_owned())
            }
            Sliced::Garbled => Answer::Trouble("the answer is no JSON".to_owned(), None),
        }
    }
}

/// The status, and what an error's body says in one of its usual places; safe to show.
fn message(status: StatusCode, body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = [&body["message"], &body["error"]["message"], &body["error"], &body["title"]];
    match said.into_iter().find_map(Value::as_str) {
        Some(text) => {
            let shown: String = text.chars().take(MAX_MESSAGE).flat_map(char::escape_debug).collect();
            format!("{status}: {shown}")
        }
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errors_message_is_found_in_each_shape_and_cannot_move_the_cursor() {
        let rows = [
            (r#"{"message":"no such clip","statusCode":404}"#, "404 Not Found: no such clip"),
            (r#"{"error":{"message":"no"}}"#, "404 Not Found: no"),
            (r#"{"error":"no"}"#, "404 Not Found: no"),
            (r#"{"title":"Nothing","status":404}"#, "404 Not Found: Nothing"),
            ("<html>", "404 Not Found"),
            ("", "404 Not Found"),
            ("{\"message\":\"\\u001b[2Jgone\"}", "404 Not Found: \\u{1b}[2Jgone"),
        ];
        for (body, expected) in rows {
            assert_eq!(message(StatusCode::NOT_FOUND, body.as_bytes()), expected);
        }
        assert_eq!(rows.len(), 7);
    }
}
