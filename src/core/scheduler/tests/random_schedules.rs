//! Random schedules: invariants that hold for every order of inputs.

use super::*;

/// At most `max_polls` attempts are open, the attempts of a key keep its budget, every poll ends, and the scheduler is
/// empty afterwards. No chain is given up because of a 429.
#[test]
fn no_random_schedule_exceeds_max_polls_or_a_budget_or_leaves_polls_behind() {
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let max_polls = rng.usize(1..5);
        let interval = Duration::from_millis(rng.u64(0..2) * 50);
        let key_interval = Duration::from_millis(rng.u64(0..2) * 100);
        let mut s = Scenario::new(SchedulerConfig { interval, key_interval, ..config(max_polls) });
        let mut last_starts: Map<KeyDomain, Instant> = Map::default();
        let mut refused_chains = BTreeSet::new();
        let (mut polls, mut attempts) = (BTreeSet::new(), BTreeSet::new());
        let mut next = 0;
        let mut steps = 0;
        while steps < 200 || !polls.is_empty() {
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: {polls:?} never end");
            let pick = |set: &BTreeSet<u64>, rng: &mut fastrand::Rng| {
                set.iter().nth(rng.usize(0..set.len().max(1))).copied()
            };
            match rng.u32(0..6) {
                0 | 1 if steps < 200 => {
                    let classes =
                        [PollClass::Plain, PollClass::Snapshot, PollClass::Chain, PollClass::LongPoll];
                    s.request(next, KeyDomain([rng.u8(0..3); 16]), classes[rng.usize(..4)]);
                    polls.insert(next);
                    next += 1;
                }
                2 => {
                    if let Some(id) = pick(&polls, &mut rng).filter(|_| rng.bool()) {
                        s.scheduler.withdraw(PollId(id), s.now);
                        polls.remove(&id);
                        attempts.remove(&id);
                    }
                }
                3 | 4 => {
                    if let Some(id) = pick(&attempts, &mut rng) {
                        attempts.remove(&id);
                        let secs = Duration::from_secs(rng.u64(0..90));
                        let is_chain = s.scheduler.polls[&PollId(id)].request.class == PollClass::Chain;
                        refused_chains.remove(&id);
                        match rng.u32(0..11) {
                            2 | 10 if is_chain => {
                                refused_chains.insert(id);
                                let secs = Some(secs).filter(|_| rng.bool());
                                s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PauseKey(secs));
                            }
                            10 => s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PauseKey(None)),
                            0 | 1 => s.lose_connection(id),
                            2 => s.rate_limited(id, rng.u64(0..90)),
                            3 => s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PausePoll(secs)),
                            4 => s.ended(id, Failure::Unreachable, RetryAdvice::Reconnect),
                            5 => s.upstream_error(id),
                            6 => s.ended(id, Failure::InvalidResponse(None), RetryAdvice::BackOffHeld),
                            7 => s.ended(id, Failure::LocalResources, RetryAdvice::BackOff),
                            _ => {
                                s.answer(id);
                                polls.remove(&id);
                            }
                        }
                    }
                }
                _ => s.advance(Duration::from_millis(rng.u64(0..400))),
            }
            if let Some(id) = pick(&attempts, &mut rng) {
                s.sent(id);
            }
            if let Some(id) = pick(&polls, &mut rng).filter(|_| rng.u8(..4) == 0) {
                s.scheduler.try_now(PollId(id), s.now);
            }
            while let Some(output) = s.scheduler.poll_output() {
                match output {
                    SchedulerOutput::Start(PollId(id)) => {
                        assert!(
                            polls.contains(&id) && attempts.insert(id),
                            "seed {seed}: {id} is started twice"
                        );
                        let domain = s.scheduler.polls[&PollId(id)].request.domain;
                        let last = last_starts.insert(domain, s.now);
                        assert!(last.is_none_or(|last| last + key_interval <= s.now), "seed {seed}: {id}");
                    }
                    SchedulerOutput::BackOff(PollId(id), ..) | SchedulerOutput::Pause(PollId(id), ..) => {
                        assert!(polls.contains(&id) && !attempts.contains(&id), "seed {seed}: {id}");
                    }
                    SchedulerOutput::GiveUp(PollId(id), _) => {
                        assert!(!refused_chains.contains(&id), "seed {seed}: {id} is given up after a 429");
                        assert!(polls.remove(&id) && !attempts.contains(&id), "seed {seed}: {id}");
                    }
                }
            }
            assert_eq!(s.scheduler.open(), attempts.len(), "seed {seed}");
            assert!(attempts.len() <= max_polls, "seed {seed}");
        }
        (0..3).for_each(|_| s.advance(MAX_KEY_PAUSE));
        let scheduler = &s.scheduler;
        assert!(
            scheduler.polls.is_empty() && scheduler.retrying.is_empty() && scheduler.keys.is_empty(),
            "seed {seed}"
        );
        let queues = [&scheduler.plain, &scheduler.snapshots, &scheduler.chains, &scheduler.long_polls];
        assert!(queues.iter().all(|queue| queue.is_empty()), "seed {seed}");
        assert!(
            scheduler.timers.iter().all(|(_, timer)| *timer == SchedulerTimer::Probe),
            "seed {seed}: {:?}",
            scheduler.timers
        );
    }
}
