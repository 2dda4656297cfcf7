//! Faults on order: what goes wrong, for which requests, how often; and their spelling on the command line.
//!
//! It only decides; `api` and `server` carry out.

use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;

use super::ListFormat;
use super::keys::RecordedKey;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed without a byte. With [`On::Any`] as soon as it is accepted, before any request
    /// is read; else once the request is. Over HTTP/2 a request's own stream is reset in its place.
    Refuse,
    /// The connection is reset (TCP RST) so long after the request came, if it stands unanswered by then; at
    /// zero always. Over HTTP/2 the stream is.
    Reset {
        /// How long after.
        after: Duration,
    },
    /// It is never answered.
    Hang,
    /// An answer of this status in place of the right one, so long after the request came.
    Status {
        /// The status.
        status: StatusCode,
        /// What `Retry-After` says, in whole seconds; `None`: it is not there.
        retry_after: Option<Duration>,
        /// The body.
        body: ErrorBody,
        /// How long after.
        after: Duration,
    },
    /// The right answer breaks off in the middle of its body.
    Cut,
    /// A page of HTML comes at once, as 200.
    Html,
    /// The right answer, if it is for several clips, has this shape.
    Shape(ListFormat),
}

/// What an error's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// The documented JSON.
    Json,
    /// A page, as a proxy on the way would write it.
    Html,
    /// Nothing.
    Empty,
}

impl Fault {
    /// The connection is reset at once.
    pub fn reset() -> Self {
        Self::reset_after(Duration::ZERO)
    }

    /// The connection is reset in mid-poll.
    pub fn reset_after(after: Duration) -> Self {
        Self::Reset { after }
    }

    /// This status at once, with a body of the documented shape.
    ///
    /// # Panics
    /// When the number is no status, 100 to 999.
    pub fn status(status: u16) -> Self {
        Self::status_with(status, ErrorBody::Json)
    }

    /// This status at once, with this body.
    ///
    /// # Panics
    /// When the number is no status, 100 to 999.
    pub fn status_with(status: u16, body: ErrorBody) -> Self {
        let status = StatusCode::from_u16(status).expect("the caller names a status");
        Self::Status { status, retry_after: None, body, after: Duration::ZERO }
    }

    /// This status at once, with `Retry-After`.
    ///
    /// # Panics
    /// When the number is no status, 100 to 999.
    pub fn retry_after(status: u16, retry_after: Duration) -> Self {
        let status = StatusCode::from_u16(status).expect("the caller names a status");
        Self::Status { status, retry_after: Some(retry_after), body: ErrorBody::Json, after: Duration::ZERO }
    }
}

/// Which requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultTarget {
    /// Every one, whatever it asks for.
    Any,
    /// Those that ask for clips' states.
    Polls,
    /// Those of them that name this clip.
    Clip(String),
    /// Those whose target begins so.
    Path(String),
    /// Those with this key.
    Key(String),
}

/// How many of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Frequency {
    /// So many, from now on.
    Next(u32),
    /// A part, 0 to 1, by chance.
    Share(f64),
}

/// A fault on order.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    /// Which requests.
    pub target: FaultTarget,
    /// What goes wrong.
    pub fault: Fault,
    /// How many of them.
    pub frequency: Frequency,
}

/// What a fault is chosen by.
pub(super) struct FaultContext<'a> {
    pub(super) target: &'a str,
    /// `None`: it asks for no clip's state.
    pub(super) clips: Option<&'a [String]>,
    pub(super) key: Option<RecordedKey>,
}

impl FaultTarget {
    fn matches(&self, asked: &FaultContext<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Polls => asked.clips.is_some(),
            Self::Clip(id) => asked.clips.is_some_and(|ids| ids.contains(id)),
            Self::Path(prefix) => asked.target.starts_with(prefix.as_str()),
            Self::Key(key) => asked.key.is_some_and(|seen| seen.matches(key)),
        }
    }
}

/// The faults on order, the earliest first.
#[derive(Default)]
pub(super) struct FaultQueue(Vec<FaultSpec>);

impl FaultQueue {
    pub(super) fn inject(&mut self, spec: FaultSpec) {
        self.0.push(spec);
    }

    /// Whether a connection just accepted is closed.
    pub(super) fn refuses_connection(&mut self, rng: &mut Rng) -> bool {
        self.take_where(rng, FaultSpec::is_for_connections).is_some()
    }

    /// What goes wrong with this request.
    pub(super) fn take(&mut self, asked: &FaultContext<'_>, rng: &mut Rng) -> Option<Fault> {
        self.take_where(rng, |spec| !spec.is_for_connections() && spec.target.matches(asked))
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

/// Why a text orders no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultSpecError {
    /// It does not say how often.
    #[error("say how often after a colon, as in reset:5% (of all) or reset:3 (the next three)")]
    MissingFrequency,
    /// What stands there is no number and no share.
    #[error("`{0}` is not how often: write a share, 0% to 100%, or a count, as in reset:5% or reset:3")]
    InvalidFrequency(String),
    /// No fault has this name.
    #[error("`{0}` is no fault: there are refuse, reset, hang, cut, html, and any status 400 to 599")]
    UnknownFault(String),
    /// The fault takes nothing like what follows the `=`.
    #[error(
        "`{fault}={argument}`: reset takes a time (reset=10s), a status a time for Retry-After (429=3s) or html \
         or empty for its body (502=html), the others nothing"
    )]
    InvalidArgument {
        /// The fault.
        fault: String,
        /// What follows.
        argument: String,
    },
}

impl FromStr for FaultSpec {
    type Err = FaultSpecError;

    /// Reads `FAULT[=ARGUMENT]:SHARE`.
    fn from_str(text: &str) -> Result<Self, FaultSpecError> {
        let (what, often) = text.rsplit_once(':').ok_or(FaultSpecError::MissingFrequency)?;
        let often =
            parse_frequency(often).ok_or_else(|| FaultSpecError::InvalidFrequency(often.to_owned()))?;
        let (name, argument) = match what.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (what, None),
        };
        Ok(Self { target: FaultTarget::Any, fault: parse_fault(name, argument)?, frequency: often })
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

    fn asked<'a>(target: &'a str, clips: Option<&'a [String]>) -> FaultContext<'a> {
        FaultContext { target, clips, key: None }
    }

    #[test]
    fn a_fault_comes_as_often_as_ordered_to_the_requests_it_is_for() {
        let mut faults = FaultQueue::default();
        let mut rng = Rng::with_seed(1);
        let next = |on, fault, times| FaultSpec { target: on, fault, frequency: Frequency::Next(times) };
        faults.inject(next(FaultTarget::Clip("a".into()), Fault::Hang, 2));
        faults.inject(next(FaultTarget::Path("/x".into()), Fault::Cut, 1));
        faults.inject(next(FaultTarget::Polls, Fault::Html, 1));
        let ids = ["b".to_owned(), "a".to_owned()];
        let mut take = |target, clips| faults.take(&asked(target, clips), &mut rng);
        assert_eq!(take("/", None), None);
        assert_eq!(take("/x?y", None), Some(Fault::Cut));
        assert_eq!(take("/x", None), None);
        assert_eq!(take("/", Some(&ids[..1])), Some(Fault::Html));
        assert_eq!(take("/", Some(&ids[..1])), None);
        assert_eq!([0; 3].map(|_| take("/", Some(&ids))), [Some(Fault::Hang), Some(Fault::Hang), None]);
    }

    #[test]
    fn a_fault_of_one_key_concerns_no_other() {
        let mut rng = Rng::with_seed(1);
        let keys = AcceptedKeys::new(None, &mut rng);
        let mut faults = FaultQueue::default();
        faults.inject(FaultSpec {
            target: FaultTarget::Key("a".into()),
            fault: Fault::Hang,
            frequency: Frequency::Share(1.0),
        });
        let mut take = |authorization: &[u8]| {
            let asked = FaultContext { key: keys.record(authorization), ..asked("/", None) };
            faults.take(&asked, &mut rng)
        };
        assert_eq!(take(b"Bearer a"), Some(Fault::Hang));
        assert_eq!((take(b"Bearer b"), take(b"")), (None, None));
    }

    #[test]
    fn a_share_comes_by_chance_and_never_ends() {
        let mut faults = FaultQueue::default();
        let mut rng = Rng::with_seed(1);
        faults.inject(FaultSpec {
            target: FaultTarget::Any,
            fault: Fault::Hang,
            frequency: Frequency::Share(0.1),
        });
        let came = (0..10_000).filter(|_| faults.take(&asked("/", None), &mut rng).is_some()).count();
        assert!((800..1200).contains(&came), "{came}");
    }

    #[test]
    fn refusing_any_is_for_connections_and_not_for_requests() {
        let mut faults = FaultQueue::default();
        let mut rng = Rng::with_seed(1);
        faults.inject("refuse:1".parse().unwrap());
        assert_eq!(faults.take(&asked("/", None), &mut rng), None);
        assert!(faults.refuses_connection(&mut rng));
        assert!(!faults.refuses_connection(&mut rng));
    }

    #[test]
    fn the_command_line_spells_every_fault() {
        let cases = [
            ("refuse:1%", Fault::Refuse, Frequency::Share(0.01)),
            ("reset:50%", Fault::reset(), Frequency::Share(0.5)),
            ("reset=10s:3", Fault::reset_after(Duration::from_secs(10)), Frequency::Next(3)),
            ("hang:1", Fault::Hang, Frequency::Next(1)),
            ("429:100%", Fault::retry_after(429, Duration::from_secs(1)), Frequency::Share(1.0)),
            ("503=2s:1", Fault::retry_after(503, Duration::from_secs(2)), Frequency::Next(1)),
            ("500:0%", Fault::status(500), Frequency::Share(0.0)),
            ("502=html:1", Fault::status_with(502, ErrorBody::Html), Frequency::Next(1)),
            ("504=empty:1", Fault::status_with(504, ErrorBody::Empty), Frequency::Next(1)),
            ("cut:1", Fault::Cut, Frequency::Next(1)),
            ("html:1", Fault::Html, Frequency::Next(1)),
        ];
        for (text, fault, often) in cases {
            assert_eq!(
                text.parse(),
                Ok(FaultSpec { target: FaultTarget::Any, fault, frequency: often }),
                "{text}"
            );
        }
    }

    #[test]
    fn a_text_that_orders_nothing_is_told_what_would() {
        let cases = [
            ("reset", "say how often after a colon"),
            ("reset:", "`` is not how often"),
            ("reset:0", "`0` is not how often"),
            ("reset:101%", "`101%` is not how often"),
            ("reset:NaN%", "`NaN%` is not how often"),
            ("rest:1%", "`rest` is no fault"),
            ("200:1%", "`200` is no fault"),
            ("reset=soon:1%", "`reset=soon`: reset takes a time"),
            ("hang=1s:1%", "`hang=1s`"),
        ];
        for (text, start) in cases {
            let message = text.parse::<FaultSpec>().unwrap_err().to_string();
            assert!(message.starts_with(start), "{text}: {message}");
        }
    }
}
