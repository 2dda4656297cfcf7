//! For how long a client may have a connection and ask for nothing on it.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use http::Version;

use super::activity::ConnectionActivity;
use crate::clock;

/// The limits of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTimeouts {
    /// For a head, from its first byte on; for the connection's first from the beginning, so that nobody keeps a
    /// place who never asks.
    pub(super) head: Duration,
    /// From the end of the last answer on.
    pub(super) idle: Duration,
    pub(super) version: Version,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// It is the gateway's turn, or the client's to take what it asked for.
    Answering,
    /// A head is to come, whole.
    Head,
    /// It may be asked for something, or not.
    Idle,
}

impl ConnectionTimeouts {
    /// Ends when it has lasted too long, where the connection's first head may come from `since` on.
    ///
    /// To be polled after the connection, each time that it is: that wakes nobody by itself. There is one timer, and
    /// it is not set anew for each request: when it has run down, it is set to what is left.
    ///
    /// Cancel safe: what begins anew begins with a first head.
    pub(super) async fn is_over(self, answers: &ConnectionActivity, since: Instant) {
        let limit = |state| match state {
            State::Head => self.head,
            // One that answers is looked at again: HTTP/2's may end while nobody polls the connection.
            State::Answering | State::Idle => self.idle,
        };
        let (mut has_asked, mut last, mut end) = (false, State::Head, since + self.head);
        let mut timer = std::pin::pin!(tokio::time::sleep_until(end.into()));
        poll_fn(|cx| {
            loop {
                let asked_anew = answers.have_begun_anew();
                has_asked |= asked_anew;
                let state = self.state(answers, has_asked);
                if asked_anew || state != last {
                    let now = clock::now();
                    (last, end) = (state, now + limit(state));
                    answers.note_idle(state != State::Answering, now);
                }
                if timer.deadline().into_std() > end {
                    timer.as_mut().reset(end.into());
                }
                ready!(timer.as_mut().poll(cx));
                let now = clock::now();
                match (now >= end, state) {
                    (true, State::Head | State::Idle) => return Poll::Ready(()),
                    (true, State::Answering) => end = now + limit(state),
                    (false, _) => {}
                }
                timer.as_mut().reset(end.into());
            }
        })
        .await;
    }

    fn state(&self, answers: &ConnectionActivity, has_asked: bool) -> State {
        let is_http2 = self.version >= Version::HTTP_2;
        match () {
            // In HTTP/2 no one flush has an answer's end.
            () if answers.has_pending() || !(is_http2 || answers.is_flushed()) => State::Answering,
            // And not all that comes belongs to a head.
            () if !has_asked || (answers.is_head_begun() && !is_http2) => State::Head,
            () => State::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::body::Body;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(200);
    const MOMENT: Duration = Duration::from_millis(2);

    fn silence(version: Version) -> ConnectionTimeouts {
        ConnectionTimeouts { head: HEAD, idle: IDLE, version }
    }

    /// Looks at it as a connection does that something has just happened to, and then for so long.
    async fn is_over(silence: &mut (impl Future<Output = ()> + Unpin), within: Duration) -> bool {
        tokio::time::timeout(within, silence).await.is_ok()
    }

    /// It is over after this time from now, and no sooner.
    async fn is_over_after(silence: &mut (impl Future<Output = ()> + Unpin), time: Duration) -> bool {
        !is_over(silence, time - MOMENT).await && is_over(silence, 2 * MOMENT).await
    }

    /// A request is answered at once.
    fn exchange(answers: &ConnectionActivity) {
        answers.on_bytes_read();
        drop(answers.begin().with(Body::empty()));
        answers.flushed();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_asks_has_the_time_of_a_head_from_the_beginning() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let answers = ConnectionActivity::new();
            let mut silence = Box::pin(silence(version).is_over(&answers, clock::now()));
            assert!(!is_over(&mut silence, HEAD / 2).await);
            answers.on_bytes_read(); // a piece of a head, or a frame, buys no time
            assert!(is_over_after(&mut silence, HEAD / 2).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_is_idle_from_its_last_answer_on() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let answers = ConnectionActivity::new();
            let mut silence = Box::pin(silence(version).is_over(&answers, clock::now()));
            for _ in 0..3 {
                exchange(&answers);
                assert!(!is_over(&mut silence, IDLE - MOMENT).await);
            }
            exchange(&answers);
            assert!(is_over_after(&mut silence, IDLE).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_an_answer_or_takes_one_has_all_the_time() {
        let answers = ConnectionActivity::new();
        let mut silence = Box::pin(silence(Version::HTTP_11).is_over(&answers, clock::now()));
        answers.on_bytes_read();
        let parked = answers.begin();
        assert!(!is_over(&mut silence, 3 * IDLE).await);
        drop(parked.with(Body::empty()));
        assert!(!is_over(&mut silence, 3 * IDLE).await, "its last bytes are not flushed");
        answers.flushed();
        assert!(is_over_after(&mut silence, IDLE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_of_a_later_request_counts_from_its_first_byte_on() {
        let answers = ConnectionActivity::new();
        let mut silence = Box::pin(silence(Version::HTTP_11).is_over(&answers, clock::now()));
        exchange(&answers);
        assert!(!is_over(&mut silence, IDLE / 2).await);
        answers.on_bytes_read();
        assert!(!is_over(&mut silence, HEAD / 2).await);
        answers.on_bytes_read();
        assert!(is_over_after(&mut silence, HEAD / 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_of_an_upload_or_of_http2s_own_is_no_head() {
        let answers = ConnectionActivity::new();
        let mut one = Box::pin(silence(Version::HTTP_11).is_over(&answers, clock::now()));
        let uploading = answers.begin();
        answers.on_bytes_read();
        drop(uploading);
        answers.flushed();
        assert!(!is_over(&mut one, IDLE - MOMENT).await);

        let answers = ConnectionActivity::new();
        let mut two = Box::pin(silence(Version::HTTP_2).is_over(&answers, clock::now()));
        exchange(&answers);
        assert!(!is_over(&mut two, IDLE / 2).await);
        answers.on_bytes_read(); // such as a ping
        assert!(is_over_after(&mut two, IDLE / 2).await, "which does not make it busy either");
    }
}
