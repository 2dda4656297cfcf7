//! The coalescers of a hub, one for each route. Jobs of two routes never meet.

use std::time::{Duration, Instant};

use super::Config;
use crate::core::coalescer::{Coalescer, Input, Output, Pace, PollId, Timing};
use crate::core::job::{KeyDomain, RouteIndex};
use crate::core::route::{Route, Routes};

pub(super) struct Machines(Vec<Coalescer>);

impl Machines {
    pub(super) fn new(config: &Config, routes: &Routes) -> Self {
        let step = routes.count() as u64;
        let machine = |(index, route): (RouteIndex, &Route)| {
            Coalescer::with_poll_ids(timing(config, route), u64::from(index.0), step)
        };
        Self(routes.iter().map(machine).collect())
    }

    pub(super) fn of_route(&self, route: RouteIndex) -> &Coalescer {
        &self.0[usize::from(route.0)]
    }

    pub(super) fn of_route_mut(&mut self, route: RouteIndex) -> &mut Coalescer {
        &mut self.0[usize::from(route.0)]
    }

    pub(super) fn of_poll(&self, id: PollId) -> &Coalescer {
        &self.0[self.position(id)]
    }

    pub(super) fn of_poll_mut(&mut self, id: PollId) -> &mut Coalescer {
        let at = self.position(id);
        &mut self.0[at]
    }

    /// Returns the position of a poll's machine: the numbers of its polls differ by the number of machines.
    fn position(&self, id: PollId) -> usize {
        usize::try_from(id.0 % self.0.len() as u64).unwrap_or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Coalescer> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Coalescer> {
        self.0.iter_mut()
    }

    pub(super) fn handle_all(&mut self, input: impl Fn() -> Input, now: Instant) {
        self.0.iter_mut().for_each(|machine| machine.handle(input(), now));
    }

    /// Treats all jobs under way of these keys as changed by an action.
    pub(super) fn forget_states(&mut self, is_concerned: impl Fn(KeyDomain) -> bool, now: Instant) {
        for machine in &mut self.0 {
            for (domain, job) in machine.all_jobs().into_iter().filter(|(domain, _)| is_concerned(*domain)) {
                machine.handle(Input::JobChanged(domain, job), now);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().filter_map(Coalescer::poll_timeout).min()
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.0.iter_mut().find_map(Coalescer::poll_output)
    }

    pub(super) fn watches(&self) -> usize {
        self.0.iter().map(Coalescer::watches).sum()
    }

    pub(super) fn idle_watch(&self) -> Option<PollId> {
        self.0.iter().find_map(Coalescer::idle_watch)
    }

    pub(super) fn set_watch_idle(&mut self, idle: Duration) {
        self.0.iter_mut().for_each(|machine| machine.set_watch_idle(idle));
    }
}

fn timing(config: &Config, route: &Route) -> Timing {
    let live_ttl = route.lifetimes.live.unwrap_or(config.cache.live_ttl);
    let pace = Pace { min: route.pace, max: route.max_pace, live_ttl };
    Timing {
        ladder: route.ladder.clone(),
        hold: route.hold,
        linger: config.wait.linger,
        watch_idle: config.wait.watch_idle,
        max_jobs: match &route.list {
            Some(list) if !route.is_built_in => list.max,
            Some(_) | None => config.upstream.max_jobs,
        },
        proves: route.proves(),
        pace: route.never_holds().then_some(pace),
    }
}
