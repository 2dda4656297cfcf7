//! An upstream that answers every request with the same bytes, and passes the received bytes to the test.

use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::within_secs;

/// Dropping it ends the upstream.
pub(crate) struct ScriptedUpstream {
    /// Value for `upstream.base_url`.
    pub(crate) url: Uri,
    requests: mpsc::UnboundedReceiver<String>,
    _task: AbortOnDropHandle<()>,
}

impl ScriptedUpstream {
    /// Answers each request after its head.
    pub(crate) async fn answering(answer: &'static str) -> Self {
        Self::answering_after("\r\n\r\n", answer).await
    }

    /// Answers each request once it ends with these bytes.
    pub(crate) async fn answering_after(end: &'static str, answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (request_sender, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, end, answer, request_sender.clone()));
            }
        });
        Self { url, requests, _task: AbortOnDropHandle::new(task) }
    }

    /// Returns the next request.
    pub(crate) async fn next_request(&mut self) -> String {
        within_secs(30, self.requests.recv()).await.unwrap()
    }
}

/// Serves a connection until the client closes it.
async fn serve(
    mut socket: TcpStream,
    end: &'static str,
    answer: &'static str,
    request_sender: mpsc::UnboundedSender<String>,
) {
    let mut seen = Vec::new();
    while let Ok(1..) = socket.read_buf(&mut seen).await {
        if seen.ends_with(end.as_bytes()) {
            let _ = request_sender.send(String::from_utf8_lossy(&std::mem::take(&mut seen)).into_owned());
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    }
}
