//! Signals: stop, second stop, reload, and connections around a stop.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::harness::admin_client::AdminClient;
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, get, within_timeout};

#[tokio::test]
async fn sigterm_and_sigint_exit_with_0_and_close_idle_connections() {
    for signal in ["TERM", "INT"] {
        let env = TestEnv::new().await;
        env.configure("drain_timeout = \"1h\"");
        let mut gateway = env.start();
        let mut client = TestClient::connect(gateway.address().await).await;
        client.get("/x", &[]).await;
        gateway.signal(signal);
        client.wait_until_closed().await;
        assert_eq!(gateway.wait_for_exit().await.code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn sigterm_answers_each_of_500_parked_waits_with_its_clips_state() {
    drain_500_waits(TestEnv::command).await;
}

#[tokio::test]
async fn sigterm_answers_each_of_500_parked_waits_on_one_core() {
    drain_500_waits(TestEnv::command_on_one_core).await;
}

async fn drain_500_waits(command: fn(&TestEnv) -> Command) {
    let ids = ["a", "b", "c", "d", "e"];
    let env = TestEnv::new().await;
    ids.iter().for_each(|id| env.sim.set_status(id, "streaming"));
    // The last responses get a tenth of this time: a thousand times more than they need.
    env.configure("drain_timeout = \"10s\"\n[limits]\nburst = 10000\ncalls_burst = 10000");
    let mut command = command(&env);
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let line = gateway.next_line().await;
    let admin = AdminClient::at(line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());

    // 400 waits have their own connection, 100 share one.
    let streams = TestClient::h2(TcpStream::connect(address).await.unwrap()).await;
    let TestClient::H2(streams) = streams else { panic!("not an HTTP/2 client") };
    let mut waits = JoinSet::new();
    for n in 0..500 {
        let mut client = match n % 5 {
            0 => TestClient::H2(streams.clone()),
            _ => TestClient::connect(address).await,
        };
        let id = ids[(n / 5) % ids.len()];
        let target = match n % 5 {
            0 => format!("http://{address}{}", completed_target(id)),
            _ => completed_target(id),
        };
        waits.spawn(async move { (id, client.send(get(&target, &[])).await) });
    }
    let parked = async {
        while admin.state().await["waits"]["parked"] != 500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_timeout("500 parked waits", parked).await;

    gateway.signal("TERM");
    // The log is read meanwhile, so that a full pipe drops no line.
    let (responses, log) =
        tokio::join!(within_timeout("the responses", waits.join_all()), gateway.rest_of_log());
    assert_eq!(responses.len(), 500);
    for (id, response) in responses {
        let response = response.expect("the response is complete");
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(*response.body(), env.sim.body(id, "streaming"));
    }
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    // The log would report connections that are cut off at the end of the drain.
    assert!(log.iter().any(|line| line.contains("stopped")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("cut off")), "{log:?}");
}

/// P7: the simulated upstream answers snapshots until the end of the drain.
#[tokio::test]
async fn sigterm_answers_each_parked_wait_on_a_simulated_upstream() {
    let env = TestEnv::new().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["serve", "--sim", "--listen", "127.0.0.1:0"]);
    env.confine(&mut command);
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0").env("CLIPGATE__SERVER__DRAIN_TIMEOUT", "4s");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let line = gateway.next_line().await;
    let admin = AdminClient::at(line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());

    let mut client = TestClient::connect(address).await;
    let mut ids = Vec::new();
    while ids.len() < 3 {
        let mut make = get("/v2/generate/audio/suno-ai/clip", &[]);
        *make.method_mut() = http::Method::POST;
        let made = client.send(make).await.unwrap();
        let made: serde_json::Value = serde_json::from_slice(made.body()).unwrap();
        let pair = made["clip_ids"].as_array().unwrap();
        ids.extend(pair.iter().map(|id| id.as_str().unwrap().to_owned()));
    }
    ids.truncate(3);
    let mut waits = JoinSet::new();
    for id in ids {
        let mut client = TestClient::connect(address).await;
        waits.spawn(async move {
            let response = client.send(get(&completed_target(&id), &[])).await;
            (id, response)
        });
    }
    let parked = async {
        while admin.state().await["waits"]["parked"] != 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_timeout("3 parked waits", parked).await;

    gateway.signal("TERM");
    for (id, response) in within_timeout("the responses", waits.join_all()).await {
        let response = response.expect("the response is complete");
        assert_eq!(response.status(), 200, "{response:?}");
        let state: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(state["id"], id);
    }
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let env = TestEnv::new().await;
    env.configure("drain_timeout = \"1h\"");
    env.sim.fault(FaultTarget::Path("/held".to_owned()), Fault::Hang, 1);
    let mut gateway = env.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let waiting = tokio::spawn(async move { client.send(get("/held", &[])).await });
    env.sim.wait_until(|seen| seen.requests.len() == 1).await;
    gateway.signal("TERM");
    gateway.wait_for_log("stopping").await;
    gateway.signal("INT");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1));
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test]
async fn sighup_applies_keys_and_names_those_that_need_a_restart() {
    let env = TestEnv::new().await;
    env.configure("cors_origins = [\"https://old.example\"]");
    let mut gateway = env.start_with_json_log();
    let address = gateway.address().await;
    let (mut client, mut parked) = (TestClient::connect(address).await, TestClient::connect(address).await);
    let origin = ("origin", "https://app.example");
    let response = client.get("/x", &[origin]).await;
    assert!(!response.headers().contains_key("access-control-allow-origin"));
    let two = "/v2/generate/audio/suno-ai/clips?clip_ids[]=a&clip_ids[]=b&status=completed";
    env.sim.set_status("a", "queued");
    let waiting = tokio::spawn(async move { parked.send(get(&completed_target("a"), &[])).await });
    env.sim.wait_until(|seen| seen.open == 1).await;

    env.configure(
        "cors_origins = [\"https://app.example\"]\nmax_connections = 7\ntrusted_proxies = [\"127.0.0.1\"]\n\
         [wait]\nmax_jobs = 1\nlinger = \"3s\"\n[log]\nlevel = \"debug\"",
    );
    gateway.signal("HUP");
    let line = gateway.wait_for_log("changed keys need a restart").await;
    assert!(line.contains("server.max_connections, wait.linger\""), "{line}");
    gateway.wait_for_log("configuration reloaded").await;

    let response = client.get("/x", &[origin, ("x-forwarded-for", "192.0.2.7")]).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example");
    let line = gateway.wait_for_log("clipgate.request_id").await;
    assert!(line.contains(r#""client.address":"192.0.2.7""#), "{line}");
    assert_eq!(client.get(two, &[]).await.status(), 400, "the new limit is one clip");
    gateway.wait_for_log(r#""level":"DEBUG""#).await;

    env.sim.set_status("a", "complete");
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200, "no wait was dropped");
}

#[tokio::test]
async fn an_invalid_configuration_is_rejected_with_all_errors_and_the_old_one_stays() {
    let env = TestEnv::new().await;
    env.configure("cors_origins = [\"https://app.example\"]");
    let mut gateway = env.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    env.configure("cors_origins = []\nheader_timeout = 3\nmax_conections = 1");
    gateway.signal("HUP");
    for key in ["server.header_timeout", "server.max_conections"] {
        let line = gateway.wait_for_log("invalid configuration").await;
        assert!(line.contains(&format!("key={key} ")), "{line}");
    }
    let line = gateway.wait_for_log("the previous one stays in use").await;
    assert!(line.contains("ERROR") && line.contains("errors=2"), "{line}");
    let response = client.get("/x", &[("origin", "https://app.example")]).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "https://app.example");
}

#[tokio::test]
async fn sigterm_answers_connected_clients_without_a_reset_and_then_closes() {
    let env = TestEnv::new().await;
    let path = env.path("gw.sock");
    let listen = format!("listen = [\"127.0.0.1:0\", {:?}]", format!("unix:{}", path.display()));
    env.configure(&format!("{listen}\ndrain_timeout = \"1h\"\n[limits]\nburst = 10000"));
    env.sim.set_status("a", "completed");
    let mut gateway = env.start();
    let address = gateway.address().await;
    assert_eq!(TestClient::connect(address).await.get(&completed_target("a"), &[]).await.status(), 200);
    // While the process is stopped, more clients connect than it accepts in one turn.
    gateway.signal("STOP");
    let mut requests = JoinSet::new();
    for n in 0..600 {
        let mut client = match n % 3 {
            0 => TestClient::connect(address).await,
            1 => TestClient::h1(tokio::net::UnixStream::connect(&path).await.unwrap()).await,
            _ => TestClient::h2(TcpStream::connect(address).await.unwrap()).await,
        };
        let target = match n % 3 {
            2 => format!("http://{address}{}", completed_target("a")),
            _ => completed_target("a"),
        };
        requests.spawn(async move {
            let response = client.send(get(&target, &[])).await.expect("the connection is not reset");
            client.wait_until_closed().await;
            (n, response)
        });
    }
    // After some turns of each task, its request is in the socket.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    gateway.signal("TERM");
    gateway.signal("CONT");
    for (n, response) in within_timeout("the responses", requests.join_all()).await {
        assert_eq!(response.status(), 200, "{n}");
    }
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn two_thousand_clients_connect_while_the_gateway_accepts_none() {
    let somaxconn: usize =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let env = TestEnv::new().await;
    let path = env.path("gw.sock");
    env.configure(&format!("listen = [\"127.0.0.1:0\", {:?}]", format!("unix:{}", path.display())));
    let mut gateway = env.start();
    let address = gateway.address().await;
    gateway.signal("STOP");
    let mut clients = (Vec::new(), Vec::new());
    for _ in 0..somaxconn.min(2000) {
        clients.0.push(within_timeout("a connection", TcpStream::connect(address)).await.unwrap());
        clients.1.push(within_timeout("a connection", tokio::net::UnixStream::connect(&path)).await.unwrap());
    }
    gateway.signal("CONT");
    let mut last = TestClient::h1(clients.0.pop().unwrap()).await;
    assert_eq!(last.get("/x", &[]).await.status(), 404);
}
