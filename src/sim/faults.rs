//! Faults that a test injects: kind, matching requests and frequency, and their syntax on the command line.
//!
//! This file only chooses faults. `api` and `server` carry them out.

use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use http::{HeaderName, HeaderValue, StatusCode};

use super::keys::RecordedKey;
use super::options::ListFormat;

/// The kind of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Closes the connection without a response. With [`FaultTarget::Any`] when the connection is accepted, else
    /// after the request is read. Over HTTP/2 the request's stream is reset instead.
    Refuse,
    /// Resets the connection (TCP RST) if the request has no response after this time; at zero always. Over HTTP/2
    /// the request's stream is reset instead.
    Reset {
        /// Time from the request to the reset.
        after: Duration,
    },
    /// Never answers.
    Hang,
    /// Answers with this status instead of the correct response.
    Status {
        /// Status of the response.
        status: StatusCode,
        /// Value of `Retry-After`, rounded up to seconds. `None`: no such field.
        retry_after: Option<Duration>,
        /// Body of the response.
        body: ErrorBody,
        /// Time from the request to the response.
        after: Duration,
    },
    /// Breaks the correct response off in the middle of its body.
    Cut,
    /// Answers 200 with an HTML page at once.
    Html,
    /// Sends the correct response this long after its request. The state in it is that of the request.
    Slow {
        /// Time from the request to the response.
        after: Duration,
    },
    /// Adds a header field to the correct response, such as a `Retry-After`.
    Field(HeaderName, HeaderValue),
    /// Gives the correct response for several clips this outer form.
    Shape(ListFormat),
}

/// The body of an injected error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// JSON as the API documents it.
    Json,
    /// An HTML page, as a proxy between gateway and API would write it.
    Html,
    /// No body.
    Empty,
}

impl Fault {
    /// Returns a connection reset at once.
    pub fn reset() -> Self {
        Self::reset_after(Duration::ZERO)
    }

    /// Returns a connection reset in the middle of a poll.
    pub fn reset_after(after: Duration) -> Self {
        Self::Reset { after }
    }

    /// Returns a response with this status at once, with the documented JSON.
    ///
    /// # Panics
    /// When the number is not from 100 to 999.
    pub fn status(status: u16) -> Self {
        Self::status_with(status, ErrorBody::Json)
    }

    /// Returns a response with this status and body at once.
    ///
    /// # Panics
    /// When the number is not from 100 to 999.
    pub fn status_with(status: u16, body: ErrorBody) -> Self {
        let status = StatusCode::from_u16(status).expect("the caller names a status");
        Self::Status { status, retry_after: None, body, after: Duration::ZERO }
    }

    /// Returns a response with this status and `Retry-After` at once.
    ///
    /// # Panics
    /// When the number is not from 100 to 999.
    pub fn retry_after(status: u16, retry_after: Duration) -> Self {
        let status = StatusCode::from_u16(status).expect("the caller names a status");
        Self::Status { status, retry_after: Some(retry_after), body: ErrorBody::Json, after: Duration::ZERO }
    }
}

/// The requests that a fault matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultTarget {
    /// All requests.
    Any,
    /// Requests for the states of clips and jobs.
    Polls,
    /// Requests for the state of this clip or job, alone or among others.
    Clip(String),
    /// Requests whose target starts with this text.
    Path(String),
    /// Requests with this API key.
    Key(String),
}

/// The number or share of matching requests that fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Frequency {
    /// This number of requests, from now on.
    Next(u32),
    /// A random share, 0 to 1.
    Share(f64),
}

/// An injected fault.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    /// The matching requests.
    pub target: FaultTarget,
    /// The kind of the fault.
    pub fault: Fault,
    /// The number or share of matching requests that fail.
    pub frequency: Frequency,
}

/// The properties of a request that select its fault.
pub(super) struct FaultContext<'a> {
    pub(super) target: &'a str,
    /// The requested clips or job. `None`: not a request for states.
    pub(super) clips: Option<&'a [String]>,
    pub(super) key: Option<RecordedKey>,
}

impl FaultTarget {
    fn matches(&self, request: &FaultContext<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Polls => request.clips.is_some(),
            Self::Clip(id) => request.clips.is_some_and(|ids| ids.contains(id)),
            Self::Path(prefix) => request.target.starts_with(prefix.as_str()),
            Self::Key(key) => request.key.is_some_and(|seen| seen.matches(key)),
        }
    }
}

/// The pending faults, the earliest first.
#[derive(Default)]
pub(super) struct FaultQueue(Vec<FaultSpec>);

impl FaultQueue {
    pub(super) fn inject(&mut self, spec: FaultSpec) {
        self.0.push(spec);
    }

    /// Takes a fault for a connection that was just accepted, and returns whether to close it.
    pub(super) fn refuses_connection(&mut self, rng: &mut Rng) -> bool {
        self.take_where(rng, FaultSpec::is_for_connections).is_some()
    }

    /// Takes the first fault that matches the request.
    pub(super) fn take(&mut self, request: &FaultContext<'_>, rng: &mut Rng) -> Option<Fault> {
        self.take_where(rng, |spec| !spec.is_for_connections() && spec.target.matches(request))
    }

    fn take_where(&mut self, rng: &mut Rng, fits: impl Fn(&FaultSpec) -> bool) -> Option<Fault> {
        let at = self.0.iter().position(|spec| fits(spec) && spec.frequency.occurs(rng))?;
        match &mut self.0[at].frequency {
            Frequency::Next(1) => Some(self.0.remove(at).fault),
            Frequency::Next(left) => {
                *left -= 1;
                Some(self.0[at].fault.clone())
            }
            Frequency::Share(_) => Some(self.0[at].fault.clone()),
        }
    }
}

impl Frequency {
    fn occurs(self, rng: &mut Rng) -> bool {
        match self {
            Self::Next(left) => left > 0,
            Self::Share(share) => rng.f64() < share,
        }
    }
}

impl FaultSpec {
    fn is_for_connections(&self) -> bool {
        self.target == FaultTarget::Any && self.fault == Fault::Refuse
    }
}

/// Why a text is not a valid fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultSpecError {
    /// The text has no frequency.
    #[error(
        "the frequency is missing; add it after a colon: reset:5% (of all requests) or reset:3 (the next three)"
    )]
    MissingFrequency,
    /// The frequency is neither a share nor a count.
    #[error("`{0}` is not a valid frequency; use a share from 0% to 100%, or a count: reset:5% or reset:3")]
    InvalidFrequency(String),
    /// No fault has this name.
    #[error(
        "`{0}` is not a known fault; use refuse, reset, slow, hang, cut, html, or a status from 400 to 599"
    )]
    UnknownFault(String),
    /// The fault has no such argument.
    #[error(
        "`{fault}={argument}` is not valid: reset and slow take a time (reset=10s), a status takes a time for Retry-After \
         (429=3s) or html or empty for its body (502=html), the other faults take no argument"
    )]
    InvalidArgument {
        /// Name of the fault.
        fault: String,
        /// Argument after the `=`.
        argument: String,
    },
}

impl FromStr for FaultSpec {
    type Err = FaultSpecError;

    /// Parses `FAULT[=ARGUMENT]:FREQUENCY`.
    fn from_str(text: &str) -> Result<Self, FaultSpecError> {
        let (fault, frequency) = text.rsplit_once(':').ok_or(FaultSpecError::MissingFrequency)?;
        let frequency = parse_frequency(frequency)
            .ok_or_else(|| FaultSpecError::InvalidFrequency(frequency.to_owned()))?;
        let (name, argument) = match fault.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (fault, None),
        };
        Ok(Self { target: FaultTarget::Any, fault: parse_fault(name, argument)?, frequency })
    }
}

fn parse_frequency(text: &str) -> Option<Frequency> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(Frequency::Share(percent / 100.0))
        }
        None => text.parse().ok().filter(|&times| times > 0).map(Frequency::Next),
    }
}

/// Delay of a `slow` without a time.
const DEFAULT_DELAY: Duration = Duration::from_secs(1);

fn parse_fault(name: &str, argument: Option<&str>) -> Result<Fault, FaultSpecError> {
    let bad = |argument: &str| FaultSpecError::InvalidArgument {
        fault: name.to_owned(),
        argument: argument.to_owned(),
    };
    let time = |text: &str| humantime::parse_duration(text).map_err(|_| bad(text));
    let plain = |fault| match argument {
        None => Ok(fault),
        Some(argument) => Err(bad(argument)),
    };
    match name {
        "refuse" => plain(Fault::Refuse),
        "hang" => plain(Fault::Hang),
        "cut" => plain(Fault::Cut),
        "html" => plain(Fault::Html),
        "reset" => Ok(Fault::reset_after(argument.map(time).transpose()?.unwrap_or_default())),
        "slow" => Ok(Fault::Slow { after: argument.map_or(Ok(DEFAULT_DELAY), time)? }),
        _ => match name.parse::<u16>() {
            Ok(status @ 400..=599) => match argument {
                None if status == 429 => Ok(Fault::retry_after(status, Duration::from_secs(1))),
                None => Ok(Fault::status(status)),
                Some("html") => Ok(Fault::status_with(status, ErrorBody::Html)),
                Some("empty") => Ok(Fault::status_with(status, ErrorBody::Empty)),
                Some(text) => Ok(Fault::retry_after(status, time(text)?)),
            },
            _ => Err(FaultSpecError::UnknownFault(name.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::keys::AcceptedKeys;

    fn context<'a>(target: &'a str, clips: Option<&'a [String]>) -> FaultContext<'a> {
        FaultContext { target, clips, key: None }
    }

    #[test]
    fn a_fault_hits_matching_requests_as_often_as_its_frequency() {
        let mut faults = FaultQueue::default();
        let mut rng = Rng::with_seed(1);
        let next = |target, fault, times| FaultSpec { target, fault, frequency: Frequency::Next(times) };
        faults.inject(next(FaultTarget::Clip("a".into()), Fault::Hang, 2));
        faults.inject(next(FaultTarget::Path("/x".into()), Fault::Cut, 1));
        faults.inject(next(FaultTarget::Polls, Fault::Html, 1));
        let ids = ["b".to_owned(), "a".to_owned()];
        let mut take = |target, clips| faults.take(&context(target, clips), &mut rng);
        assert_eq!(take("/", None), None);
        assert_eq!(take("/x?y", None), Some(Fault::Cut));
        assert_eq!(take("/x", None), None);
        assert_eq!(take("/", Some(&ids[..1])), Some(Fault::Html));
        assert_eq!(take("/", Some(&ids[..1])), None);
        assert_eq!([0; 3].map(|_| take("/", Some(&ids))), [Some(Fault::Hang), Some(Fault::Hang), None]);
    }

    #[test]
    fn a_fault_for_one_key_spares_the_requests_of_other_keys() {
        let mut rng = Rng::with_seed(1);
        let keys = AcceptedKeys::new(None, &mut rng);
        let mut faults = FaultQueue::default();
        faults.inject(FaultSpec {
            target: FaultTarget::Key("a".into()),
            fault: Fault::Hang,
            frequency: Frequency::Share(1.0),
        });
        let mut take = |authorization: &[u8]| {
            let context = FaultContext { key: keys.record("Bearer ", authorization), ..context("/", None) };
            faults.take(&context, &mut rng)
        };
        assert_eq!(take(b"Bearer a"), Some(Fault::Hang));
        assert_eq!((take(b"Bearer b"), take(b"")), (None, None));
    }

    #[test]
    fn a_fault_with_a_share_hits_that_part_of_the_requests_without_end() {
        let mut faults = FaultQueue::default();
        let mut rng = Rng::with_seed(1);
        faults.inject(FaultSpec {
            target: FaultTarget::Any,
            fault: Fault::Hang,
            frequency: Frequency::Share(0.1),
        });
        let hits = (0..10_000).filter(|_| faults.take(&context("/", None), &mut rng).is_some()).count();
        assert!((800..1200).contains(&hits), "{hits}");
    }

    #[test]
    fn a_refuse_fault_for_any_target_hits_connections_not_requests() {
        let mut faults = FaultQueue::default();
        let mut rng = Rng::with_seed(1);
        faults.inject("refuse:1".parse().unwrap());
        assert_eq!(faults.take(&context("/", None), &mut rng), None);
        assert!(faults.refuses_connection(&mut rng));
        assert!(!faults.refuses_connection(&mut rng));
    }

    #[test]
    fn the_command_line_can_name_every_fault() {
        let cases = [
            ("refuse:1%", Fault::Refuse, Frequency::Share(0.01)),
            ("reset:50%", Fault::reset(), Frequency::Share(0.5)),
            ("reset=10s:3", Fault::reset_after(Duration::from_secs(10)), Frequency::Next(3)),
            ("slow=900ms:5%", Fault::Slow { after: Duration::from_millis(900) }, Frequency::Share(0.05)),
            ("slow:1", Fault::Slow { after: Duration::from_secs(1) }, Frequency::Next(1)),
            ("hang:1", Fault::Hang, Frequency::Next(1)),
            ("429:100%", Fault::retry_after(429, Duration::from_secs(1)), Frequency::Share(1.0)),
            ("503=2s:1", Fault::retry_after(503, Duration::from_secs(2)), Frequency::Next(1)),
            ("500:0%", Fault::status(500), Frequency::Share(0.0)),
            ("502=html:1", Fault::status_with(502, ErrorBody::Html), Frequency::Next(1)),
            ("504=empty:1", Fault::status_with(504, ErrorBody::Empty), Frequency::Next(1)),
            ("cut:1", Fault::Cut, Frequency::Next(1)),
            ("html:1", Fault::Html, Frequency::Next(1)),
        ];
        for (text, fault, frequency) in cases {
            assert_eq!(text.parse(), Ok(FaultSpec { target: FaultTarget::Any, fault, frequency }), "{text}");
        }
    }

    #[test]
    fn an_invalid_fault_gets_an_error_that_names_the_valid_ones() {
        let cases = [
            ("reset", "the frequency is missing; add it after a colon"),
            ("reset:", "`` is not a valid frequency"),
            ("reset:0", "`0` is not a valid frequency"),
            ("reset:101%", "`101%` is not a valid frequency"),
            ("reset:NaN%", "`NaN%` is not a valid frequency"),
            ("rest:1%", "`rest` is not a known fault"),
            ("200:1%", "`200` is not a known fault"),
            ("reset=soon:1%", "`reset=soon` is not valid: reset and slow take a time"),
            ("hang=1s:1%", "`hang=1s`"),
        ];
        for (text, start) in cases {
            let message = text.parse::<FaultSpec>().unwrap_err().to_string();
            assert!(message.starts_with(start), "{text}: {message}");
        }
    }
}
