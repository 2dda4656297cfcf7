//! Accepts connections, serves each in the protocol that its client speaks, and ends them all on shutdown.
//!
//! [`serve`] tracks and ends every task, including hyper's tasks for HTTP/2 streams, so a held poll never delays a
//! shutdown. This file does not know clips.

use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{ConnectionControl, ResettableSocket};
use super::recorder::ConnectionGuard;
use super::state::{SimShared, SimState};
use super::{api, debug_endpoints};

/// The pause after a failed `accept`, mostly for a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Most header fields of a request. More than a gateway in front passes on.
const MAX_FIELDS: usize = 1100;

pub(super) async fn serve(sim: Arc<SimShared>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let tasks = ConnectionTasks::default();
    // Ends the tasks if this future is dropped.
    let _stop_on_drop = tasks.stop.clone().drop_guard();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // Cancel safe: `accept` loses no connection, and `shutdown` lives outside the loop.
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Cancel safe: a pause.
            tokio::select! {
                () = &mut shutdown => break,
                () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
            }
        };
        if !refuses_connection(&sim) {
            tasks.execute(serve_until_reset(Arc::clone(&sim), stream, tasks.clone()));
        }
    }
    drop(listener);
    tasks.stop.cancel();
    tasks.tracker.close();
    tasks.tracker.wait().await;
}

fn refuses_connection(sim: &SimShared) -> bool {
    let SimState { faults, rng, .. } = &mut *sim.state.lock();
    faults.refuses_connection(rng)
}

/// The tasks of one [`serve`] call.
#[derive(Clone, Default)]
struct ConnectionTasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for ConnectionTasks {
    fn execute(&self, task: F) {
        self.tracker.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }
}

/// Serves a connection until its end, or until all connections are reset.
async fn serve_until_reset(sim: Arc<SimShared>, stream: TcpStream, tasks: ConnectionTasks) {
    let (mut resets, control) = (sim.resets.subscribe(), Arc::new(ConnectionControl::default()));
    let _connected = ConnectionGuard::new(&sim.recorder);
    let reset = async {
        let _ = resets.changed().await;
        control.reset();
    };
    // Cancel safe: a reset drops the connection with all its requests.
    tokio::select! {
        () = serve_connection(Arc::clone(&sim), stream, Arc::clone(&control), tasks) => {}
        () = reset => {}
    }
}

async fn serve_connection(
    sim: Arc<SimShared>,
    stream: TcpStream,
    control: Arc<ConnectionControl>,
    tasks: ConnectionTasks,
) {
    // Without it, small responses wait for acknowledgements. An error of a closed socket shows again below.
    let _ = stream.set_nodelay(true);
    let socket = ResettableSocket { stream, control: Arc::clone(&control) };
    let service = service_fn(|request| api::answer(Arc::clone(&sim), Arc::clone(&control), request));
    // An error concerns only this connection: its client left or broke the protocol.
    let mut http = auto::Builder::new(tasks);
    http.http1().max_headers(MAX_FIELDS);
    let _ = http.serve_connection_with_upgrades(TokioIo::new(socket), service).await;
    if let Some(tunnel) = control.take_tunnel() {
        let _ = debug_endpoints::echo_tunnel(tunnel).await;
    }
}
