//! The link to the engine: when it last spoke, how fast it answers, and whether this replica hears its own beats.

use std::time::{Duration, Instant};

use super::types::{CallId, EngineTime, LinkState, ReplicaName};

/// Silence of the engine after which this replica goes on alone.
pub(super) const SILENCE: Duration = Duration::from_secs(1);
/// Time without a link after which this replica goes on alone.
pub(super) const DOWN: Duration = Duration::from_millis(500);
/// Time without its own beats after which a replica subscribes again.
pub(super) const DEAF: Duration = Duration::from_millis(1200);
/// Time without its own beats after which a replica goes on alone: the last of its polls begins 0.5 s later.
pub(super) const UNHEARD: Duration = Duration::from_millis(1600);
/// Longest wait for the answer to a claim, however much else the engine says.
pub(super) const MAX_PATIENCE: Duration = Duration::from_millis(250);
/// Claims in a row without an answer in time that make the link far.
const FAR_AFTER: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct EngineLink {
    /// Name of this replica while the link is up.
    pub(super) me: Option<ReplicaName>,
    /// Name before that.
    pub(super) former: Option<ReplicaName>,
    pub(super) up_since: Option<Instant>,
    down_since: Option<Instant>,
    pub(super) last_word: Option<Instant>,
    late_claims: u32,
    far_since: Option<Instant>,
    /// Whether this replica heard its own beat lately: the subscriptions work.
    pub(super) is_hearing: bool,
    /// Since when it does.
    pub(super) hearing_since: Option<Instant>,
    /// Since when it does not, on this link or on those before it.
    unheard_since: Option<Instant>,
    /// Whether it did not hear itself for [`DEAF`] on this link.
    is_deaf: bool,
    /// Whether it was deaf since the link is up.
    pub(super) has_missed: bool,
    /// Last own beat heard, last resubscription, or the start of the link.
    listened_at: Option<Instant>,
    /// Beat on its way.
    beat: Option<(CallId, Instant)>,
    pub(super) next_beat: Option<Instant>,
    /// First beat of this link. Before it the engine does not know the name.
    first_beat: Option<CallId>,
    /// Whether the engine failed the last beat.
    is_failing: bool,
    /// Latest time of all nodes in the last answer to a beat.
    engine_time: Option<(EngineTime, Instant)>,
    /// Whether this replica goes on alone.
    pub(super) is_apart: bool,
}

impl EngineLink {
    pub(super) fn up(&mut self, me: ReplicaName, now: Instant) {
        *self = Self {
            former: self.me.or(self.former),
            me: Some(me),
            up_since: Some(now),
            last_word: Some(now),
            listened_at: Some(now),
            next_beat: Some(now),
            // Until the engine speaks: one that accepts links and answers nothing is as good as none.
            down_since: self.down_since,
            unheard_since: self.unheard_since.or(Some(now)),
            is_apart: self.is_apart,
            engine_time: self.engine_time,
            ..Self::default()
        };
    }

    pub(super) fn down(&mut self, now: Instant) {
        *self = Self {
            former: self.me.or(self.former),
            down_since: self.down_since.or(Some(now)),
            unheard_since: self.unheard_since.or(Some(now)),
            is_apart: self.is_apart,
            engine_time: self.engine_time,
            ..Self::default()
        };
    }

    pub(super) fn is_up(&self) -> bool {
        self.me.is_some()
    }

    pub(super) fn state(&self) -> LinkState {
        match self.far_since {
            _ if !self.is_up() || self.is_apart => LinkState::Apart,
            Some(_) => LinkState::Far,
            None if self.is_hearing => LinkState::Near,
            None if self.is_deaf => LinkState::Far,
            None => LinkState::Apart,
        }
    }

    /// Returns whether new polls wait for the engine. A new link is about to be heard on.
    pub(super) fn is_asked(&self) -> bool {
        self.is_up() && !self.is_apart && self.far_since.is_none() && !self.is_deaf
    }

    /// Returns when a claim that was sent then is given up.
    pub(super) fn patience_ends(&self, asked_at: Instant, patience: Duration) -> Instant {
        let from = self.last_word.map_or(asked_at, |word| word.max(asked_at));
        (from + patience).min(asked_at + MAX_PATIENCE.max(patience))
    }

    pub(super) fn claim_was_late(&mut self, now: Instant) {
        self.late_claims += 1;
        if self.late_claims >= FAR_AFTER {
            self.far_since.get_or_insert(now);
        }
    }

    /// Returns whether the first beat of this link was sent. Since then the engine knows this replica, or lost its memory.
    pub(super) fn has_beaten(&self) -> bool {
        self.first_beat.is_some()
    }

    pub(super) fn beat_sent(&mut self, call: CallId, interval: Duration, now: Instant) {
        self.first_beat.get_or_insert(call);
        if self.beat.is_none() {
            self.beat = Some((call, now));
        }
        self.next_beat = Some(now + interval);
    }

    /// Records an answer or a message: it ends a time apart.
    pub(super) fn word(&mut self, now: Instant) {
        if self.is_up() {
            (self.last_word, self.down_since, self.is_apart) = (Some(now), None, false);
        }
    }

    /// Returns whether a call is the beat on its way.
    pub(super) fn is_beat(&self, call: CallId) -> bool {
        self.beat.is_some_and(|(beat, _)| beat == call)
    }

    /// Records the answer to the beat on its way. Its time decides whether the link is near.
    pub(super) fn beat_answered(&mut self, time: EngineTime, patience: Duration, now: Instant) {
        self.engine_time = Some((time, now));
        let Some((_, sent_at)) = self.beat.take() else { return };
        if now <= sent_at + patience {
            (self.late_claims, self.far_since) = (0, None);
        } else if now > sent_at + MAX_PATIENCE {
            self.far_since.get_or_insert(now);
        }
    }

    /// Records that the engine failed a call, if it is a beat.
    pub(super) fn beat_failed(&mut self, call: CallId) {
        self.is_failing |= self.beat.take_if(|(beat, _)| *beat == call).is_some();
        self.first_beat.take_if(|first| *first == call); // the next one makes this replica known
    }

    /// Returns whether the engine failed the beat before, and ends that state.
    pub(super) fn has_recovered(&mut self) -> bool {
        std::mem::take(&mut self.is_failing)
    }

    /// Returns whether the clock of the engine went ahead or back by more than this time since its last answer to a beat. A
    /// slow answer does not count: the engine read its clock after the beat was sent.
    pub(super) fn has_jumped(&self, EngineTime(time): EngineTime, limit: Duration, now: Instant) -> bool {
        let sent_at = self.beat.map_or(now, |(_, sent_at)| sent_at);
        let is_ahead = self.engine_now(now).is_some_and(|EngineTime(expected)| time > expected + limit);
        is_ahead || self.engine_now(sent_at).is_some_and(|EngineTime(expected)| time + limit < expected)
    }

    /// Records that the engine did not know this replica when it beat. Returns whether it should have.
    pub(super) fn lost_membership(&mut self, call: CallId) -> bool {
        self.beat.take_if(|(beat, _)| *beat == call);
        self.first_beat != Some(call)
    }

    /// Records that this replica heard its own beat. Returns whether it was deaf before.
    pub(super) fn heard_itself(&mut self, now: Instant) -> bool {
        self.listened_at = Some(now);
        (self.unheard_since, self.is_deaf) = (None, false);
        let was_deaf = !std::mem::replace(&mut self.is_hearing, true);
        if was_deaf {
            self.hearing_since = Some(now);
        }
        was_deaf
    }

    /// Returns when this replica goes on alone unless the engine speaks.
    pub(super) fn apart_at(&self) -> Option<Instant> {
        if self.is_apart {
            return None;
        }
        let silent = self.last_word.map(|word| word + SILENCE);
        let down = self.down_since.map(|since| since + DOWN);
        [silent, down].into_iter().flatten().min()
    }

    /// Returns when polls of siblings are given up although the engine speaks: it is far, or its messages do not come.
    pub(super) fn abandons_at(&self) -> Option<Instant> {
        let far = self.far_since.map(|since| since + SILENCE);
        let unheard = self.unheard_since.map(|since| since + UNHEARD);
        [far, unheard].into_iter().flatten().min()
    }

    pub(super) fn deaf_at(&self) -> Option<Instant> {
        self.listened_at.filter(|_| self.is_up()).map(|at| at + DEAF)
    }

    /// Records that this replica does not hear itself. Returns whether the engine answers, so that a new subscription
    /// helps.
    pub(super) fn stopped_hearing(&mut self, now: Instant) -> bool {
        (self.is_hearing, self.is_deaf, self.has_missed) = (false, true, true);
        self.unheard_since = self.unheard_since.or(self.listened_at);
        self.listened_at = Some(now);
        self.last_word.is_some_and(|word| now < word + SILENCE)
    }

    /// Returns the time of the engine now, as far as known. The engine may be ahead by the time of one answer.
    pub(super) fn engine_now(&self, now: Instant) -> Option<EngineTime> {
        self.engine_time.map(|(EngineTime(time), at)| EngineTime(time + now.saturating_duration_since(at)))
    }
}
