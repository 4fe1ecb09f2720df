//! The worker's connections: how many there may be, and how long somebody may say nothing, or not listen.
//!
//! Called by [`serve`](super::serve). All workers accept from one socket, so whoever is full leaves visitors to the others, and then to
//! the kernel's queue. The pitfall is a server without these bounds: who sends half a request, or reads no answer, costs nothing himself
//! and keeps a place for ever.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt::set_tcp_user_timeout;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// Largest head of a request, in bytes; nginx takes 32 KiB by default. Beyond: 431.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Descriptors for everything but visitors: databases, kvd, the index.
const OTHER_DESCRIPTORS: u64 = 256;
/// After a failure to accept, such as no descriptor being left: closing connections makes room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What visitors may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Visitors at once. Beyond: they wait for another worker, or in the kernel's queue.
    pub(super) connections: usize,
    /// How long the head of a request may take, the silence before it included. Beyond: closed.
    pub(super) head_within: Duration,
    /// How long an answer may lie unread. Beyond: closed.
    pub(super) unread_for: Duration,
    /// How long answers may take that were begun when the worker is told to end. Beyond: closed.
    pub(super) finish_within: Duration,
}

impl Bounds {
    /// As many visitors as there may be descriptors; asks for more if that is what it takes.
    pub(super) fn of_process() -> Bounds {
        Bounds {
            connections: places(4_096),
            // Longer than proxies keep an idle connection (nginx: 60 s), so that it is they who close it and no request meets a
            // closed one.
            head_within: Duration::from_secs(75),
            unread_for: Duration::from_secs(30),
            // Shorter than the parent waits before it kills the worker.
            finish_within: Duration::from_secs(5),
        }
    }
}

fn places(wanted: u64) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted + OTHER_DESCRIPTORS;
    let mut may_be = limit.current.unwrap_or(needed);
    if may_be < needed {
        let more = needed.min(limit.maximum.unwrap_or(needed));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(more), ..limit }).is_ok() {
            may_be = more;
        }
    }
    may_be.saturating_sub(OTHER_DESCRIPTORS).clamp(16, wanted) as usize
}

/// Serves until `told` ends, and finishes the answers it is in the middle of.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    told: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(bounds.connections));
    let (visitors, mut answering) = (GracefulShutdown::new(), JoinSet::new());
    let accepting = async {
        loop {
            let place = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
            let accepted = listener.accept().await.and_then(|(stream, peer)| {
                set_tcp_user_timeout(&stream, bounds.unread_for.as_millis() as u32)?;
                Ok((stream, peer))
            });
            match accepted {
                Ok((stream, peer)) => {
                    let answers = visitors.watch(connection(stream, peer, router.clone(), bounds));
                    answering.spawn(async move {
                        // A visitor who goes in the middle of a page is no news.
                        let _ = answers.await;
                        drop(place);
                    });
                    while answering.try_join_next().is_some() {}
                }
                Err(error) => after_failing_to_accept(error).await,
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = told => {}
    }
    drop(listener);
    // Somebody who has sent half a request, and sends no more, must not keep the port from whoever comes after us.
    let _ = timeout(bounds.finish_within, visitors.shutdown()).await;
}

/// Waits where accepting would fail again; the network's errors are those of one visitor.
async fn after_failing_to_accept(error: Error) {
    use ErrorKind::{ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable};
    if ![ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable]
        .contains(&error.kind())
    {
        tracing::warn!(%error, "no visitor could be accepted");
        sleep(ACCEPT_PAUSE).await;
    }
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    bounds: Bounds,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head_within).max_buf_size(HEAD_BYTES_MAX);
    http.serve_connection(TokioIo::new(stream), service)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    const PAGE: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    const LARGE: &[u8] = b"GET /large HTTP/1.1\r\nHost: shop\r\n\r\n";
    const SHORT: Duration = Duration::from_millis(300);
    const SOON: Duration = Duration::from_secs(20);

    /// A server with room for two, its address, and what ends it.
    async fn shop(head_within: Duration) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("it listens");
        let (end, told) = oneshot::channel();
        let peer = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        let router =
            Router::new().route("/", get(peer)).route("/large", get(|| async { vec![b'x'; 32 << 20] }));
        let told = async {
            let _ = told.await;
        };
        let bounds = Bounds { connections: 2, head_within, unread_for: SHORT, finish_within: SHORT };
        (address, end, tokio::spawn(serve(listener, router, bounds, told)))
    }

    async fn visitor(address: SocketAddr, says: &[u8]) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4_096).expect("small");
        let mut stream = socket.connect(address).await.expect("it listens");
        stream.write_all(says).await.expect("there is room in the socket");
        stream
    }

    /// The first bytes of an answer; empty: the connection was closed.
    async fn hears(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1_024];
        let read = timeout(SOON, stream.read(&mut bytes)).await.expect("it answers or closes");
        String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).into_owned()
    }

    #[tokio::test]
    async fn half_a_request_and_silence_are_closed_and_make_room() {
        let (address, _end, _serving) = shop(SHORT).await;
        let mut half = visitor(address, b"GET / HTTP/1.1\r\nHost: sh").await;
        let mut silent = visitor(address, b"").await;
        let mut third = visitor(address, PAGE).await;
        let says = third.local_addr().expect("connected").to_string();
        let heard = hears(&mut third).await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.ends_with(&says), "{heard}");
        assert_eq!((hears(&mut silent).await.as_str(), hears(&mut half).await.as_str()), ("", ""));
    }

    #[tokio::test]
    async fn who_reads_no_answer_is_closed_and_makes_room() {
        let (address, _end, _serving) = shop(SOON * 2).await;
        let _deaf = (visitor(address, LARGE).await, visitor(address, LARGE).await);
        let mut third = visitor(address, PAGE).await;
        assert!(hears(&mut third).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_head_has_a_bound() {
        let (address, _end, _serving) = shop(SOON * 2).await;
        let mut long = visitor(address, b"GET / HTTP/1.1\r\nX-Long: ").await;
        // It may close before it has read all.
        let _ = long.write_all(&vec![b'x'; 4 * HEAD_BYTES_MAX]).await;
        let heard = hears(&mut long).await;
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 431"), "{heard}");
    }

    #[tokio::test]
    async fn the_end_waits_for_nobody_who_says_nothing() {
        let (address, end, serving) = shop(SOON * 2).await;
        let mut half = visitor(address, b"GET").await;
        let mut served = visitor(address, PAGE).await;
        // Accepted one after the other: the first is in, too.
        assert!(hears(&mut served).await.starts_with("HTTP/1.1 200"));
        end.send(()).expect("it serves");
        timeout(SOON, serving).await.expect("it ends").expect("it does not panic");
        assert_eq!((hears(&mut served).await.as_str(), hears(&mut half).await.as_str()), ("", ""));
    }
}
