//! The control socket: HTTP/1.1 and JSON on a Unix socket, one thread for all clients.
//!
//! It stands on the [`Control`] of a machine and waits for the machine's owner nowhere. A client that hangs,
//! floods or goes away costs a bounded amount of memory and nobody else's time.

/// The paths of a module and what answers them, once for the router and once for the document: describing all
/// of it takes memory and time that a machine's start does not have.
macro_rules! surface {
    ($($path:path: $first:ident($first_handler:ident) $(. $next:ident($next_handler:ident))*),* $(,)?) => {
        /// Adds the routes.
        pub(super) fn route(router: axum::Router<Services>) -> axum::Router<Services> {
            router
                $(.route($path, axum::routing::$first($first_handler)$(.$next($next_handler))*))*
        }

        /// Adds their descriptions.
        pub(super) fn describe_to(
            router: utoipa_axum::router::OpenApiRouter<Services>,
        ) -> utoipa_axum::router::OpenApiRouter<Services> {
            router
                $(.routes(utoipa_axum::routes!($first_handler $(, $next_handler)*)))*
        }
    };
}

mod answer;
mod console;
mod extract;
mod follow;
mod journal;
mod look;
mod routes;

pub use routes::{document, document_text};

use crate::control::Control;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tower::ServiceExt as _;

/// Clients at a time. One more, and the one that has been there longest goes.
const MOST_CLIENTS: usize = 128;
/// How long a client may take for the head of a request, and stay between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What stands behind the routes besides the machine's control.
#[derive(Clone)]
pub(crate) struct Services {
    /// The machine.
    pub(crate) control: Control,
    /// Where a debugger finds the machine when nothing else is said.
    pub(crate) gdb: String,
    /// Ends the process when it does not end by itself after it was killed.
    pub(crate) kill: Arc<dyn Fn() + Send + Sync>,
    /// What the socket's thread is done with: the routes look it up when they are asked.
    pub(crate) closing: watch::Receiver<bool>,
}

/// A control socket that is bound: clients can connect, and wait until it is served.
pub struct Socket {
    listener: StdListener,
    gdb: String,
}

impl Socket {
    /// Binds `path`, for this user only.
    ///
    /// # Errors
    ///
    /// The kernel's: the path is taken, too long, or its folder is not there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = StdListener::bind(path)?;
        // Between the two lies a folder that only this user can enter.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let gdb = format!("unix:{}", path.with_file_name("gdb.sock").display());
        Ok(Self { listener, gdb })
    }

    /// Serves it, from a thread of its own.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub fn serve(self, control: Control, kill: Arc<dyn Fn() + Send + Sync>) -> io::Result<Server> {
        let (close, closing) = watch::channel(false);
        let Self { listener, gdb } = self;
        let services = Services {
            control,
            gdb,
            kill,
            closing,
        };
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn(move || run(listener, services))?;
        Ok(Server {
            close,
            thread: Some(thread),
        })
    }
}

/// A control socket that is served. Dropping it closes it.
pub struct Server {
    close: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// How long clients have to hear of the machine's end.
const GRACE: Duration = Duration::from_millis(500);

impl Drop for Server {
    fn drop(&mut self) {
        self.close.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // One that panicked serves nobody any more.
            let _ = thread.join();
        }
    }
}

/// Waits until the socket is to close.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // Its other end is gone: closed as well.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn run(listener: StdListener, services: Services) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve(listener, services)));
    if let Err(e) = served {
        tracing::error!(target: "api", "the control socket is not served: {e}");
    }
}

async fn serve(listener: StdListener, services: Services) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let mut closing = services.closing.clone();
    let app = routes::router(services);
    let mut clients = JoinSet::new();
    let mut present: BTreeMap<u64, AbortHandle> = BTreeMap::new();
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => {
                present.retain(|_, client| !client.is_finished());
                continue;
            }
            () = closed(&mut closing) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, most likely: others have to go first.
                tracing::warn!(target: "api", "cannot accept a client: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while present.len() >= MOST_CLIENTS
            && let Some((_, oldest)) = present.pop_first()
        {
            oldest.abort();
        }
        number += 1;
        let client = clients.spawn(client(stream, app.clone(), closing.clone()));
        present.insert(number, client);
    }
    drop(listener);
    let deadline = Instant::now() + GRACE;
    while !clients.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, clients.join_next())
            .await
            .is_err()
        {
            clients.abort_all();
            break;
        }
    }
    Ok(())
}

/// Writes down who asks for a change, or joins a console: the audit trail, if there is one, takes it.
fn audit<B>(request: &hyper::Request<B>, peer: Option<&UCred>) {
    let changes = request.method() != hyper::Method::GET;
    if changes || request.headers().contains_key(hyper::header::UPGRADE) {
        tracing::info!(
            target: "audit",
            uid = peer.map(UCred::uid),
            pid = peer.and_then(UCred::pid),
            method = request.method().as_str(),
            path = request.uri().path(),
            "asked over the control socket"
        );
    }
}

/// Serves one client until it goes, or until the socket is closed and its request is answered.
async fn client(stream: UnixStream, app: axum::Router, mut closing: watch::Receiver<bool>) {
    let peer = stream.peer_cred().ok();
    let service = app.map_request(move |request: hyper::Request<hyper::body::Incoming>| {
        audit(&request, peer.as_ref());
        request
    });
    let service = TowerToHyperService::new(service);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    // A client's errors are the client's.
    tokio::select! {
        _ = &mut connection => return,
        () = closed(&mut closing) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
