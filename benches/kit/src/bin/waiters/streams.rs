//! Clients that are streams of a few HTTP/2 connections.

use std::io;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::answer::Told;
use crate::{Args, Schedule, now_ns, say_asked};

/// All of them, to the last answer, so many on each connection.
pub(crate) fn wait(args: &Args, streams: usize) -> io::Result<Vec<Told>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let uri: Rc<str> = format!("http://{}{}", args.to, args.target).into();
        let key: Rc<str> = format!("Bearer {}", args.key).into();
        let schedule = Schedule::new(args);
        let (mut clients, mut sender) = (JoinSet::new(), None);
        for number in 0..args.waits {
            if number % streams == 0 {
                sender = Some(connect(args).await?);
            }
            tokio::time::sleep_until(schedule.due(number).into()).await;
            let sender = sender.clone().expect("there is a connection by now");
            clients.spawn_local(ask(sender, Rc::clone(&uri), Rc::clone(&key)));
        }
        // What is spawned asks as soon as this lets it.
        tokio::task::yield_now().await;
        say_asked()?;
        Ok(clients.join_all().await)
    })
}

type Sender = SendRequest<Empty<Bytes>>;

async fn connect(args: &Args) -> io::Result<Sender> {
    let stream = TcpStream::connect(args.to).await?;
    stream.set_nodelay(true)?;
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.initial_stream_window_size(64 << 10).initial_connection_window_size(16 << 20);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Its end shows itself in the answers that are missing.
    tokio::spawn(connection);
    sender.ready().await.map_err(io::Error::other)?;
    Ok(sender)
}

async fn ask(mut sender: Sender, uri: Rc<str>, key: Rc<str>) -> Told {
    let request = Request::get(&*uri)
        .header(AUTHORIZATION, &*key)
        .header(ACCEPT, "application/json")
        .body(Empty::new())
        .expect("it is well-formed");
    let asked_ns = now_ns();
    let Ok(response) = sender.send_request(request).await else { return Told::new(asked_ns, 0, b"") };
    let status = response.status().as_u16();
    match response.into_body().collect().await {
        Ok(body) => Told::new(asked_ns, status, &body.to_bytes()),
        Err(_) => Told::new(asked_ns, 0, b""),
    }
}
