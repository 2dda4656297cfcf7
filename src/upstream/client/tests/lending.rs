//! Whether an HTTP/1.1 connection counts as idle while it carries a request, whatever its driver does at that moment.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use http::HeaderValue;
use tokio::net::TcpStream;

use super::super::connect::Stream;
use super::super::http1::{Http1, Lease};
use super::*;
use crate::clock;

/// The driver looks for a request, finds none, and says that it wants one: in between, one was handed to it. Its
/// connection was then lent to a second request, which waited behind the first.
#[tokio::test]
async fn a_connection_that_has_just_been_lent_is_not_idle_however_its_driver_is_polled() {
    let (listener, addr) = listen().await;
    let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
    let host = HeaderValue::from_static("localhost");
    let runtime = tokio::runtime::Handle::current();
    for round in 0..300 {
        let near = TcpStream::connect(addr).await.unwrap();
        let _far = listener.accept().await.unwrap();
        let (pool, retire_at) = (Arc::downgrade(&client.pool), clock::now() + Duration::from_secs(3600));
        let (http1, driver) = Http1::handshake(Stream::Plain(near), retire_at, pool.clone()).await.unwrap();
        let mut sending = Box::pin(Lease::new(http1, pool).send(get(&client, "/"), &host, None));
        let (mut driver, is_polled, is_sent) =
            (Box::pin(driver), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _entered = runtime.enter();
                while !is_sent.load(Ordering::Relaxed) {
                    assert!(driver.as_mut().now_or_never().is_none());
                    is_polled.store(true, Ordering::Relaxed);
                }
            });
            while !is_polled.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            assert!(sending.as_mut().now_or_never().is_none());
            is_sent.store(true, Ordering::Relaxed);
        });
        assert!(driver.as_mut().now_or_never().is_none());
        assert_eq!(client.pool.usable(), 0, "round {round}");
    }
}
