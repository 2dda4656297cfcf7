//! What the process does when it is told something.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::harness::admin_client::AdminClient;
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, get, within_timeout};

#[tokio::test]
async fn sigterm_and_sigint_end_it_with_0_though_an_idle_connection_stands() {
    for signal in ["TERM", "INT"] {
        let ground = TestEnv::new().await;
        ground.configure("drain_timeout = \"1h\"");
        let mut gateway = ground.start();
        let mut client = TestClient::connect(gateway.address().await).await;
        client.get("/x", &[]).await;
        gateway.signal(signal);
        client.wait_until_closed().await;
        assert_eq!(gateway.wait_for_exit().await.code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn sigterm_tells_each_of_500_parked_waits_its_clips_state_and_cuts_none_off() {
    tell_500(TestEnv::command).await;
}

#[tokio::test]
async fn sigterm_tells_each_of_500_parked_waits_its_clips_state_on_one_core_too() {
    tell_500(TestEnv::command_on_one_core).await;
}

async fn tell_500(command: fn(&TestEnv) -> Command) {
    let ids = ["a", "b", "c", "d", "e"];
    let ground = TestEnv::new().await;
    ids.iter().for_each(|id| ground.sim.set_status(id, "streaming"));
    // The last answers have a tenth of it: a thousand times what they take.
    ground.configure("drain_timeout = \"10s\"\n[limits]\nburst = 10000\ncalls_burst = 10000");
    let mut command = command(&ground);
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let admin = gateway.next_line().await;
    let operator =
        AdminClient::at(admin.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());

    // A connection each, and a hundred on one.
    let streams = TestClient::h2(TcpStream::connect(address).await.unwrap()).await;
    let TestClient::H2(streams) = streams else { panic!("it speaks HTTP/2") };
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
        while operator.state().await["waits"]["parked"] != 500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_timeout("500 waits to be parked", parked).await;

    gateway.signal("TERM");
    // Nobody reads a log of so many lines but us, and it must not wait.
    let (answers, log) = tokio::join!(within_timeout("the answers", waits.join_all()), gateway.rest_of_log());
    assert_eq!(answers.len(), 500);
    for (id, answer) in answers {
        let answer = answer.expect("it is not cut off");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(*answer.body(), ground.sim.body(id, "streaming"));
    }
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    // It says so where anybody is not told within the time.
    assert!(log.iter().any(|line| line.contains("stopped")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("cut off")), "{log:?}");
}

/// P7, and no wait is cut off: the simulated upstream is asked for the state until the drain is over.
#[tokio::test]
async fn sigterm_tells_each_parked_wait_of_a_simulated_upstream_its_clips_state() {
    let ground = TestEnv::new().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["serve", "--sim", "--listen", "127.0.0.1:0"]);
    ground.confine(&mut command);
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0").env("CLIPGATE__SERVER__DRAIN_TIMEOUT", "4s");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let admin = gateway.next_line().await;
    let operator =
        AdminClient::at(admin.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());

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
            let answer = client.send(get(&completed_target(&id), &[])).await;
            (id, answer)
        });
    }
    let parked = async {
        while operator.state().await["waits"]["parked"] != 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_timeout("3 waits to be parked", parked).await;

    gateway.signal("TERM");
    for (id, answer) in within_timeout("the answers", waits.join_all()).await {
        let answer = answer.expect("it is not cut off");
        assert_eq!(answer.status(), 200, "{answer:?}");
        let told: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(told["id"], id);
    }
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let ground = TestEnv::new().await;
    ground.configure("drain_timeout = \"1h\"");
    ground.sim.fault(FaultTarget::Path("/held".to_owned()), Fault::Hang, 1);
    let mut gateway = ground.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    let waiting = tokio::spawn(async move { client.send(get("/held", &[])).await });
    ground.sim.wait_until(|seen| seen.requests.len() == 1).await;
    gateway.signal("TERM");
    gateway.wait_for_log("stopping").await;
    gateway.signal("INT");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1));
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test]
async fn sighup_takes_over_what_can_be_and_names_what_takes_a_restart() {
    let ground = TestEnv::new().await;
    ground.configure("cors_origins = [\"https://old.example\"]");
    let mut gateway = ground.start();
    let address = gateway.address().await;
    let (mut client, mut parked) = (TestClient::connect(address).await, TestClient::connect(address).await);
    let origin = ("origin", "https://app.example");
    let answer = client.get("/x", &[origin]).await;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    let two = "/v2/generate/audio/suno-ai/clips?clip_ids[]=a&clip_ids[]=b&status=completed";
    ground.sim.set_status("a", "queued");
    let waiting = tokio::spawn(async move { parked.send(get(&completed_target("a"), &[])).await });
    ground.sim.wait_until(|seen| seen.open == 1).await;

    ground.configure(
        "cors_origins = [\"https://app.example\"]\nmax_connections = 7\ntrusted_proxies = [\"127.0.0.1\"]\n\
         [wait]\nmax_jobs = 1\nlinger = \"3s\"\n[log]\nlevel = \"debug\"",
    );
    gateway.signal("HUP");
    let line = gateway.wait_for_log("takes a restart").await;
    assert!(line.contains("server.max_connections, wait.linger\""), "{line}");
    gateway.wait_for_log("configuration reloaded").await;

    let answer = client.get("/x", &[origin, ("x-forwarded-for", "192.0.2.7")]).await;
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
    let line = gateway.wait_for_log("request_id=").await;
    assert!(line.contains("client.address=192.0.2.7 "), "{line}");
    assert_eq!(client.get(two, &[]).await.status(), 400, "one clip is the most now");
    gateway.wait_for_log(" DEBUG ").await;

    ground.sim.set_status("a", "complete");
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200, "no wait was dropped");
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_all_its_faults_and_the_old_one_stays() {
    let ground = TestEnv::new().await;
    ground.configure("cors_origins = [\"https://app.example\"]");
    let mut gateway = ground.start();
    let mut client = TestClient::connect(gateway.address().await).await;
    ground.configure("cors_origins = []\nheader_timeout = 3\nmax_conections = 1");
    gateway.signal("HUP");
    for key in ["server.header_timeout", "server.max_conections"] {
        let line = gateway.wait_for_log("fault in the configuration").await;
        assert!(line.contains(&format!("key={key} ")), "{line}");
    }
    let line = gateway.wait_for_log("the old one stays").await;
    assert!(line.contains("ERROR") && line.contains("faults=2"), "{line}");
    let answer = client.get("/x", &[("origin", "https://app.example")]).await;
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
}

#[tokio::test]
async fn sigterm_resets_nobody_who_has_connected_already_and_closes_each_once_it_is_answered() {
    let ground = TestEnv::new().await;
    let path = ground.path("gw.sock");
    let listen = format!("listen = [\"127.0.0.1:0\", {:?}]", format!("unix:{}", path.display()));
    ground.configure(&format!("{listen}\ndrain_timeout = \"1h\"\n[limits]\nburst = 10000"));
    ground.sim.set_status("a", "completed");
    let mut gateway = ground.start();
    let address = gateway.address().await;
    assert_eq!(TestClient::connect(address).await.get(&completed_target("a"), &[]).await.status(), 200);
    // While it stands still, clients connect and ask: more than it accepts in one go.
    gateway.signal("STOP");
    let mut asking = JoinSet::new();
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
        asking.spawn(async move {
            let answer = client.send(get(&target, &[])).await.expect("it is not reset");
            client.wait_until_closed().await;
            (n, answer)
        });
    }
    // Once each has had some turns, its request is on its way.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    gateway.signal("TERM");
    gateway.signal("CONT");
    for (n, answer) in within_timeout("the answers", asking.join_all()).await {
        assert_eq!(answer.status(), 200, "{n}");
    }
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn two_thousand_clients_connect_while_the_gateway_accepts_nobody() {
    let most: usize =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let ground = TestEnv::new().await;
    let path = ground.path("gw.sock");
    ground.configure(&format!("listen = [\"127.0.0.1:0\", {:?}]", format!("unix:{}", path.display())));
    let mut gateway = ground.start();
    let address = gateway.address().await;
    gateway.signal("STOP");
    let mut clients = (Vec::new(), Vec::new());
    for _ in 0..most.min(2000) {
        clients.0.push(within_timeout("a connection", TcpStream::connect(address)).await.unwrap());
        clients.1.push(within_timeout("a connection", tokio::net::UnixStream::connect(&path)).await.unwrap());
    }
    gateway.signal("CONT");
    let mut last = TestClient::h1(clients.0.pop().unwrap()).await;
    assert_eq!(last.get("/x", &[]).await.status(), 404);
}
