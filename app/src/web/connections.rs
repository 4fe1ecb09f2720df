//! The worker's connections: how many there may be, and how long somebody may say nothing.
//!
//! Called by [`serve`](super::serve). All workers accept from one socket, so whoever is full leaves visitors to the others, and then to
//! the kernel's queue. A visitor who says half a request, or nothing, is closed after a while and holds up nobody else.

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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// Visitors a worker holds at once. Beyond: they wait for another worker, or in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 4_096;
/// How long the head of a request may take, the silence before it included. Longer than proxies keep an idle connection (nginx: 60 s),
/// so that it is they who close it and no request meets a closed one.
const HEAD_WITHIN: Duration = Duration::from_secs(75);
/// After a failure to accept, such as no descriptor being left: closing connections makes room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `connections_max` visitors at once until `told` ends; then those who asked already are answered, for `finish_within`, and the rest closed.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    told: impl Future<Output = ()>,
    finish_within: Duration,
) {
    let room = Arc::new(Semaphore::new(connections_max));
    let visitors = GracefulShutdown::new();
    let accepting = async {
        loop {
            let place = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no visitor could be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let answering = answer(stream, peer, router.clone(), &visitors);
            tokio::spawn(async move {
                // A visitor who goes in the middle of a page is no news.
                let _ = answering.await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = told => {}
    }
    drop(listener);
    // Somebody who has sent half a request, and sends no more, must not keep the port from whoever comes after us.
    let _ = timeout(finish_within, visitors.shutdown()).await;
}

fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    visitors: &GracefulShutdown,
) -> impl Future<Output = hyper::Result<()>> + use<> {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    visitors.watch(http.serve_connection(TokioIo::new(stream), service))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    const PAGE: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

    /// A server with room for two, its address, and what ends it.
    async fn shop() -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("it listens");
        let (end, told) = oneshot::channel();
        let router = Router::new()
            .route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }));
        let told = async {
            let _ = told.await;
        };
        let serving = tokio::spawn(serve(listener, router, 2, told, Duration::from_secs(5)));
        (address, end, serving)
    }

    async fn visitor(address: SocketAddr, says: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(says).await.expect("there is room in the socket");
        stream
    }

    /// The first bytes of an answer; empty: the connection was closed.
    async fn hears(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1_024];
        let read = timeout(HEAD_WITHIN * 2, stream.read(&mut bytes)).await.expect("it answers or closes");
        String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).into_owned()
    }

    // Time is paused: it jumps to the next timer whenever nobody has anything to do.
    #[tokio::test(start_paused = true)]
    async fn half_a_request_and_silence_are_closed_and_make_room() {
        let (address, _end, _serving) = shop().await;
        let mut half = visitor(address, b"GET / HTTP/1.1\r\nHost: sh").await;
        let mut silent = visitor(address, b"").await;
        let mut third = visitor(address, PAGE).await;
        let says = third.local_addr().expect("connected").to_string();
        let heard = hears(&mut third).await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.ends_with(&says), "{heard}");
        assert_eq!((hears(&mut silent).await.as_str(), hears(&mut half).await.as_str()), ("", ""));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_nobody_who_says_nothing() {
        let (address, end, serving) = shop().await;
        let mut served = visitor(address, PAGE).await;
        assert!(hears(&mut served).await.starts_with("HTTP/1.1 200"));
        let _half = visitor(address, b"GET").await;
        end.send(()).expect("it serves");
        timeout(Duration::from_secs(6), serving).await.expect("it ends").expect("it does not panic");
        assert_eq!(hears(&mut served).await, "");
        assert!(TcpStream::connect(address).await.is_err(), "the port is free");
    }
}
