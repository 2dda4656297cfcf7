//! Leases of polls that this replica makes already.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Siblings;
use super::claims::COMING_BACK;
use super::outbox::Letter;
use super::shared_poll::SharedPoll;
use super::types::{CallId, EngineCall, KeyEpoch, PollName, ReplicaName};

/// Time for which the upstream holds a poll that works again.
const STEADY: Duration = Duration::from_secs(1);
/// Pauses between questions for a lease that a sibling has grow from `takeover` to eight times that.
const MAX_DOUBLINGS: u32 = 3;

impl Siblings {
    pub(super) fn adopt_all(&mut self, now: Instant) {
        for name in self.polls.names(|poll| poll.own().is_some()) {
            self.adopt(name, now);
        }
    }

    /// Takes the lease of a poll that is made here, if the link is up and the lease is vacant. One that gave it up asks once
    /// the upstream has held it for a second: a retry may fail at once, and its siblings make attempts meanwhile (P5).
    pub(super) fn adopt(&mut self, name: PollName, now: Instant) {
        let is_early = self.polls.change(name, |poll| {
            let own = poll.own_mut()?;
            own.has_stepped_back |= own.is_unfit();
            if own.is_unfit() || (own.has_stepped_back && own.held_since.is_none()) {
                return Some(true);
            }
            let from = own.held_since.filter(|_| own.has_stepped_back).map(|since| since + STEADY);
            let from = from.filter(|from| *from > now)?;
            own.adopt_at = Some(from);
            Some(true)
        });
        if is_early.flatten() == Some(true) {
            return;
        }
        let call = self.send_adopt(name, now);
        self.polls.change(name, |poll| {
            let (Some(call), Some(own)) = (call, poll.own_mut()) else { return };
            own.asked = Some(call);
            own.came.clear();
            own.left.clear();
            (own.adopt_at, own.refused) = (None, 0);
        });
    }

    /// Takes a lease back that the engine may have given to a sibling meanwhile. The guests are known.
    pub(super) fn keep_lease(&mut self, name: PollName, now: Instant) {
        self.send_adopt(name, now);
    }

    fn send_adopt(&mut self, name: PollName, now: Instant) -> Option<CallId> {
        let poll = self.polls.get(name).filter(|_| self.link.is_up())?;
        poll.own().filter(|own| !own.is_unfit())?;
        let (token, age) = (poll.token, now.saturating_duration_since(poll.opened_at));
        let attempt_age = now.saturating_duration_since(poll.began_at());
        let spec = Arc::clone(&poll.spec);
        let is_first = !self.link.has_beaten();
        let call = self.call(EngineCall::Adopt { spec, token, age, attempt_age, is_first });
        self.calls.insert(call, (name, token));
        self.polls
            .change(name, |poll| poll.own_mut().into_iter().for_each(|own| own.last_adopt = Some(call)));
        Some(call)
    }

    /// Asks for a lease again some time after a refusal or a failure: its holder may have been dead, and unheard here. A holder that
    /// is still alive one takeover later was heard, so its death is noticed; the pauses may grow.
    pub(super) fn adopt_later(&mut self, name: PollName, now: Instant) {
        let takeover = self.config.takeover;
        self.polls.change(name, |poll| {
            let Some(own) = poll.own_mut().filter(|own| own.adopt_at.is_none()) else { return };
            own.adopt_at = Some(now + takeover * (1 << own.refused.min(MAX_DOUBLINGS)));
            own.refused += 1;
        });
    }

    pub(super) fn adopt_again(&mut self, name: PollName, now: Instant) {
        let asked = self.polls.change(name, |poll| {
            let own = poll.own_mut()?;
            own.adopt_at = None;
            Some(own.refused)
        });
        if let Some(refused) = asked.flatten().filter(|_| self.draining.is_none()) {
            self.adopt(name, now);
            self.polls.change(name, |poll| poll.own_mut().into_iter().for_each(|own| own.refused = refused));
        }
    }

    /// Asks once more for a lease that the engine did not give, because it lost its memory.
    pub(super) fn adopt_unknown(&mut self, name: PollName, call: CallId, now: Instant) {
        let is_asked = self.polls.change(name, |poll| {
            let own = poll.own_mut()?;
            own.asked.take_if(|asked| *asked == call);
            own.asked
        });
        if is_asked.flatten().is_none() {
            self.beat(now); // the loss of memory was known already, and this one is another
            self.adopt(name, now);
        }
    }

    pub(super) fn adopted(
        &mut self,
        name: PollName,
        call: CallId,
        lease: Option<KeyEpoch>,
        guests: Vec<ReplicaName>,
        now: Instant,
    ) {
        let is_superseded = |poll: &mut SharedPoll| {
            let own = poll.own_mut().filter(|own| own.last_adopt != Some(call))?;
            own.asked.take_if(|asked| *asked == call);
            Some(())
        };
        // The lease may be here again: a `Leave` would end it.
        if lease.is_none() && self.polls.change(name, is_superseded).flatten().is_some() {
            return;
        }
        let linger = self.config.linger;
        // A guest that is gone is not heard again, and counts as dead then.
        let guests: BTreeSet<ReplicaName> =
            guests.into_iter().filter(|guest| self.heard_guest(*guest, now)).collect();
        let lost = self.polls.change(name, |poll| {
            let is_lost = lease.is_none() && poll.own().is_some_and(|own| own.is_leased);
            is_lost.then_some(poll.token)
        });
        let note = self.polls.change(name, |poll| {
            let (token, is_kept) = (poll.token, poll.local.is_none());
            let own = poll.own_mut()?;
            (own.is_leased, own.epoch) = (lease.is_some(), lease.or(own.epoch));
            if own.is_leased {
                (own.adopt_at, own.has_stepped_back) = (None, false);
            }
            own.asked.take_if(|asked| *asked == call)?; // otherwise a newer question is on its way
            let had_guests = !own.guests.is_empty();
            // The guests of a lease that is lost are those of the new holder.
            own.guests =
                guests.into_iter().filter(|guest| lease.is_some() && !own.left.contains(guest)).collect();
            own.guests.append(&mut own.came);
            own.left.clear();
            if had_guests && own.guests.is_empty() {
                // P6. An engine that lost its memory learns of guests that are still there by their looks.
                own.guests_linger_until = Some(now + linger.max(COMING_BACK));
            }
            if is_kept {
                let until = own.guests_linger_until.unwrap_or(now);
                own.ends_at = own.guests.is_empty().then(|| own.ends_at.unwrap_or(until));
            }
            own.held_for(now).filter(|_| !own.guests.is_empty()).map(|held_for| (token, held_for))
        });
        if let Some(token) = lost.flatten() {
            // Its guests wait for another replica now, or in vain: by the clock of the engine it began before a rejection.
            self.send(Letter::Other(EngineCall::Leave(name, token)), now);
        }
        if lease.is_none() {
            self.adopt_later(name, now);
        }
        if let Some((token, held_for)) = note.flatten() {
            self.call(EngineCall::Note(name, token, Some(held_for)));
        }
        self.leave_if_unfit(name, now);
        if self.draining.is_some() {
            self.leave_to_guests(name, now);
        }
    }
}
