//! The Prometheus endpoint: HTTP for the rows of `stats`, off unless configured, on the loopback interface or a Unix socket only.
//!
//! `cli::serve` starts one beside the server. One thread with a small runtime of its own serves few connections, each for a
//! bounded time, so that a scraper that hangs costs a slot and no request of a client. It never reads more than a header.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

use crate::config::MetricsListen;
use crate::engine::Engine;
use crate::exposition;

/// Scrapers at once. Beyond: they wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8;
/// A connection has so long for all it wants. Beyond: it is closed.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// A header must be complete within this.
const HEADER_MAX: Duration = Duration::from_secs(2);
/// Largest header, in bytes; the least that hyper allows.
const HEADER_BYTES_MAX: usize = 8_192;
/// What Prometheus' text format is called.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
#[error("metrics.listen = {place}: {source}")]
pub struct ScrapeError {
    place: String,
    source: std::io::Error,
}

/// A running endpoint; ends when dropped.
#[derive(Debug)]
pub struct Scrape {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    place: String,
    remove: Option<PathBuf>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Scrape {
    /// Serves `GET /metrics` of `engine` at `listen`.
    ///
    /// # Errors
    /// When the place cannot be had.
    pub fn start(engine: Arc<Engine>, listen: &MetricsListen) -> Result<Scrape, ScrapeError> {
        let failed = |source| ScrapeError { place: listen.to_string(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (listener, place, remove) = {
            let _guard = runtime.enter();
            bind(listen).map_err(failed)?
        };
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("kvd-metrics".to_owned())
            .spawn(move || runtime.block_on(accept(listener, engine, stopped)))
            .map_err(failed)?;
        Ok(Scrape { stop, thread: Some(thread), place, remove })
    }

    /// Where it listens: an address with its port, or a path.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }
}

impl Drop for Scrape {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(path) = &self.remove {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind(listen: &MetricsListen) -> std::io::Result<(Listener, String, Option<PathBuf>)> {
    match listen {
        MetricsListen::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let bound: SocketAddr = listener.local_addr()?;
            Ok((Listener::Tcp(TcpListener::from_std(listener)?), format!("http://{bound}/metrics"), None))
        }
        MetricsListen::Unix(path) => {
            remove_stale(path)?;
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            let place = path.display().to_string();
            Ok((Listener::Unix(UnixListener::from_std(listener)?), place, Some(path.clone())))
        }
    }
}

/// Makes room where a socket lies that nobody listens on; anything else is left alone.
fn remove_stale(path: &Path) -> std::io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(std::io::Error::other("something that is no socket is there, and is left alone"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Ok(_) | Err(_) => Err(std::io::Error::from(std::io::ErrorKind::AddrInUse)),
    }
}

async fn accept(listener: Listener, engine: Arc<Engine>, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("it is never closed");
        let accepted = async {
            match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            }
        };
        let stream = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.changed() => return,
        };
        let engine = Arc::clone(&engine);
        let serve = async move {
            let _slot = slot;
            match stream {
                Ok(Stream::Tcp(stream)) => serve(stream, engine).await,
                Ok(Stream::Unix(stream)) => serve(stream, engine).await,
                // No descriptor to be had: not at once again.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        tokio::spawn(serve);
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, engine: Arc<Engine>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &engine);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    // Whatever goes wrong is the scraper's; it asks again.
    let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
}

fn answer(request: &Request<Incoming>, engine: &Engine) -> Response<Full<Bytes>> {
    let say = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = say(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return say(StatusCode::NOT_FOUND, "kvd: the metrics are at /metrics\n".to_owned());
    }
    let rows = engine.metric_rows();
    let rows = rows.iter().map(|row| {
        let labels = row.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        (row.name, labels, row.value)
    });
    say(StatusCode::OK, exposition::render(rows))
}
