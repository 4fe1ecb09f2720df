//! Pre-forked workers that share one cache: `cargo run --example prefork`.
//!
//! A parent opens the listening socket and starts worker processes that inherit it, as web servers have done since Apache.
//! The workers share nothing else but kvd. The database is slow; however many workers miss a toy at once, one of them asks
//! it, and the others get its answer. The parent then plays the visitors and counts.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use kv_client::blocking::Client;

const WORKERS: usize = 4;
const VISITORS: usize = 8;
const TOYS: [&str; 5] = ["castle", "crane", "kite", "rocket", "train"];
const DATABASE_TAKES: Duration = Duration::from_millis(200);

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => work(),
        _ => lead(),
    }
}

/// One worker: answers a toy's name with its page, until it is killed.
fn work() -> Result<(), Box<dyn Error>> {
    // The inherited socket is standard input, as with FastCGI: so no descriptor has to be numbered, or trusted.
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let pages = Client::connect()?.cache("page");
    loop {
        let (mut visitor, _) = listener.accept()?;
        let mut toy = String::new();
        visitor.read_to_string(&mut toy)?;

        let mut asked = "the cache";
        let page = pages.get_or_load(&toy, Duration::from_secs(60), |_fill| {
            asked = "the database";
            ask_the_database(&toy)
        })?;
        write!(visitor, "process {} asked {asked}: {}", std::process::id(), String::from_utf8_lossy(&page))?;
    }
}

/// Stands for the query that a cache is there for.
fn ask_the_database(toy: &str) -> std::io::Result<Vec<u8>> {
    thread::sleep(DATABASE_TAKES);
    Ok(format!("<h1>{toy}</h1>").into_bytes())
}

/// The parent: opens the socket, starts the workers, and plays the visitors.
fn lead() -> Result<(), Box<dyn Error>> {
    // A daemon of our own where there is none, so that the example runs by itself.
    let server = std::env::var_os("KVD_SOCKET").is_none().then(kvd::testing::server);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let workers = (0..WORKERS).map(|_| {
        let mut worker = Command::new(std::env::current_exe()?);
        worker.arg("worker").stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)));
        if let Some(server) = &server {
            worker.env("KVD_SOCKET", server.socket());
        }
        worker.spawn().map(Worker)
    });
    let _workers = workers.collect::<std::io::Result<Vec<Worker>>>()?;

    // All visitors want the same toys at the same time: the hardest moment for a database, and the most common.
    let visitors: Vec<_> = (0..VISITORS).map(|_| thread::spawn(move || visit(address))).collect();
    let mut answers = Vec::new();
    for visitor in visitors {
        answers.extend(visitor.join().expect("visitors do not panic")?);
    }

    let loads: Vec<&String> = answers.iter().filter(|answer| answer.contains("asked the database")).collect();
    loads.iter().for_each(|answer| println!("{answer}"));
    let mut processes: Vec<_> = answers.iter().filter_map(|answer| answer.split(' ').nth(1)).collect();
    processes.sort_unstable();
    processes.dedup();
    let (requests, toys, processes, loads) = (answers.len(), TOYS.len(), processes.len(), loads.len());
    println!("{requests} requests for {toys} toys, answered by {processes} processes: {loads} loader runs");
    Ok(())
}

/// One visitor looks at every toy; what was answered.
fn visit(address: SocketAddr) -> std::io::Result<Vec<String>> {
    let look_at = |toy: &&str| {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(toy.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        std::io::read_to_string(&mut stream)
    };
    TOYS.iter().map(look_at).collect()
}

/// A worker process; killed when dropped. That is safe at any moment: a lease ends with its holder's connection.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
