//! What clients do: whom they are, what they ask for, and when they hang up. All of it by chance, from one seed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::clips::{COMPLETED, Clip, Clips};

/// The keys that are let in and keep to their quotas.
pub(crate) const KEYS: u8 = 8;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// One of [`KEYS`].
    Good(u8),
    /// Is let in, and asks for more than its quotas.
    Greedy,
    /// Is not let in.
    Bad(u8),
}

impl Key {
    /// All that are let in.
    pub(crate) fn accepted() -> impl Iterator<Item = Key> {
        (0..KEYS).map(Key::Good).chain([Key::Greedy])
    }

    pub(crate) fn text(self) -> String {
        match self {
            Key::Good(number) => format!("soak-{number}"),
            Key::Greedy => "soak-greedy".to_owned(),
            Key::Bad(number) => format!("stranger-{number}"),
        }
    }

    /// Its place among those that are let in; none for the others.
    pub(crate) fn place(self) -> Option<usize> {
        match self {
            Key::Good(number) => Some(number.into()),
            Key::Greedy => Some(KEYS.into()),
            Key::Bad(_) => None,
        }
    }

    /// Its bit.
    pub(crate) fn bit(self) -> u64 {
        self.place().map_or(0, |place| 1 << place)
    }
}

/// The sorts of requests, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Single,
    Multi,
    Wait,
    Waits,
    Preferring,
    State,
    Conditional,
    NoCache,
    NoStore,
    OnlyIfCached,
    Stranger,
    Unknown,
    Greedy,
    Follow,
    Removed,
    Throttled,
    Parked,
    ParkedStream,
    Echo,
    Mirror,
    Stream,
}

impl Kind {
    pub(crate) const ALL: [(Kind, &'static str); 21] = [
        (Kind::Single, "finished clip"),
        (Kind::Multi, "finished clips"),
        (Kind::Wait, "wait for a clip"),
        (Kind::Waits, "wait for clips"),
        (Kind::Preferring, "Prefer: wait"),
        (Kind::State, "state as it is"),
        (Kind::Conditional, "If-None-Match"),
        (Kind::NoCache, "no-cache"),
        (Kind::NoStore, "no-store"),
        (Kind::OnlyIfCached, "only-if-cached"),
        (Kind::Stranger, "key not let in"),
        (Kind::Unknown, "unknown clip"),
        (Kind::Greedy, "over its quota"),
        (Kind::Follow, "event stream"),
        (Kind::Removed, "removed clip"),
        (Kind::Throttled, "job always 429"),
        (Kind::Parked, "parked at the end"),
        (Kind::ParkedStream, "stream at the end"),
        (Kind::Echo, "passed GET"),
        (Kind::Mirror, "passed POST"),
        (Kind::Stream, "passed stream"),
    ];
}

/// A request for clips' states.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) is_single: bool,
    /// In the order asked for.
    pub(crate) clips: Vec<Arc<Clip>>,
    /// The number of the state; none asks for the state as it is.
    pub(crate) goal: Option<usize>,
    pub(crate) prefer: Option<Duration>,
}

/// What one request is.
pub(crate) enum Errand {
    Clips(Ask),
    /// An event stream that is followed to its end. The seed decides when its client hangs up.
    Follow(Ask, u64),
    /// A request that is not for known clips.
    Pass(Pass),
}

/// A request that is passed through, or for a clip that does not exist.
pub(crate) enum Pass {
    /// For a clip that there is not.
    Unknown(Key),
    /// A path that shows what was passed on.
    Echo(Key, u32),
    /// A body that comes back.
    Mirror(Key, u32, Bytes),
    /// So many lines, one by one.
    Stream(Key, u32, u8),
}

/// How it is sent, and for how long its client stays.
pub(crate) struct Manner {
    pub(crate) is_http2: bool,
    pub(crate) leaves: Option<Duration>,
}

/// What is asked for next.
pub(crate) fn next(clips: &Clips, hold: Duration, rng: &mut Rng) -> Option<(Errand, Manner)> {
    let key = Key::Good(rng.u8(..KEYS));
    let errand = match rng.u16(..1000) {
        0..10 => return follower(clips, Kind::Follow, rng),
        10..620 => finished(clips, key, rng, Kind::Single),
        620..740 => several(clips, key, rng, Kind::Multi, true),
        740..790 => finished(clips, key, rng, Kind::Conditional),
        790..830 => finished(clips, key, rng, Kind::OnlyIfCached),
        830..860 => climbing(clips, key, rng, Kind::State),
        860..895 => climbing(clips, key, rng, Kind::Wait),
        895..915 => several(clips, key, rng, Kind::Waits, false),
        915..925 => preferring(clips, key, rng, hold),
        925..935 => climbing(clips, key, rng, Kind::NoCache),
        935..940 => climbing(clips, key, rng, Kind::NoStore),
        940..960 => finished(clips, Key::Bad(rng.u8(..4)), rng, Kind::Stranger),
        960..965 => Some(Errand::Pass(Pass::Unknown(key))),
        965..980 => Some(Errand::Pass(Pass::Echo(key, rng.u32(..)))),
        980..995 => Some(Errand::Pass(Pass::Mirror(key, rng.u32(..), bytes(rng)))),
        _ => Some(Errand::Pass(Pass::Stream(key, rng.u32(..), rng.u8(1..=5)))),
    };
    let errand = errand?;
    let is_long = matches!(&errand, Errand::Clips(ask) if ask.goal.is_some());
    let leaves = match rng.u8(..100) {
        0..2 => Some(Duration::from_micros(rng.u64(..2000))),
        2..15 if is_long => Some(hold.mul_f64(rng.f64() / 2.0)),
        _ => None,
    };
    Some((errand, Manner { is_http2: rng.bool(), leaves }))
}

/// What the greedy key asks for: mostly what costs nothing, so that it is the flood that is refused.
pub(crate) fn greedy(clips: &Clips, rng: &mut Rng) -> Option<(Errand, Manner)> {
    let errand = finished(clips, Key::Greedy, rng, Kind::Greedy)?;
    Some((errand, Manner { is_http2: rng.bool(), leaves: None }))
}

/// A client that follows one clip or several to their ends.
pub(crate) fn follower(clips: &Clips, kind: Kind, rng: &mut Rng) -> Option<(Errand, Manner)> {
    let key = Key::Good(rng.u8(..KEYS));
    // At the end each stream must be one wait, so that they can be counted.
    let is_single = kind == Kind::ParkedStream || rng.bool();
    let mut chosen: Vec<Arc<Clip>> = Vec::new();
    for _ in 0..if is_single { 1 } else { rng.usize(1..=3) } {
        let clip = clips.climbing(rng)?;
        if !chosen.iter().any(|other| other.id == clip.id) {
            chosen.push(clip);
        }
    }
    let ask = Ask { kind, key, is_single, clips: chosen, goal: Some(COMPLETED), prefer: None };
    Some((Errand::Follow(ask, rng.u64(..)), Manner { is_http2: rng.bool(), leaves: None }))
}

/// A wait by one key for the job that is always told 429. Half of the waits have time for a few more tries.
pub(crate) fn throttled(job: &Arc<Clip>, hold: Duration, rng: &mut Rng) -> (Errand, Manner) {
    let (key, prefer) = (Key::Good(0), rng.bool().then_some(hold * 2));
    let clips = vec![Arc::clone(job)];
    let ask = Ask { kind: Kind::Throttled, key, is_single: true, clips, goal: Some(COMPLETED), prefer };
    (Errand::Clips(ask), Manner { is_http2: rng.bool(), leaves: None })
}

/// A wait that will be parked for a while.
pub(crate) fn parked(clips: &Clips, rng: &mut Rng) -> Option<(Errand, Manner)> {
    let key = Key::Good(rng.u8(..KEYS));
    let clips = vec![clips.climbing(rng)?];
    let goal = Some(COMPLETED);
    let ask = Ask { kind: Kind::Parked, key, is_single: true, clips, goal, prefer: None };
    Some((Errand::Clips(ask), Manner { is_http2: rng.bool(), leaves: None }))
}

fn finished(clips: &Clips, key: Key, rng: &mut Rng, kind: Kind) -> Option<Errand> {
    let clips = vec![clips.done(rng)?];
    Some(Errand::Clips(Ask { kind, key, is_single: true, clips, goal: Some(goal(rng)), prefer: None }))
}

fn climbing(clips: &Clips, key: Key, rng: &mut Rng, kind: Kind) -> Option<Errand> {
    let clips = vec![clips.climbing(rng)?];
    let goal = (kind != Kind::State).then(|| goal(rng));
    Some(Errand::Clips(Ask { kind, key, is_single: true, clips, goal, prefer: None }))
}

fn preferring(clips: &Clips, key: Key, rng: &mut Rng, hold: Duration) -> Option<Errand> {
    let seconds = rng.u64(1..=hold.as_secs() * 2);
    let mut errand = climbing(clips, key, rng, Kind::Preferring)?;
    if let Errand::Clips(ask) = &mut errand {
        ask.prefer = Some(Duration::from_secs(seconds));
    }
    Some(errand)
}

fn several(clips: &Clips, key: Key, rng: &mut Rng, kind: Kind, are_done: bool) -> Option<Errand> {
    let mut chosen: Vec<Arc<Clip>> = Vec::new();
    for _ in 0..rng.usize(1..=8) {
        let clip = if are_done || rng.u8(..4) == 0 { clips.done(rng)? } else { clips.climbing(rng)? };
        if !chosen.iter().any(|other| other.id == clip.id) {
            chosen.push(clip);
        }
    }
    let goal = (are_done || rng.u8(..10) > 0).then(|| goal(rng));
    Some(Errand::Clips(Ask { kind, key, is_single: false, clips: chosen, goal, prefer: None }))
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
