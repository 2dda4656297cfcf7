//! An upstream that answers every connection with the same bytes, and tells what it was asked, byte for byte.

use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::within_secs;

/// It ends with the handle.
pub(crate) struct ScriptedUpstream {
    /// Its `upstream.base_url`.
    pub(crate) url: Uri,
    next_request: mpsc::UnboundedReceiver<String>,
    _task: AbortOnDropHandle<()>,
}

impl ScriptedUpstream {
    /// An upstream that takes a request's head for the whole of it.
    pub(crate) async fn answering(answer: &'static str) -> Self {
        Self::answering_after("\r\n\r\n", answer).await
    }

    /// An upstream that answers once what it was asked ends with these bytes.
    pub(crate) async fn answering_after(end: &'static str, answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (tell, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, end, answer, tell.clone()));
            }
        });
        Self { url, next_request: asked, _task: AbortOnDropHandle::new(task) }
    }

    /// The next request.
    pub(crate) async fn asked(&mut self) -> String {
        within_secs(30, self.next_request.recv()).await.unwrap()
    }
}

/// The connection stays until its other end closes it.
async fn serve(
    mut socket: TcpStream,
    end: &'static str,
    answer: &'static str,
    tell: mpsc::UnboundedSender<String>,
) {
    let mut seen = Vec::new();
    while let Ok(1..) = socket.read_buf(&mut seen).await {
        if seen.ends_with(end.as_bytes()) {
            let _ = tell.send(String::from_utf8_lossy(&std::mem::take(&mut seen)).into_owned());
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    }
}
