//! Random requests: key, jobs, status, time-outs and the moment of a disconnect, all from one seed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::clips::{COMPLETED, Clip, Clips};

/// Number of keys that the upstream accepts and that stay within their quotas.
pub(crate) const KEYS: u8 = 8;

/// The API key of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// One of [`KEYS`].
    Valid(u8),
    /// Accepted, and sends more requests than its quotas allow.
    OverQuota,
    /// Rejected by the upstream.
    Invalid(u8),
}

impl Key {
    /// Returns the keys that the upstream accepts.
    pub(crate) fn accepted() -> impl Iterator<Item = Key> {
        (0..KEYS).map(Key::Valid).chain([Key::OverQuota])
    }

    pub(crate) fn text(self) -> String {
        match self {
            Key::Valid(number) => format!("soak-{number}"),
            Key::OverQuota => "soak-greedy".to_owned(),
            Key::Invalid(number) => format!("stranger-{number}"),
        }
    }

    /// Returns the position among the accepted keys.
    pub(crate) fn index(self) -> Option<usize> {
        match self {
            Key::Valid(number) => Some(number.into()),
            Key::OverQuota => Some(KEYS.into()),
            Key::Invalid(_) => None,
        }
    }

    /// Returns the bit of the key in the sets of [`Clip`]; 0 for rejected keys.
    pub(crate) fn bit(self) -> u64 {
        self.index().map_or(0, |place| 1 << place)
    }
}

/// Kinds of requests: the rows of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Single,
    Multi,
    Wait,
    Waits,
    Prefer,
    State,
    Conditional,
    NoCache,
    NoStore,
    OnlyIfCached,
    InvalidKey,
    UnknownClip,
    OverQuota,
    EventStream,
    Removed,
    Throttled,
    Parked,
    ParkedStream,
    Echo,
    Mirror,
    Stream,
}

impl RequestKind {
    pub(crate) const ALL: [(RequestKind, &'static str); 21] = [
        (RequestKind::Single, "finished clip"),
        (RequestKind::Multi, "finished clips"),
        (RequestKind::Wait, "wait for a clip"),
        (RequestKind::Waits, "wait for clips"),
        (RequestKind::Prefer, "Prefer: wait"),
        (RequestKind::State, "current state"),
        (RequestKind::Conditional, "If-None-Match"),
        (RequestKind::NoCache, "no-cache"),
        (RequestKind::NoStore, "no-store"),
        (RequestKind::OnlyIfCached, "only-if-cached"),
        (RequestKind::InvalidKey, "rejected key"),
        (RequestKind::UnknownClip, "unknown clip"),
        (RequestKind::OverQuota, "over quota"),
        (RequestKind::EventStream, "event stream"),
        (RequestKind::Removed, "removed clip"),
        (RequestKind::Throttled, "job always 429"),
        (RequestKind::Parked, "parked at stop"),
        (RequestKind::ParkedStream, "stream at stop"),
        (RequestKind::Echo, "passed GET"),
        (RequestKind::Mirror, "passed POST"),
        (RequestKind::Stream, "passed stream"),
    ];
}

/// A request for the states of clips.
#[derive(Clone)]
pub(crate) struct ClipQuery {
    pub(crate) kind: RequestKind,
    pub(crate) key: Key,
    pub(crate) is_single: bool,
    /// In the order of the query.
    pub(crate) clips: Vec<Arc<Clip>>,
    /// The state to wait for; `None` requests the current state.
    pub(crate) goal: Option<usize>,
    pub(crate) prefer: Option<Duration>,
}

impl ClipQuery {
    /// Returns whether all clips have reached the goal, by their states.
    pub(crate) fn is_reached_by(&self, states: &[usize]) -> bool {
        states.iter().all(|&state| self.goal.is_none_or(|goal| state >= goal))
    }
}

/// One action of a client.
pub(crate) enum Action {
    Clips(ClipQuery),
    /// An event stream, read to its end. The seed decides when its client disconnects.
    EventStream(ClipQuery, u64),
    /// A request without known clips.
    Other(OtherRequest),
}

/// A request that the gateway passes through, or a query of a clip that does not exist.
pub(crate) enum OtherRequest {
    /// A clip that does not exist.
    Unknown(Key),
    /// A path that returns the request.
    Echo(Key, u32),
    /// A path that returns the body.
    Mirror(Key, u32, Bytes),
    /// A path that returns this number of lines, one by one.
    Stream(Key, u32, u8),
}

/// The HTTP version, and the time after which the client disconnects.
pub(crate) struct Delivery {
    pub(crate) is_http2: bool,
    pub(crate) disconnect_after: Option<Duration>,
}

/// Returns a random request of a random valid key.
pub(crate) fn random(clips: &Clips, hold: Duration, rng: &mut Rng) -> Option<(Action, Delivery)> {
    let key = Key::Valid(rng.u8(..KEYS));
    let action = match rng.u16(..1000) {
        0..10 => return event_stream(clips, RequestKind::EventStream, rng),
        10..620 => finished_clip(clips, key, rng, RequestKind::Single),
        620..740 => several(clips, key, rng, RequestKind::Multi, true),
        740..790 => finished_clip(clips, key, rng, RequestKind::Conditional),
        790..830 => finished_clip(clips, key, rng, RequestKind::OnlyIfCached),
        830..860 => unfinished_clip(clips, key, rng, RequestKind::State),
        860..895 => unfinished_clip(clips, key, rng, RequestKind::Wait),
        895..915 => several(clips, key, rng, RequestKind::Waits, false),
        915..925 => prefer(clips, key, rng, hold),
        925..935 => unfinished_clip(clips, key, rng, RequestKind::NoCache),
        935..940 => unfinished_clip(clips, key, rng, RequestKind::NoStore),
        940..960 => finished_clip(clips, Key::Invalid(rng.u8(..4)), rng, RequestKind::InvalidKey),
        960..965 => Some(Action::Other(OtherRequest::Unknown(key))),
        965..980 => Some(Action::Other(OtherRequest::Echo(key, rng.u32(..)))),
        980..995 => Some(Action::Other(OtherRequest::Mirror(key, rng.u32(..), bytes(rng)))),
        _ => Some(Action::Other(OtherRequest::Stream(key, rng.u32(..), rng.u8(1..=5)))),
    };
    let action = action?;
    let is_long = matches!(&action, Action::Clips(query) if query.goal.is_some());
    let disconnect_after = match rng.u8(..100) {
        0..2 => Some(Duration::from_micros(rng.u64(..2000))),
        2..15 if is_long => Some(hold.mul_f64(rng.f64() / 2.0)),
        _ => None,
    };
    Some((action, Delivery { is_http2: rng.bool(), disconnect_after }))
}

/// Returns a request of the key that exceeds its quotas. Most are hits, which cost no upstream request: so the quota on
/// requests rejects them.
pub(crate) fn over_quota(clips: &Clips, rng: &mut Rng) -> Option<(Action, Delivery)> {
    let action = finished_clip(clips, Key::OverQuota, rng, RequestKind::OverQuota)?;
    Some((action, Delivery { is_http2: rng.bool(), disconnect_after: None }))
}

/// Returns a client that reads the events of one to three clips.
pub(crate) fn event_stream(clips: &Clips, kind: RequestKind, rng: &mut Rng) -> Option<(Action, Delivery)> {
    let key = Key::Valid(rng.u8(..KEYS));
    // When the gateway stops, each stream must be one wait: the run counts them.
    let is_single = kind == RequestKind::ParkedStream || rng.bool();
    let mut chosen: Vec<Arc<Clip>> = Vec::new();
    for _ in 0..if is_single { 1 } else { rng.usize(1..=3) } {
        let clip = clips.unfinished(rng)?;
        if !chosen.iter().any(|other| other.id == clip.id) {
            chosen.push(clip);
        }
    }
    let query = ClipQuery { kind, key, is_single, clips: chosen, goal: Some(COMPLETED), prefer: None };
    Some((Action::EventStream(query, rng.u64(..)), Delivery { is_http2: rng.bool(), disconnect_after: None }))
}

/// Returns a wait for the job that the upstream always answers with 429. Half of these waits have time for more attempts.
pub(crate) fn throttled(job: &Arc<Clip>, hold: Duration, rng: &mut Rng) -> (Action, Delivery) {
    let (key, prefer) = (Key::Valid(0), rng.bool().then_some(hold * 2));
    let clips = vec![Arc::clone(job)];
    let query = ClipQuery {
        kind: RequestKind::Throttled,
        key,
        is_single: true,
        clips,
        goal: Some(COMPLETED),
        prefer,
    };
    (Action::Clips(query), Delivery { is_http2: rng.bool(), disconnect_after: None })
}

/// Returns a wait for an unfinished clip.
pub(crate) fn parked(clips: &Clips, rng: &mut Rng) -> Option<(Action, Delivery)> {
    let key = Key::Valid(rng.u8(..KEYS));
    let clips = vec![clips.unfinished(rng)?];
    let goal = Some(COMPLETED);
    let query = ClipQuery { kind: RequestKind::Parked, key, is_single: true, clips, goal, prefer: None };
    Some((Action::Clips(query), Delivery { is_http2: rng.bool(), disconnect_after: None }))
}

fn finished_clip(clips: &Clips, key: Key, rng: &mut Rng, kind: RequestKind) -> Option<Action> {
    let clips = vec![clips.finished(rng)?];
    Some(Action::Clips(ClipQuery { kind, key, is_single: true, clips, goal: Some(goal(rng)), prefer: None }))
}

fn unfinished_clip(clips: &Clips, key: Key, rng: &mut Rng, kind: RequestKind) -> Option<Action> {
    let clips = vec![clips.unfinished(rng)?];
    let goal = (kind != RequestKind::State).then(|| goal(rng));
    Some(Action::Clips(ClipQuery { kind, key, is_single: true, clips, goal, prefer: None }))
}

fn prefer(clips: &Clips, key: Key, rng: &mut Rng, hold: Duration) -> Option<Action> {
    let seconds = rng.u64(1..=hold.as_secs() * 2);
    let mut action = unfinished_clip(clips, key, rng, RequestKind::Prefer)?;
    if let Action::Clips(query) = &mut action {
        query.prefer = Some(Duration::from_secs(seconds));
    }
    Some(action)
}

fn several(clips: &Clips, key: Key, rng: &mut Rng, kind: RequestKind, are_finished: bool) -> Option<Action> {
    let mut chosen: Vec<Arc<Clip>> = Vec::new();
    for _ in 0..rng.usize(1..=8) {
        let clip =
            if are_finished || rng.u8(..4) == 0 { clips.finished(rng)? } else { clips.unfinished(rng)? };
        if !chosen.iter().any(|other| other.id == clip.id) {
            chosen.push(clip);
        }
    }
    let goal = (are_finished || rng.u8(..10) > 0).then(|| goal(rng));
    Some(Action::Clips(ClipQuery { kind, key, is_single: false, clips: chosen, goal, prefer: None }))
}

fn goal(rng: &mut Rng) -> usize {
    [0, 1, 2, 2, COMPLETED, COMPLETED, COMPLETED, COMPLETED][rng.usize(..8)]
}

fn bytes(rng: &mut Rng) -> Bytes {
    let length = if rng.u8(..20) == 0 { rng.usize(..200_000) } else { rng.usize(..2000) };
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes.into()
}
