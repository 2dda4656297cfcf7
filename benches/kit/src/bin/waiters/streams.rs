//! Clients as streams of a few HTTP/2 connections.

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

use crate::response::Response;
use crate::{Args, Schedule, now_ns, print_sent};

/// Runs all clients until the last response, with this number of streams on each connection.
pub(crate) fn wait(args: &Args, streams: usize) -> io::Result<Vec<Response>> {
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
            let sender = sender.clone().expect("number 0 has connected");
            clients.spawn_local(send(sender, Rc::clone(&uri), Rc::clone(&key)));
        }
        // Lets the spawned clients send their requests.
        tokio::task::yield_now().await;
        print_sent()?;
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
    // The end of the connection fails its streams.
    tokio::spawn(connection);
    sender.ready().await.map_err(io::Error::other)?;
    Ok(sender)
}

async fn send(mut sender: Sender, uri: Rc<str>, key: Rc<str>) -> Response {
    let request = Request::get(&*uri)
        .header(AUTHORIZATION, &*key)
        .header(ACCEPT, "application/json")
        .body(Empty::new())
        .expect("a valid request");
    let sent_ns = now_ns();
    let Ok(response) = sender.send_request(request).await else { return Response::new(sent_ns, 0, b"") };
    let status = response.status().as_u16();
    match response.into_body().collect().await {
        Ok(body) => Response::new(sent_ns, status, &body.to_bytes()),
        Err(_) => Response::new(sent_ns, 0, b""),
    }
}
