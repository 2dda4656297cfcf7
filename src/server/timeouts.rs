//! Time-outs of a client connection on which no request is under way.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use http::Version;

use super::activity::ConnectionActivity;
use crate::clock;

#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTimeouts {
    /// For a head, from its first byte. For the first head, from the start of the connection, so that a silent client
    /// does not keep its permit.
    pub(super) head: Duration,
    /// From the end of the last response.
    pub(super) idle: Duration,
    pub(super) version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ConnectionPhase {
    /// The gateway works on a response, or the client reads one.
    Responding,
    /// A head has to arrive completely.
    ReadingHead,
    /// A request may come.
    Idle,
}

impl ConnectionTimeouts {
    /// Resolves when the current phase has lasted too long. The phase of the first head starts at `since`.
    ///
    /// Poll it after the connection, each time: it registers no waker for activity. There is one timer. It is not
    /// reset for each request: when it fires, it is set to the rest of the time.
    ///
    /// Cancel safe: a new call starts with the phase of a first head.
    pub(super) fn expired(self, activity: &ConnectionActivity, since: Instant) -> impl Future<Output = ()> {
        let limit = move |phase| match phase {
            ConnectionPhase::ReadingHead => self.head,
            // Checked again then: HTTP/2 may end a response while the connection is not polled.
            ConnectionPhase::Responding | ConnectionPhase::Idle => self.idle,
        };
        let (mut has_requested, mut last, mut end) = (false, ConnectionPhase::ReadingHead, since + self.head);
        let mut timer = Box::pin(tokio::time::sleep_until(end.into()));
        poll_fn(move |cx| {
            loop {
                let has_begun = activity.take_has_begun();
                has_requested |= has_begun;
                let phase = self.phase(activity, has_requested);
                if phase == ConnectionPhase::Responding {
                    activity.set_busy();
                    if self.version < Version::HTTP_2 {
                        // The timer ends nothing in this phase, and the end of the response polls the connection.
                        last = phase;
                        return Poll::Pending;
                    }
                } else if has_begun || phase != last {
                    let now = clock::now();
                    end = now + limit(phase);
                    activity.set_idle(now);
                    if timer.deadline().into_std() > end {
                        timer.as_mut().reset(end.into());
                    }
                }
                last = phase;
                ready!(timer.as_mut().poll(cx));
                let now = clock::now();
                match phase {
                    ConnectionPhase::Responding => end = now + limit(phase),
                    ConnectionPhase::ReadingHead | ConnectionPhase::Idle if now >= end => {
                        return Poll::Ready(());
                    }
                    ConnectionPhase::ReadingHead | ConnectionPhase::Idle => {}
                }
                timer.as_mut().reset(end.into());
            }
        })
    }

    fn phase(&self, activity: &ConnectionActivity, has_requested: bool) -> ConnectionPhase {
        let is_http2 = self.version >= Version::HTTP_2;
        match () {
            // In HTTP/2 a flush does not mark the end of a response,
            () if activity.is_responding() || !(is_http2 || activity.is_flushed()) => {
                ConnectionPhase::Responding
            }
            // and incoming bytes need not belong to a head.
            () if !has_requested || (activity.is_head_begun() && !is_http2) => ConnectionPhase::ReadingHead,
            () => ConnectionPhase::Idle,
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

    fn timeouts(version: Version) -> ConnectionTimeouts {
        ConnectionTimeouts { head: HEAD, idle: IDLE, version }
    }

    /// Polls the timeout, as a connection does after activity, and then waits for this time.
    async fn has_expired(timeout: &mut (impl Future<Output = ()> + Unpin), within: Duration) -> bool {
        tokio::time::timeout(within, timeout).await.is_ok()
    }

    /// Returns whether the timeout resolves after this time from now, and no sooner.
    async fn expires_after(timeout: &mut (impl Future<Output = ()> + Unpin), time: Duration) -> bool {
        !has_expired(timeout, time - MOMENT).await && has_expired(timeout, 2 * MOMENT).await
    }

    /// Records a request that is answered at once.
    fn exchange(activity: &ConnectionActivity) {
        activity.on_bytes_read();
        drop(activity.begin().with(Body::empty()));
        activity.flushed();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_sends_a_request_has_the_time_of_a_head_from_the_start() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let activity = ConnectionActivity::new();
            let mut timeout = Box::pin(timeouts(version).expired(&activity, clock::now()));
            assert!(!has_expired(&mut timeout, HEAD / 2).await);
            activity.on_bytes_read(); // a part of a head, or a frame, extends no deadline
            assert!(expires_after(&mut timeout, HEAD / 2).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_is_idle_from_the_end_of_its_last_response() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let activity = ConnectionActivity::new();
            let mut timeout = Box::pin(timeouts(version).expired(&activity, clock::now()));
            for _ in 0..3 {
                exchange(&activity);
                assert!(!has_expired(&mut timeout, IDLE - MOMENT).await);
            }
            exchange(&activity);
            assert!(expires_after(&mut timeout, IDLE).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_a_response_or_reads_one_has_no_deadline() {
        let activity = ConnectionActivity::new();
        let mut timeout = Box::pin(timeouts(Version::HTTP_11).expired(&activity, clock::now()));
        activity.on_bytes_read();
        let parked = activity.begin();
        assert!(!has_expired(&mut timeout, 3 * IDLE).await);
        drop(parked.with(Body::empty()));
        assert!(!has_expired(&mut timeout, 3 * IDLE).await, "the last bytes are not flushed");
        activity.flushed();
        assert!(expires_after(&mut timeout, IDLE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_of_a_later_request_has_its_time_from_the_first_byte() {
        let activity = ConnectionActivity::new();
        let mut timeout = Box::pin(timeouts(Version::HTTP_11).expired(&activity, clock::now()));
        exchange(&activity);
        assert!(!has_expired(&mut timeout, IDLE / 2).await);
        activity.on_bytes_read();
        assert!(!has_expired(&mut timeout, HEAD / 2).await);
        activity.on_bytes_read();
        assert!(expires_after(&mut timeout, HEAD / 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_an_upload_and_frames_of_http2_do_not_begin_a_head() {
        let activity = ConnectionActivity::new();
        let mut one = Box::pin(timeouts(Version::HTTP_11).expired(&activity, clock::now()));
        let upload = activity.begin();
        activity.on_bytes_read();
        drop(upload);
        activity.flushed();
        assert!(!has_expired(&mut one, IDLE - MOMENT).await);

        let activity = ConnectionActivity::new();
        let mut two = Box::pin(timeouts(Version::HTTP_2).expired(&activity, clock::now()));
        exchange(&activity);
        assert!(!has_expired(&mut two, IDLE / 2).await);
        activity.on_bytes_read(); // such as a ping
        assert!(expires_after(&mut two, IDLE / 2).await, "a frame does not make the connection busy");
    }
}
