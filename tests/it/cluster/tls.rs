//! TLS to the engine.

use super::engine::{TestEngine, free_port};
use super::replica::{Replicas, configure};
use crate::clients::tls::Authority;
use crate::harness::process::TestEnv;

#[tokio::test]
async fn replicas_trust_the_authority_of_the_engine_and_refuse_another_in_words() {
    let env = TestEnv::new().await;
    configure(&env, "");
    Authority::new().write_certificate(&env, "127.0.0.1");
    let file = |name: &str| env.path(name).to_str().unwrap().to_owned();
    let (certificate, key, roots) = (file("cert.pem"), file("key.pem"), file("ca.pem"));
    let port = free_port().await.to_string();
    let engine = TestEngine::start_with(
        "redis-server",
        &[
            "--tls-port",
            &port,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &roots,
            "--tls-auth-clients",
            "no",
        ],
    )
    .await;
    let url = format!("rediss://127.0.0.1:{port}");
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for _ in 0..2 {
        replicas.add(&url, &[("SSL_CERT_FILE", &roots)]).await;
    }
    replicas.wait_until_all_meet().await;
    let waits = replicas.park("a", 3).await;
    replicas.complete("a", waits.into_iter().flatten().collect()).await;
    assert_eq!(replicas.polls("a"), 1);

    let others = TestEnv::new().await;
    Authority::new().write_certificate(&others, "127.0.0.1");
    let other_roots = others.path("ca.pem").to_str().unwrap().to_owned();
    replicas.add(&url, &[("SSL_CERT_FILE", &other_roots)]).await;
    let stranger = replicas.all.last_mut().unwrap();
    let line = stranger.process.wait_for_log("no connection to the engine").await;
    assert!(line.contains("invalid peer certificate") && line.contains("SSL_CERT_FILE"), "{line}");
    stranger.wait_for_state("no link", |state| state["cluster"]["link"] == "apart").await;
    replicas.env.sim.set_status("b", "completed");
    let answer = replicas.all[2].get(&crate::harness::process::completed_target("b"), &[]).await;
    assert_eq!(answer.status(), 200, "it goes on alone");
}
