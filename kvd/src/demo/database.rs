//! The stand-in database: a process of its own, slow on purpose, that counts every load it serves.
//!
//! Started by the conductor, asked by the workers. It knows nothing of caches, so what it counted is the truth about hits.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::objects::{ROW_BYTES, row};
use super::{Failure, stage};

/// Loads a row and counts it.
const LOAD: u8 = 0;
/// Loads a row to measure how long it takes; not counted.
const MEASURE: u8 = 1;
/// How many loads there were.
const COUNT: u8 = 2;
/// Bytes of a request: what, and which object.
const REQUEST_BYTES: usize = 5;
/// Threads wait for their requests here; they need little.
const STACK_BYTES: usize = 128 << 10;
/// No load takes longer than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How the database is started.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    listen: PathBuf,
    #[arg(long)]
    delay_us: u64,
}

#[derive(Default)]
struct Counts {
    loads: AtomicU64,
    stamp: AtomicU32,
}

/// Serves until killed.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    stage::die_with_parent()?;
    let listener = UnixListener::bind(&args.listen).map_err(Failure::io("listening for the workers"))?;
    println!("ready");
    let counts = Arc::new(Counts::default());
    let delay = Duration::from_micros(args.delay_us);
    for stream in listener.incoming() {
        let stream = stream.map_err(Failure::io("accepting a worker"))?;
        let counts = Arc::clone(&counts);
        let serve = move || {
            // A worker that has gone needs no answer.
            let _ = serve(stream, delay, &counts);
        };
        std::thread::Builder::new()
            .name("demo-database".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(serve)
            .map_err(Failure::io("starting a thread"))?;
    }
    Ok(())
}

fn serve(mut stream: UnixStream, delay: Duration, counts: &Counts) -> std::io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request)?;
        let [what, object @ ..] = request;
        if what == COUNT {
            stream.write_all(&counts.loads.load(Ordering::Relaxed).to_le_bytes())?;
            continue;
        }
        if what == LOAD {
            counts.loads.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(delay);
        let stamp = counts.stamp.fetch_add(1, Ordering::Relaxed);
        stream.write_all(&row(u32::from_le_bytes(object), stamp))?;
    }
}

/// A connection to the database.
#[derive(Debug)]
pub(super) struct Database(UnixStream);

impl Database {
    pub(super) fn connect(socket: &Path) -> Result<Database, Failure> {
        let stream =
            UnixStream::connect(socket).map_err(Failure::io("connecting to the stand-in database"))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(Failure::io("setting a deadline"))?;
        Ok(Database(stream))
    }

    /// Loads the row of an object.
    pub(super) fn load(&mut self, object: u32) -> Result<[u8; ROW_BYTES], Failure> {
        self.ask(LOAD, object)
    }

    /// Loads a row without being counted.
    pub(super) fn measure(&mut self, object: u32) -> Result<[u8; ROW_BYTES], Failure> {
        self.ask(MEASURE, object)
    }

    /// How many loads it has served.
    pub(super) fn loads(&mut self) -> Result<u64, Failure> {
        self.ask(COUNT, 0).map(u64::from_le_bytes)
    }

    fn ask<const N: usize>(&mut self, what: u8, object: u32) -> Result<[u8; N], Failure> {
        let mut request = [what; REQUEST_BYTES];
        request[1..].copy_from_slice(&object.to_le_bytes());
        let mut answer = [0; N];
        let asked = self.0.write_all(&request).and_then(|()| self.0.read_exact(&mut answer));
        asked.map_err(Failure::io("asking the stand-in database"))?;
        Ok(answer)
    }
}
