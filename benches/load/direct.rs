//! The clients alone: each request is an upstream call.

use std::time::Duration;

use super::clients::{Action, ClientRequest, Clients, RequestId};
use super::day::{Day, RungNumber};
use super::events::EventQueue;
use super::mix::Mix;
use super::outcome::Outcome;
use super::upstream::{Reply, Upstream};

/// A call that is open.
struct DirectCall {
    id: RequestId,
    request: ClientRequest,
    began: Duration,
    reply: Reply,
}

/// Plays a day without a gateway.
pub(crate) fn play(day: &Day, mix: &Mix) -> Outcome {
    let mut clients = Clients::new(day, &mix.upstream);
    let mut upstream = Upstream::new(day, &mix.upstream);
    let mut calls = EventQueue::new();
    let mut dropped = std::collections::BTreeMap::new();
    loop {
        let (client_at, call_at) = (clients.next_at(), calls.next_at());
        if client_at.is_none() && call_at.is_none() {
            break;
        }
        if call_at.is_none() || client_at.is_some_and(|client| call_at.is_none_or(|call| client <= call)) {
            match clients.handle_event() {
                Some((now, Some(Action::Ask(id, request)))) => {
                    let reply = upstream.reply(&request.jobs, request.rung, now);
                    calls.add(reply.lands_at, DirectCall { id, request, began: now, reply });
                }
                Some((now, Some(Action::Drop(id)))) => {
                    dropped.insert(id, now);
                }
                Some((_, None)) | None => {}
            }
        } else if let Some((now, call)) = calls.pop() {
            let DirectCall { id, request, began, reply } = call;
            upstream.count(cause(&request), began, dropped.remove(&id).unwrap_or(now));
            let states: Vec<(usize, RungNumber)> =
                request.jobs.iter().map(|&job| (job, day.jobs[job].rung_at(reply.read_at))).collect();
            clients.answer(id, &states, now);
        }
    }
    Outcome { calls: upstream.into_calls(), record: clients.into_record(), ..Outcome::default() }
}

fn cause(request: &ClientRequest) -> &'static str {
    match request.rung {
        None => "snapshot",
        Some(_) if request.jobs.len() > 1 => "batch",
        Some(_) => "wait",
    }
}
