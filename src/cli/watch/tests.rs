//! The follower against scripted servers, and the selection of routes and jobs.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::core::job::JobId;
use crate::core::route::{JsonPointer, PathTemplate, Route, RungSpec, StatusSource};

/// Returns a route of an API that never holds, with the words of Replicate.
fn predictions(path: &str) -> Route {
    Route {
        name: "predictions".to_owned(),
        path: PathTemplate::parse(path).unwrap(),
        id_param: None,
        list: None,
        ladder: Ladder::new(vec![
            RungSpec::pending("starting"),
            RungSpec::pending("processing"),
            RungSpec::succeeded("succeeded"),
            RungSpec::failed("failed"),
        ]),
        wait_param: None,
        pace: Duration::from_millis(20),
        max_pace: Duration::from_millis(40),
        ..Route::never_holding()
    }
}

/// A server that sends one response to each connection, in order, and returns the heads of the requests.
struct ScriptedServer {
    url: Uri,
    heads: mpsc::UnboundedReceiver<String>,
    _task: AbortOnDropHandle<()>,
}

impl ScriptedServer {
    async fn new(responses: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (sender, heads) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            for response in responses {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    assert_ne!(socket.read_buf(&mut head).await.unwrap(), 0, "the request has no end");
                }
                sender.send(String::from_utf8(head).unwrap().to_ascii_lowercase()).unwrap();
                socket.write_all(response.as_bytes()).await.unwrap();
            }
        });
        Self { url, heads, _task: AbortOnDropHandle::new(task) }
    }
}

fn response(status: &str, kind: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}")
}

fn job(status: &str) -> String {
    response("200 OK", "application/json", &format!("{{\"id\":\"a\",\"status\":\"{status}\"}}"))
}

fn stream(events: &str) -> String {
    response("200 OK", "text/event-stream", events)
}

fn event(name: &str, status: &str) -> String {
    format!("event: {name}\nid: x:{status}\ndata: {{\"id\":\"a\",\ndata: \"status\":\"{status}\"}}\n\n")
}

/// Follows the job `a`. Returns each update as a word, and the heads of the requests.
async fn followed(route: Route, responses: Vec<String>) -> (Vec<String>, Vec<String>) {
    let count = responses.len();
    let mut server = ScriptedServer::new(responses).await;
    let upstream = config::UpstreamConfig { base_url: server.url.clone(), ..Config::default().upstream };
    let follower = Follower {
        client: Client::new(&upstream).unwrap(),
        server: server.url.clone(),
        has_own_authorities: false,
        fields: Vec::new(),
        goal: route.ladder.highest_askable(),
        deadline: clock::now() + Duration::from_secs(30),
        route: Arc::new(route),
    };
    let (sender, mut updates) = mpsc::channel(UPDATES);
    follower.follow(&JobId::new("a").unwrap(), 0, &sender).await;
    drop(sender);
    let mut words = Vec::new();
    while let Some((_, update)) = updates.recv().await {
        words.push(match update {
            Update::State(rung, _) => follower.route.ladder.name(rung).to_owned(),
            Update::Retrying(reason, _) => format!("retry: {reason}"),
            Update::Ended(Ending::Rejected(reason)) => format!("rejected: {reason}"),
            Update::Ended(ending) => format!("{ending:?}"),
        });
    }
    let mut heads = Vec::new();
    while let Ok(head) = server.heads.try_recv() {
        heads.push(head);
    }
    assert_eq!(heads.len(), count, "{words:?}");
    (words, heads)
}

#[tokio::test]
async fn an_api_without_events_is_polled_and_each_change_is_shown() {
    let states = ["starting", "starting", "processing", "starting", "succeeded"];
    let (words, heads) = followed(predictions("/v1/predictions/{id}"), states.map(job).into()).await;
    assert_eq!(words, ["starting", "processing", "starting", "succeeded", "Reached"]);
    assert!(heads[0].contains("accept: text/event-stream, application/json;q=0.9\r\n"), "{}", heads[0]);
    for head in &heads[1..] {
        assert!(head.starts_with("get /v1/predictions/a http/1.1\r\n"), "{head}");
        assert!(head.contains("accept: application/json\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_pause_that_the_api_asks_for_is_kept() {
    let paused = job("processing").replace("connection:", "retry-after: 1\r\nconnection:");
    let started = clock::now();
    let (words, _) = followed(predictions("/v1/predictions/{id}"), vec![paused, job("failed")]).await;
    assert_eq!(words, ["processing", "failed", "Failed"]);
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_stream_that_ends_early_is_continued_after_its_last_event() {
    let first = stream(&format!("retry: 10\n{}", event("status", "starting")));
    let second = stream(&format!(":\n{}{}", event("status", "succeeded"), event("done", "over")));
    let (words, heads) = followed(predictions("/v1/predictions/{id}"), vec![first, second]).await;
    assert_eq!(words, ["starting", "succeeded", "Reached"]);
    assert!(!heads[0].contains("last-event-id"), "{}", heads[0]);
    assert!(heads[1].contains("last-event-id: x:starting\r\n"), "{}", heads[1]);
}

#[tokio::test]
async fn an_error_event_is_retried_unless_it_has_an_id() {
    let busy = stream("event: error\nretry: 10\ndata: {\"message\":\"busy\",\"statusCode\":503}\n\n");
    let gone = stream("event: error\nid: x:over\ndata: {\"message\":\"gone\"}\n\n");
    let (words, _) = followed(predictions("/v1/predictions/{id}"), vec![busy, gone]).await;
    assert_eq!(words, ["retry: 503 Service Unavailable: busy", "rejected: gone"]);
}

#[tokio::test]
async fn events_of_another_protocol_and_a_406_are_answered_by_polling() {
    let other = stream("event: output\ndata: \"a token\"\n\n");
    let refused = response("406 Not Acceptable", "text/plain", "");
    for first in [other, refused] {
        let (words, heads) =
            followed(predictions("/v1/predictions/{id}"), vec![first, job("succeeded")]).await;
        assert_eq!(words, ["succeeded", "Reached"]);
        assert!(heads[1].contains("accept: application/json\r\n"), "{}", heads[1]);
    }
}

#[tokio::test]
async fn where_the_http_status_is_the_state_no_events_are_requested() {
    let route = predictions("/v1/results/{id}");
    let ladder = Ladder::new(vec![
        RungSpec::pending("running").with_aliases(&["202"]),
        RungSpec::succeeded("done").with_aliases(&["200"]),
    ]);
    let route = Route { status: StatusSource::HttpStatus, id: None, ladder, ..route };
    let responses = vec![response("202 Accepted", "text/plain", ""), response("200 OK", "image/png", "PNG")];
    let (words, heads) = followed(route, responses).await;
    assert_eq!(words, ["running", "done", "Reached"]);
    assert!(heads.iter().all(|head| !head.contains("event-stream")), "{heads:?}");
}

#[test]
fn a_path_or_a_url_selects_the_route_and_its_server() {
    let fal = Route {
        name: "fal".to_owned(),
        id: Some(JsonPointer::parse("/request_id").unwrap()),
        ..predictions("/{owner}/{app}/requests/{id}/status")
    };
    let config =
        Config { routes: vec![predictions("/v1/predictions/{id}"), fal.clone()], ..Config::default() };
    let select = |arg: &str, name| {
        let selected = select(&[job_arg(arg).unwrap()], name, Some(&config));
        selected.map(|found| (found.route.name, found.jobs, found.server)).map_err(|error| error.to_string())
    };
    let job = |id| vec![JobId::new(id).unwrap()];
    assert_eq!(select("/v1/predictions/x", None), Ok(("predictions".to_owned(), job("x"), None)));
    assert_eq!(select("x", Some("predictions")), Ok(("predictions".to_owned(), job("x"), None)));
    assert_eq!(select("x", Some("suno")), Ok(("suno".to_owned(), job("x"), None)));
    let (name, jobs, server) = select("https://queue.fal.run/o/app/requests/x/status", None).unwrap();
    assert_eq!((name.as_str(), jobs[0].as_str(), jobs[0].rest()), ("fal", "x", "o/app"));
    assert_eq!(server.unwrap().to_string(), "https://queue.fal.run/");
    assert_eq!(
        select("/v2/generate/audio/suno-ai/clip?clip_id=x", None),
        Ok(("suno".to_owned(), job("x"), None))
    );
    for (arg, name, hint) in [
        ("x", None, "--route with one of predictions, fal"),
        ("x", Some("fal"), "needs its path, as in /{owner}/{app}/requests/{id}/status"),
        ("x", Some("replica"), "`replica` is not a route"),
        ("/v9/x", None, "no route has this path"),
        ("/v9/x", Some("predictions"), "whose path is /v1/predictions/{id}"),
        ("/v1/predictions/x?unknown=1", Some("predictions"), "not a job of the route"),
    ] {
        let error = select(arg, name).unwrap_err();
        assert!(error.contains(hint), "{arg}: {error}");
    }
    for bad in ["", "ftp://host/x", "http://user@host/x", "https://"] {
        assert!(job_arg(bad).is_err(), "{bad}");
    }
    assert_eq!(goal(&fal, Some("processing")).ok(), fal.ladder.rung("processing"));
    assert_eq!(goal(&fal, None).ok(), fal.ladder.rung("succeeded"));
    assert!(goal(&fal, Some("failed")).unwrap_err().to_string().contains("starting, processing, succeeded"));
}

#[test]
fn the_exit_code_is_that_of_the_worst_ending() {
    let rows = [
        (&[Ending::Reached, Ending::Reached][..], 0),
        (&[Ending::Failed, Ending::Reached], 3),
        (&[Ending::TimedOut, Ending::Failed], 4),
        (&[Ending::Failed, Ending::TimedOut], 4),
        (&[Ending::TimedOut, Ending::Rejected("no".to_owned()), Ending::Failed], 1),
    ];
    for (endings, code) in rows {
        assert_eq!(endings.iter().fold(0, worse_code), code, "{endings:?}");
    }
    assert_eq!(rows.len(), 5);
}
