//! What the process does when it is told something.

use clipgate::sim::{Fault, On};

use crate::host::{Client, Ground, get};

#[tokio::test]
async fn sigterm_and_sigint_end_it_with_0_though_an_idle_connection_stands() {
    for signal in ["TERM", "INT"] {
        let ground = Ground::new().await;
        ground.configure("drain_timeout = \"1h\"");
        let mut gateway = ground.start();
        let mut client = Client::connect(gateway.address().await).await;
        client.get("/x", &[]).await;
        gateway.signal(signal);
        client.closed().await;
        assert_eq!(gateway.ended().await.code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let ground = Ground::new().await;
    ground.configure("drain_timeout = \"1h\"");
    ground.sim.fault(On::Path("/held".to_owned()), Fault::Hang, 1);
    let mut gateway = ground.start();
    let mut client = Client::connect(gateway.address().await).await;
    let waiting = tokio::spawn(async move { client.ask(get("/held", &[])).await });
    ground.sim.until(|seen| seen.requests.len() == 1).await;
    gateway.signal("TERM");
    gateway.logged("stopping").await;
    gateway.signal("INT");
    assert_eq!(gateway.ended().await.code(), Some(1));
    assert!(waiting.await.unwrap().is_err());
}
