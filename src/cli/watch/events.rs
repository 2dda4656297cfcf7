//! Follows one job by the event stream of a gateway.

use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::event_reader::{EventReader, EventTooLarge, ReceivedEvent};
use super::follow::{Ending, FetchedJob, Follower, Progress};
use crate::cli::job_client::{JobRequestError, error_text, job_request, message, read_response};
use crate::core::route::Goal;
use crate::protocol::sse::RETRY;
use crate::upstream::client::ResponseBody;

/// Longest time without a byte. A gateway sends a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The end of one stream.
enum StreamEnd {
    Ended(Ending),
    /// The stream ended in order, or failed and the pause before a retry is over.
    Reconnect,
    /// The server answers without events, or with those of another protocol.
    NotEvents,
}

/// Position of the client in its stream.
#[derive(Default)]
struct StreamPosition {
    id: Option<HeaderValue>,
    retry: Option<Duration>,
}

impl Follower {
    /// Follows the job by events. Returns `None` if the server does not send those of a gateway; a state in its answer
    /// counts.
    pub(super) async fn follow_events(&self, progress: &mut Progress<'_>) -> Option<Ending> {
        let mut position = StreamPosition::default();
        loop {
            match self.follow_stream(progress, &mut position).await {
                StreamEnd::Ended(ending) => return Some(ending),
                StreamEnd::NotEvents => return None,
                StreamEnd::Reconnect => {}
            }
        }
    }

    async fn follow_stream(&self, progress: &mut Progress<'_>, position: &mut StreamPosition) -> StreamEnd {
        let response = match self.open_stream(progress, position).await {
            Ok(response) => response,
            Err(error) => {
                return ended_or(progress.handle(self.failed(&error)).await, StreamEnd::Reconnect);
            }
        };
        let status = response.status();
        if status.is_success() && is_event_stream(response.headers()) {
            return self.read_events(response.into_body(), progress, position).await;
        }
        if status == StatusCode::NO_CONTENT && position.id.is_some() {
            return StreamEnd::Ended(Ending::Rejected("the gateway has no further events".to_owned()));
        }
        if status == StatusCode::NOT_ACCEPTABLE {
            return StreamEnd::NotEvents;
        }
        let otherwise = if status.is_success() { StreamEnd::NotEvents } else { StreamEnd::Reconnect };
        let fetched = match read_response(response).await {
            Ok(response) => self.classify(progress.id, response),
            Err(error) => self.failed(&error),
        };
        ended_or(progress.handle(fetched).await, otherwise)
    }

    /// Requests a stream. It has no rung: an API without events answers with the current state at once.
    async fn open_stream(
        &self,
        progress: &Progress<'_>,
        position: &StreamPosition,
    ) -> Result<Response<ResponseBody>, JobRequestError> {
        let mut request = job_request(&self.client, &self.route, &self.fields, progress.id, Goal::Now)?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json;q=0.9"));
        if let Some(id) = &position.id {
            headers.insert(LAST_EVENT_ID, id.clone());
        }
        Ok(self.client.send(request).await?)
    }

    async fn read_events(
        &self,
        mut body: ResponseBody,
        progress: &mut Progress<'_>,
        position: &mut StreamPosition,
    ) -> StreamEnd {
        let mut reader = EventReader::default();
        loop {
            while let Some(event) = reader.next_event() {
                position.retry = event.retry.or(position.retry);
                position.id = event.id.as_deref().and_then(|id| id.parse().ok()).or(position.id.take());
                let end = match event.name.as_str() {
                    "status" => ended(progress.handle(self.classify_event(progress, event)).await),
                    "error" => Some(ended_or(progress.handle(error_of(&event)).await, StreamEnd::Reconnect)),
                    "done" => Some(StreamEnd::Reconnect),
                    _ => Some(StreamEnd::NotEvents),
                };
                if let Some(end) = end {
                    return end;
                }
            }
            let failure = match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(None) => {
                    tokio::time::sleep(position.retry.unwrap_or(RETRY)).await;
                    return StreamEnd::Reconnect;
                }
                Ok(Some(Ok(frame))) => match frame.into_data().map(|bytes| reader.push(&bytes)) {
                    Ok(Ok(())) | Err(_) => continue, // trailers are not events
                    Ok(Err(EventTooLarge)) => JobRequestError::CutOff.to_string(),
                },
                Ok(Some(Err(_))) => "the event stream was cut off".to_owned(),
                Err(_) => "the event stream is silent".to_owned(),
            };
            progress.pause(failure, None).await;
            return StreamEnd::Reconnect;
        }
    }

    /// Reads the state in an event, which has the body of a response.
    fn classify_event(&self, progress: &Progress<'_>, event: ReceivedEvent) -> FetchedJob {
        self.classify(progress.id, Response::new(event.data.freeze()))
    }
}

fn ended(ending: Option<Ending>) -> Option<StreamEnd> {
    ending.map(StreamEnd::Ended)
}

fn ended_or(ending: Option<Ending>, otherwise: StreamEnd) -> StreamEnd {
    ending.map_or(otherwise, StreamEnd::Ended)
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Reads an error event. One with an id is final: a reconnect would get 204.
fn error_of(event: &ReceivedEvent) -> FetchedJob {
    let body: Value = serde_json::from_slice(&event.data).unwrap_or_default();
    let code = ["statusCode", "status"].into_iter().find_map(|name| body[name].as_u64());
    let status = code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let reason = match status {
        Some(status) => message(status, &event.data),
        None => error_text(&event.data).unwrap_or_else(|| "the upstream answers with an error".to_owned()),
    };
    match event.id {
        Some(_) => FetchedJob::Final(reason),
        None => FetchedJob::Retryable(reason, Some(event.retry.unwrap_or(RETRY))),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn only_the_media_type_of_events_begins_a_stream() {
        for (kind, expected) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; charset=utf-8", true),
            ("application/json", false),
            ("text/event-stream2", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_event_stream(&headers), expected, "{kind}");
        }
        assert!(!is_event_stream(&HeaderMap::new()));
    }

    #[test]
    fn an_error_with_an_id_is_final() {
        let event = |id: Option<&str>| ReceivedEvent {
            name: "error".to_owned(),
            id: id.map(str::to_owned),
            retry: None,
            data: BytesMut::from(r#"{"message":"no such job","statusCode":404}"#),
        };
        assert!(
            matches!(error_of(&event(Some("x:over"))), FetchedJob::Final(reason) if reason == "404 Not Found: no such job")
        );
        assert!(matches!(error_of(&event(None)), FetchedJob::Retryable(_, Some(RETRY))));
    }
}
